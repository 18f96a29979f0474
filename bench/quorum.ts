/**
 * What does a quorum cost, and what does it cost when a server says nothing?
 * One key, acquired and released one time after the other over 3 servers and
 * over 5: times the bare commands sent to all at once, which wait for all. Then
 * again with one server stopped (SIGSTOP), where those commands never return.
 */
import type { LockTarget } from "../mod.ts";
import { type RedisServer, startRedis } from "../tests/support/redis_server.ts";
import {
  type Cell,
  inRounds,
  quantile,
  type Report,
  type Settings,
} from "./harness.ts";
import { acquireLock, redlock } from "./ours.ts";
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
} from "./packages.ts";

const TTL_MS = 10_000;
const SIZES = [3, 5];
/** What ours may take, times the bare commands, and times itself when well. */
const GOAL_TIMES_BARE = 1.25;
const GOAL_TIMES_WELL = 1.3;
/** How long a pair may take with one server stopped before it counts as none. */
const PATIENCE_MS = 3_000;

/** One way of locking over several servers. */
interface Subject {
  readonly name: string;
  hold(): Promise<void>;
}

/** All that runs on clients of one kind. */
interface Field {
  readonly client: string;
  readonly subjects: readonly Subject[];
  readonly absent: readonly Readonly<{ name: string; reason: string }>[];
  close(): void;
}

export async function quorum({ quick }: Settings): Promise<Report[]> {
  const reports: Report[] = [];
  for (const size of SIZES) {
    const starting = Array.from({ length: size }, () => startRedis());
    const servers = await Promise.all(starting);
    try {
      reports.push(await compare(servers, quick ? 7 : 61));
    } finally {
      for (const server of servers) await server.stop();
    }
  }
  return reports;
}

async function compare(
  servers: readonly RedisServer[],
  rounds: number,
): Promise<Report> {
  const pairs = 100;
  const rows: Record<string, Cell>[] = [];
  const goals: string[] = [];
  for (const open of [onIoredis, onNodeRedis]) {
    const { client, subjects, absent, close } = await open(servers);
    try {
      for (const { hold } of subjects) await latency(hold, 10 * pairs);
      const well = await inRounds(
        subjects,
        rounds,
        ({ hold }) => latency(hold, pairs),
      );
      const stopped = await withOneStopped(servers[0], subjects, rounds, pairs);
      for (const [i, { name }] of subjects.entries()) {
        const { ratio, absolute } = well[i];
        rows.push({
          client,
          lock: name,
          "times bare": i === 0 ? 1 : ratio,
          "µs": absolute.median,
          "µs, one stopped": stopped[i],
        });
      }
      for (const { name, reason } of absent) {
        rows.push({ client, lock: name, "times bare": `not here: ${reason}` });
      }
      goals.push(
        ...judged(client, subjects, well.map((one) => one.ratio.median), [
          well.map((one) => one.absolute.median),
          stopped,
        ]),
      );
    } finally {
      close();
    }
  }
  const title = `Quorum of ${servers.length}: latency p50 of acquire + ` +
    `release, less is better; median (quartiles) of ${rounds} rounds of ` +
    `${pairs} pairs; ${goals.join(", ")}`;
  return { name: `quorum of ${servers.length}`, title, rows };
}

/** Each once more, with one server that says nothing; "none" where it hangs. */
async function withOneStopped(
  server: RedisServer,
  subjects: readonly Subject[],
  rounds: number,
  pairs: number,
): Promise<Cell[]> {
  server.freeze();
  try {
    const going: Subject[] = [];
    for (const subject of subjects) {
      if (await answers(subject)) going.push(subject);
    }
    const outcomes = await inRounds(
      going,
      rounds,
      ({ hold }) => latency(hold, pairs),
    );
    return subjects.map((subject) => {
      const index = going.indexOf(subject);
      return index < 0
        ? `no pair in ${PATIENCE_MS / 1000} s`
        : outcomes[index].absolute.median;
    });
  } finally {
    server.thaw();
    await server.command("PING");
  }
}

