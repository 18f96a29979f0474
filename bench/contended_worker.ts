/**
 * One of the processes that want the same lock: so many waiters, each of which
 * takes it again and again, or once. Writes down when each asked, got it and let
 * go, and counts the commands that its clients send.
 *
 * contended.ts bundles it, and speaks with it in lines of JSON.
 */
import { Buffer } from "node:buffer";
import process from "node:process";

import { acquireLock } from "../mod.ts";
import { lines as orders, say } from "../tests/support/child.ts";
import { handOver, type Hold, Lines, localTurns } from "./limits.ts";
import {
  type Ioredis,
  type IoredisPackage,
  load,
  type NodeRedis,
  type NodeRedisPackage,
  type RedisKitPackage,
  type RedisSemaphorePackage,
  type Redlock5Package,
  type RedlockUniversalPackage,
  type Send,
} from "./packages.ts";

/** What to do. All times are in milliseconds of the shared clock. */
export interface Order {
  /** Repeated in the answer. */
  readonly id: number;
  readonly subject: string;
  readonly key: string;
  readonly waiters: number;
  readonly holdMs: number;
  /** Whether each waiter takes the lock only once. */
  readonly isOnce: boolean;
  /** When to begin, and from when and until when to count commands. */
  readonly startAt: number;
  readonly from: number;
  readonly to: number;
  /** When to stop asking for it again. */
  readonly stopAt: number;
  /** For how long after that to wait for those who still do. */
  readonly patienceMs: number;
}

/** What came of it. */
export interface Answer {
  readonly id: number;
  /** In base 64 the rows of a Float64Array: waiter, asked, got, let go. */
  readonly log: string;
  /** From `from` to `to`, or a little later: commands, and who got it. */
  readonly commands: number;
  readonly acquisitions: number;
  readonly seconds: number;
  /** How many still waited when it was time to answer. */
  readonly left: number;
  /** Why one of them gave up. */
  readonly failure: string | undefined;
}

/** The columns of the log; contended.ts has the same. */
const COLUMNS = 4;

/** How long the server keeps a silent hold, whoever asks. */
const TTL_MS = 10_000;
/** For peers that count their tries: as many as they like. */
const UNLIMITED = 1_000_000_000;

// The masters of a Cluster, where there is more than one.
const [urls, origin] = process.argv.slice(2);
const [url, ...others] = urls.split(",");

/** The same moment in all processes, give or take some microseconds. */
const sinceMs = performance.timeOrigin - Number(origin);
const now = () => sinceMs + performance.now();

/** How many commands the clients of this process have sent. */
let sent = 0;
/** The methods that count. */
const counted = new Set<unknown>();

/** Each subject once it was opened, for a key. */
const opened = new Map<string, Promise<(key: string) => Hold>>();

const subjects: Record<string, () => Promise<(key: string) => Hold>> = {
  async "hand-over (limit)"() {
    const lines = await Lines.open(await openIoredis(), await openEars());
    return (key) => handOver(lines, key);
  },
  async "local turns (limit)"() {
    const lines = await Lines.open(await openIoredis(), await openEars());
    return (key) => localTurns(lines, key);
  },
  async "local turns of 10 ms (limit)"() {
    const lines = await Lines.open(await openIoredis(), await openEars());
    return (key) => localTurns(lines, key, 10);
  },
  "ours, localTurns: 0": () => ours({ localTurns: 0 }),
  "ours": () => ours({}),
  async "redis-semaphore"() {
    const client = await openIoredis();
    const { Mutex } = await load<RedisSemaphorePackage>("redis-semaphore");
    const options = {
      lockTimeout: TTL_MS,
      acquireTimeout: UNLIMITED,
      refreshInterval: 0,
    };
    return (key) => async (inside) => {
      const mutex = new Mutex(client, key, options);
      await mutex.acquire();
      const during = inside();
      if (during) await during;
      sure(mutex.isAcquired);
      await mutex.release();
    };
  },
  async "redlock 5"() {
    const { default: Redlock } = await load<Redlock5Package>("redlock");
    const redlock = new Redlock([await openIoredis()], { retryCount: -1 });
    return (key) => async (inside) => {
      const lock = await redlock.acquire([key], TTL_MS);
      const during = inside();
      if (during) await during;
      // Rejects where the server says that it was not ours.
      await lock.release();
    };
  },
  async "redlock-universal"() {
    const client = await openIoredis();
    const { createLock, IoredisAdapter } = await load<RedlockUniversalPackage>(
      "redlock-universal",
    );
    const adapter = new IoredisAdapter(client);
    return (key) => {
      const ttl = TTL_MS;
      const lock = createLock({ adapter, key, ttl, retryAttempts: UNLIMITED });
      return async (inside) => {
        const handle = await lock.acquire();
        const during = inside();
        if (during) await during;
        sure(await lock.release(handle));
      };
    };
  },
  async "@redis-kit/lock"() {
    const client = await openNodeRedis();
    const { Redlock } = await load<RedisKitPackage>("@redis-kit/lock");
    const redlock = new Redlock([client], { maxRetryAttempts: UNLIMITED });
    return (key) => async (inside) => {
      const lock = await redlock.acquire(key, TTL_MS);
      if (lock === null) throw new Error("The lock is not held");
      const during = inside();
      if (during) await during;
      sure(await lock.release());
    };
  },
};

