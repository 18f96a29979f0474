/**
 * How fast could waiting in line be, if nothing could ever go wrong? Two bare
 * protocols, without leases, heartbeats, or a look at who releases: whoever dies
 * in line stops it for good. What a lock takes longer is the price of safety.
 */

/** What is called of an ioredis client. */
export interface Commands {
  evalsha(...args: (string | number)[]): Promise<unknown>;
  script(command: "LOAD", lua: string): Promise<unknown>;
}

/** One that listens. */
export interface Subscriber {
  subscribe(channel: string): Promise<unknown>;
  on(
    event: "message",
    listener: (channel: string, message: string) => void,
  ): unknown;
}

/** Runs `inside` while nobody else does. */
export type Hold = (inside: () => Promise<void> | void) => Promise<void>;

/** How many of a process one turn in line serves. */
const LOCAL_TURNS = 16;

/** Takes the lock, or a place in line. It expires only to leave nothing behind. */
const TAKE = `if redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", 60000) then
return 1 end
redis.call("RPUSH", KEYS[2], ARGV[1])
return 0`;

/** Gives it to the next in line, and calls: an owner begins with its channel. */
const PASS_ON = `local next = redis.call("LPOP", KEYS[2])
if not next then return redis.call("DEL", KEYS[1]) end
redis.call("SET", KEYS[1], next, "PX", 60000)
return redis.call("PUBLISH", string.match(next, "^%S+"), next)`;

/** The lines of one process: one connection to ask by, others to be called by. */
export class Lines {
  readonly #commands: Commands;
  readonly #channel: string;
  readonly #take: string;
  readonly #passOn: string;
  readonly #called = new Map<string, () => void>();
  #count = 0;

  private constructor(
    commands: Commands,
    channel: string,
    take: string,
    passOn: string,
  ) {
    this.#commands = commands;
    this.#channel = channel;
    this.#take = take;
    this.#passOn = passOn;
  }

  /**
   * Listens by all `ears`, and has the server know both scripts. A Cluster passes
   * messages on between its masters, but late: so there is an ear for each.
   */
  static async open(
    commands: Commands,
    ears: readonly Subscriber[],
  ): Promise<Lines> {
    const channel = `bench:limit:${crypto.randomUUID()}`;
    const take = String(await commands.script("LOAD", TAKE));
    const passOn = String(await commands.script("LOAD", PASS_ON));
    const lines = new Lines(commands, channel, take, passOn);
    for (const ear of ears) {
      ear.on("message", (_, owner) => lines.#seat(owner));
      await ear.subscribe(channel);
    }
    return lines;
  }

  /** Resolves once the lock is ours. */
  take(key: string): Promise<void> {
    const owner = `${this.#channel} ${this.#count++}`;
    return new Promise((resolve, reject) => {
      // Before it is asked for: the call may come before the answer.
      this.#called.set(owner, resolve);
      this.#commands.evalsha(this.#take, 2, key, `${key}:line`, owner)
        .then((taken) => {
          if (taken === 1) this.#seat(owner);
        }, reject);
    });
  }

  passOn(key: string): Promise<unknown> {
    return this.#commands.evalsha(this.#passOn, 2, key, `${key}:line`);
  }

  #seat(owner: string): void {
    const seat = this.#called.get(owner);
    this.#called.delete(owner);
    seat?.();
  }
}

/** The limit of strict order: each waiter stands in line, each release calls. */
export function handOver(lines: Lines, key: string): Hold {
  return async (inside) => {
    await lines.take(key);
    const during = inside();
    if (during) await during;
    await lines.passOn(key);
  };
}

/**
 * The limit of many waiters in few processes: a process stands in line for all
 * of its own, and its turn serves some of them without a word to the server
 * (Dice, Marathe, Shavit: "Lock cohorting", 2012); for no longer than `turnMs`.
 */
export function localTurns(
  lines: Lines,
  key: string,
  turnMs = Infinity,
): Hold {
  const waiting: (() => void)[] = [];
  // In line, or holding what it stood there for.
  let isThere = false;
  let served = 0;
  let begunAt = 0;
  const stand = async () => {
    isThere = true;
    await lines.take(key);
    served = 0;
    begunAt = performance.now();
    waiting.shift()!();
  };
  return async (inside) => {
    await new Promise<void>((seat, reject) => {
      waiting.push(seat);
      if (!isThere) stand().catch(reject);
    });
    const during = inside();
    if (during) await during;
    const isInTime = turnMs === Infinity ||
      performance.now() - begunAt < turnMs;
    if (++served < LOCAL_TURNS && waiting.length > 0 && isInTime) {
      waiting.shift()!();
      return;
    }
    const passedOn = lines.passOn(key);
    isThere = false;
    // Along with the release: behind all who stand there by now.
    if (waiting.length > 0) stand().catch(() => {});
    await passedOn;
  };
}