/** Whether a pair comes to an end. */
async function answers({ hold }: Subject): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout>;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), PATIENCE_MS);
  });
  const pair = hold().then(() => true, () => false);
  return await Promise.race([pair, late]).finally(() => clearTimeout(timer));
}

/** What came of the goals, on one client. */
function judged(
  client: string,
  subjects: readonly Subject[],
  ratios: readonly number[],
  [well, stopped]: readonly (readonly Cell[])[],
): string[] {
  const met = (isMet: boolean) => isMet ? "met" : "MISSED";
  const names = subjects.map(({ name }) => name);
  const at = names.indexOf("ours");
  const peers = ratios.filter((_, i) =>
    !names[i].startsWith("bare") && !names[i].startsWith("ours")
  );
  const ours = ratios[at];
  const times = Number(stopped[at]) / Number(well[at]);
  return [
    `${client}: ${ours.toFixed(2)} times bare (goal: ${GOAL_TIMES_BARE}, ` +
    `${met(ours <= GOAL_TIMES_BARE)}), ahead of every peer: ` +
    `${met(peers.every((peer) => ours < peer))}, with one stopped ` +
    `${times.toFixed(2)} times as long (goal: ${GOAL_TIMES_WELL}, ` +
    `${met(times <= GOAL_TIMES_WELL)})`,
  ];
}

/** The median of so many pairs, in microseconds. */
async function latency(
  hold: () => Promise<void>,
  pairs: number,
): Promise<number> {
  const took: number[] = [];
  for (let i = 0; i < pairs; i++) {
    const begun = performance.now();
    await hold();
    took.push((performance.now() - begun) * 1000);
  }
  return quantile(took, 0.5);
}

const RELEASE = `if redis.call("GET", KEYS[1]) == ARGV[1] then
return redis.call("DEL", KEYS[1]) end
return 0`;

async function onIoredis(servers: readonly RedisServer[]): Promise<Field> {
  const { Redis } = await load<IoredisPackage>("ioredis");
  const clients = servers.map(({ url }) => new Redis(url));
  const sha = String(
    (await Promise.all(clients.map((it) => it.script("LOAD", RELEASE))))[0],
  );
  const set = (key: string, owner: string) => (it: Ioredis) =>
    it.set(key, owner, "PX", TTL_MS, "NX");
  const free = (key: string, owner: string) => (it: Ioredis) =>
    it.evalsha(sha, 1, key, owner);
  return await field("ioredis 6", {
    bare: (key) => bare(key, clients, set, free, (all) => Promise.all(all)),
    "bare, at the majority": (key) => bare(key, clients, set, free, majority),
    ours: (key) => ours(key, clients),
    "ours, fenced": (key) => ours(key, clients, true),
    "redlock 5": (key) => redlock5(key, clients),
    "redis-semaphore": (key) => redisSemaphore(key, clients),
    "redlock-universal": (key) => redlockUniversal(key, clients),
  }, () => clients.forEach((client) => client.disconnect()));
}

async function onNodeRedis(servers: readonly RedisServer[]): Promise<Field> {
  const { createClient } = await load<NodeRedisPackage>("redis");
  const clients = servers.map(({ url }) => createClient({ url }));
  for (const client of clients) {
    client.on("error", () => {});
    await client.connect();
  }
  const sha = (await Promise.all(clients.map((it) => it.scriptLoad(RELEASE))))[
    0
  ];
  const set = (key: string, owner: string) => (it: NodeRedis) =>
    it.set(key, owner, { NX: true, PX: TTL_MS });
  const free = (key: string, owner: string) => (it: NodeRedis) =>
    it.evalSha(sha, { keys: [key], arguments: [owner] });
  return await field("node-redis 5", {
    bare: (key) => bare(key, clients, set, free, (all) => Promise.all(all)),
    "bare, at the majority": (key) => bare(key, clients, set, free, majority),
    ours: (key) => ours(key, clients),
    "@redis-kit/lock": (key) => redisKit(key, clients),
  }, () => clients.forEach((client) => client.destroy()));
}