async function ours(
  more: { localTurns?: number },
): Promise<(key: string) => Hold> {
  const client = await openIoredis();
  const options = { ttl: TTL_MS / 1000, waitMs: Infinity, ...more };
  return (key) => async (inside) => {
    const lock = await acquireLock(client, key, options);
    const during = inside();
    if (during) await during;
    sure(await lock.release());
  };
}

/** Throws unless `held`: whoever lost it on the way held nothing. */
function sure(held: boolean): void {
  if (!held) throw new Error("The lock is not held");
}

function open(subject: string): Promise<(key: string) => Hold> {
  let open = opened.get(subject);
  if (open === undefined) opened.set(subject, open = subjects[subject]());
  return open;
}

async function obey(order: Order): Promise<Answer> {
  const { id, subject, key, waiters, holdMs, isOnce, stopAt } = order;
  const hold = (await open(subject))(key);
  const log = new Log();
  const counts: Count[] = [];
  let countAt = order.from;
  // A busy process is late with its timers: each who gets the lock looks, too.
  const look = (at: number) => {
    if (at < countAt) return;
    counts.push({ commands: sent, acquisitions: log.rows, at });
    countAt = counts.length === 1 ? order.to : Infinity;
  };
  const wait = async (waiter: number) => {
    let asked = 0;
    const inside = () => {
      const got = now();
      look(got);
      if (holdMs === 0 || got >= stopAt) log.add(waiter, asked, got, got);
      else {
        return pause(holdMs).then(() => log.add(waiter, asked, got, now()));
      }
    };
    do {
      asked = now();
      await hold(inside);
    } while (!isOnce && now() < stopAt);
  };
  await pause(order.startAt - now());
  const watch = [order.from, order.to]
    // A timer may be some microseconds early.
    .map((at) => pause(at - now()).then(() => look(Math.max(at, now()))));
  let left = waiters;
  let failure: string | undefined;
  const all = Array.from(
    { length: waiters },
    (_, waiter) =>
      wait(waiter).catch((error) => {
        failure ??= String(error).split("\n")[0];
      }).then(() => {
        left--;
      }),
  );
  let limit: ReturnType<typeof setTimeout> | undefined;
  await Promise.race([
    Promise.all(all),
    new Promise((resolve) => {
      limit = setTimeout(resolve, stopAt + order.patienceMs - now());
    }),
  ]);
  clearTimeout(limit);
  await Promise.all(watch);
  const [begun, ended] = counts;
  return {
    id,
    log: log.toString(),
    commands: ended.commands - begun.commands,
    acquisitions: ended.acquisitions - begun.acquisitions,
    seconds: (ended.at - begun.at) / 1000,
    left,
    failure,
  };
}

/** What had been done at some time. */
interface Count {
  readonly commands: number;
  readonly acquisitions: number;
  readonly at: number;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Rows of numbers, by the hundred thousand. */
class Log {
  #numbers = new Float64Array(COLUMNS << 16);
  #length = 0;

  get rows(): number {
    return this.#length / COLUMNS;
  }

  add(waiter: number, asked: number, got: number, letGo: number): void {
    if (this.#length === this.#numbers.length) {
      const numbers = new Float64Array(2 * this.#length);
      numbers.set(this.#numbers);
      this.#numbers = numbers;
    }
    const numbers = this.#numbers;
    numbers[this.#length++] = waiter;
    numbers[this.#length++] = asked;
    numbers[this.#length++] = got;
    numbers[this.#length++] = letGo;
  }

  toString(): string {
    const { buffer } = this.#numbers.subarray(0, this.#length);
    return Buffer.from(buffer, 0, this.#length * 8).toString("base64");
  }
}

async function openIoredis(): Promise<Ioredis> {
  const { Redis, Cluster } = await load<IoredisPackage>("ioredis");
  const isCluster = others.length > 0;
  const client = isCluster ? new Cluster([url, ...others]) : new Redis(url);
  if (isCluster) {
    // Each of its nodes has a client of its own, which is what sends; and a
    // script has to be known to each.
    count(Redis.prototype);
    client.script = async (command, lua) => {
      const all = client.nodes!("master").map((it) => it.script(command, lua));
      return (await Promise.all(all))[0];
    };
  } else count(client);
  await client.ping();
  return client;
}

/** One that listens to each master. */
async function openEars(): Promise<Ioredis[]> {
  const { Redis } = await load<IoredisPackage>("ioredis");
  return [url, ...others].map((url) => new Redis(url));
}

async function openNodeRedis(): Promise<NodeRedis> {
  const { createClient } = await load<NodeRedisPackage>("redis");
  const client = createClient({ url });
  count(client);
  // Without a listener a cut ends the process before anybody is told why.
  client.on("error", () => {});
  await client.connect();
  return client;
}

/** Counts what `client`, and any other of its kind, sends from now on. */
function count(client: object): void {
  let owner = client as { sendCommand: Send };
  while (!Object.hasOwn(owner, "sendCommand")) {
    owner = Object.getPrototypeOf(owner);
  }
  const { sendCommand } = owner;
  if (counted.has(sendCommand)) return;
  const counting: Send = function (command, more) {
    sent++;
    return sendCommand.call(this, command, more);
  };
  counted.add(counting);
  owner.sendCommand = counting;
}

for await (const order of orders<Order | { id: number; subject: string }>()) {
  // Without waiting: several may be under way at a time.
  const { id } = order;
  const answer = "key" in order
    ? obey(order)
    : open(order.subject).then(() => ({ id }));
  void answer.catch((error) => ({ id, failure: String(error) })).then(say);
}
// Nobody is left who could want anything.
process.exit();