/** Makes the subjects and tries each; what fails is left out, with the reason. */
async function field(
  client: string,
  makers: Record<string, (key: string) => Promise<Subject["hold"]>>,
  close: () => void,
): Promise<Field> {
  const subjects: Subject[] = [];
  const absent: { name: string; reason: string }[] = [];
  for (const [name, make] of Object.entries(makers)) {
    try {
      // A key for each: one that was given up on may still come to hold its own.
      const hold = await make(`bench:quorum:${client}:${name}`);
      await hold();
      subjects.push({ name, hold });
    } catch (error) {
      if (name === "bare" || name === "ours") throw error;
      absent.push({ name, reason: String(error).split("\n")[0] });
    }
  }
  return { client, subjects, absent, close };
}

/** Throws unless `held`: what was not held is no pair. */
function sure(held: boolean): void {
  if (!held) throw new Error("The lock is not held");
}

/** The first answers that are a majority. */
function majority<T>(asked: Promise<T>[]): Promise<T[]> {
  return new Promise((resolve, reject) => {
    const answers: T[] = [];
    for (const one of asked) {
      one.then((answer) => {
        answers.push(answer);
        if (answers.length > asked.length / 2) resolve(answers);
      }, reject);
    }
  });
}

/** The commands alone, to all at once: what every quorum costs at least. */
// deno-lint-ignore require-await
async function bare<Client>(
  key: string,
  clients: readonly Client[],
  set: (key: string, owner: string) => (client: Client) => Promise<unknown>,
  free: (key: string, owner: string) => (client: Client) => Promise<unknown>,
  gather: (asked: Promise<unknown>[]) => Promise<unknown[]>,
): Promise<Subject["hold"]> {
  return async () => {
    const owner = crypto.randomUUID();
    const granted = await gather(clients.map(set(key, owner)));
    sure(granted.every((answer) => answer === "OK"));
    const freed = await gather(clients.map(free(key, owner)));
    sure(freed.every((answer) => answer === 1));
  };
}

// deno-lint-ignore require-await
async function ours(
  key: string,
  clients: readonly LockTarget[],
  fencing = false,
): Promise<Subject["hold"]> {
  const on = redlock(clients);
  const options = { ttl: TTL_MS / 1000, fencing };
  return async () => {
    const lock = await acquireLock(on, key, options);
    sure(await lock.release());
  };
}

async function redlock5(
  key: string,
  clients: Ioredis[],
): Promise<Subject["hold"]> {
  const { default: Redlock } = await load<Redlock5Package>("redlock");
  const redlock = new Redlock(clients, {
    retryCount: 0,
    automaticExtensionThreshold: 0,
  });
  // It tells of each server that fails; with nobody to hear, the process ends.
  redlock.on("error", () => {});
  return async () => {
    const lock = await redlock.acquire([key], TTL_MS);
    await lock.release();
  };
}

async function redisSemaphore(
  key: string,
  clients: Ioredis[],
): Promise<Subject["hold"]> {
  const { RedlockMutex } = await load<RedisSemaphorePackage>("redis-semaphore");
  const options = {
    lockTimeout: TTL_MS,
    acquireAttemptsLimit: 1,
    refreshInterval: 0,
  };
  return async () => {
    const mutex = new RedlockMutex(clients, key, options);
    await mutex.acquire();
    sure(mutex.isAcquired);
    await mutex.release();
  };
}

async function redlockUniversal(
  key: string,
  clients: Ioredis[],
): Promise<Subject["hold"]> {
  const { createRedlock, IoredisAdapter } = await load<RedlockUniversalPackage>(
    "redlock-universal",
  );
  const adapters = clients.map((client) => new IoredisAdapter(client));
  const lock = createRedlock({
    adapters,
    key,
    ttl: TTL_MS,
    retryAttempts: 0,
  });
  return async () => {
    const handle = await lock.acquire();
    sure(await lock.release(handle));
  };
}

async function redisKit(
  key: string,
  clients: NodeRedis[],
): Promise<Subject["hold"]> {
  const { Redlock } = await load<RedisKitPackage>("@redis-kit/lock");
  const redlock = new Redlock(clients, { maxRetryAttempts: 0 });
  return async () => {
    const lock = await redlock.acquire(key, TTL_MS);
    if (lock === null) throw new Error("The lock is not held");
    sure(await lock.release());
  };
}
