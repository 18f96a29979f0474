/**
 * What does it change to come from an older API to its face here? Each pair of
 * original and face does the same, by the same calls and on the same client:
 * one lock that nobody else wants, and one that many wait for.
 */
import type { LockTarget } from "../mod.ts";
import { type Cell, inRounds, type Report, type Settings } from "./harness.ts";
import { load } from "./ours.ts";

const TTL_MS = 10_000;
const WAITERS = 64;
/** More tries than anybody needs here. */
const MANY = 10_000;

/** One API, by one of its two implementations. */
interface Subject {
  readonly name: string;
  /** Acquires `key`, waiting for it as by default, and releases it. */
  hold(key: string): Promise<void>;
}

/** Two of the same API: the original first, or what stands for it. */
interface Pair {
  readonly api: string;
  /** Set where it would take hours until the last of many had it. */
  readonly isEndless?: true;
  readonly subjects: readonly [Subject, Subject];
  close(): Promise<unknown>;
}

export async function compat(
  { url, quick }: Settings,
): Promise<readonly Report[]> {
  const alone: Record<string, Cell>[] = [];
  const waiting: Record<string, Cell>[] = [];
  for (const open of [upstash, redisKit, redisMutex]) {
    const { api, isEndless, subjects, close } = await open(url);
    try {
      const uncontended = (subject: Subject) => pairs(subject, 100);
      for (const subject of subjects) await pairs(subject, 2_000);
      const took = await inRounds(subjects, quick ? 5 : 61, uncontended);
      for (const [i, { name }] of subjects.entries()) {
        const { ratio, absolute } = took[i];
        alone.push({
          ...{ api, lock: name },
          "times the original": i === 0 ? 1 : ratio,
          "µs": absolute.median,
        });
      }
      if (isEndless) continue;
      const served = await inRounds(subjects, quick ? 1 : 5, lastServed);
      for (const [i, { name }] of subjects.entries()) {
        const lock = { api, lock: name };
        const last = served[i];
        const { q1, median, q3 } = last.ratio;
        const times = { q1: 1 / q3, median: 1 / median, q3: 1 / q1 };
        waiting.push({
          ...lock,
          "times as fast": i === 0 ? 1 : times,
          "ms": last.absolute.median,
        });
      }
    } finally {
      await close();
    }
  }
  return [{
    name: "compat",
    title: "Older APIs, uncontended: mean of acquire + release, less is " +
      "better; medians of rounds of 100 pairs",
    rows: alone,
  }, {
    name: "compat_waiting",
    title:
      `Older APIs, ${WAITERS} wait for one key, hold nothing and have the ` +
      "pauses of each API's defaults: until the last of them has had it",
    rows: waiting,
  }];
}

/** The mean of so many pairs in a row, in microseconds. */
async function pairs(subject: Subject, count: number): Promise<number> {
  const begun = performance.now();
  for (let i = 0; i < count; i++) await subject.hold("bench:compat");
  return (performance.now() - begun) / count * 1_000;
}

/** Until the last of many has had the lock, in milliseconds. */
async function lastServed(subject: Subject): Promise<number> {
  const begun = performance.now();
  const all = Array.from(
    { length: WAITERS },
    () => subject.hold("bench:compat:line"),
  );
  await Promise.all(all);
  return performance.now() - begun;
}

function sure(isSo: boolean): void {
  if (!isSo) throw new Error("The lock is not held");
}

/** The original by its own calling style, on the connection that ours has. */
async function upstash(url: string): Promise<Pair> {
  const { Redis } = await imported<IoredisPackage>("ioredis");
  const client = new Redis(url);
  const redis = {
    set: (key: string, value: string, { px }: { px: number }) =>
      client.set(key, value, "PX", px, "NX"),
    get: (key: string) => client.get(key),
    eval: (lua: string, keys: string[], args: string[]) =>
      client.eval(lua, keys.length, ...keys, ...args),
  };
  const subject = (name: string, { Lock }: UpstashPackage, redis: object) => ({
    name,
    async hold(id: string) {
      const retry = { attempts: MANY, delay: 100 };
      const lock = new Lock({ id, redis, lease: TTL_MS, retry });
      sure(await lock.acquire());
      sure(await lock.release());
    },
  });
  return {
    api: "@upstash/lock on ioredis 6",
    subjects: [
      subject("the original", await imported("@upstash/lock"), redis),
      subject("ours", await load("../src/compat/upstash.ts"), client),
    ],
    close: () => client.quit(),
  };
}

async function redisKit(url: string): Promise<Pair> {
  const { createClient } = await imported<NodeRedisPackage>("redis");
  const client = createClient({ url });
  await client.connect();
  const subject = (name: string, { Redlock }: RedisKitPackage) => {
    const redlock = new Redlock([client], { maxRetryAttempts: MANY });
    return {
      name,
      async hold(key: string) {
        const lock = await redlock.acquire(key, TTL_MS);
        sure(await lock?.release() === true);
      },
    };
  };
  return {
    api: "@redis-kit/lock on node-redis 5",
    subjects: [
      subject("the original", await imported("@redis-kit/lock")),
      subject("ours", await load("../src/compat/redlock.ts")),
    ],
    close: () => client.close(),
  };
}

/**
 * The original is not to be had. By its document's description it takes a key by
 * one script and frees it by one DEL: no more than these two is what ours has to
 * keep up with. Who waits asks after 1, 2, 4, 8 … seconds, all at the same time.
 */
async function redisMutex(url: string): Promise<Pair> {
  const { Redis } = await imported<IoredisPackage>("ioredis");
  const client = new Redis(url);
  const lua = `
    if redis.call("exists", KEYS[1]) == 1 then return 0 end
    redis.call("set", KEYS[1], ARGV[1], "PX", ARGV[2])
    return 1`;
  const sha = await client.script("LOAD", lua);
  const { RedisMutex } = await load<RedisMutexPackage>(
    "../src/compat/redis_mutex.ts",
  );
  const mutex = new RedisMutex({ client, lockTimeout: TTL_MS });
  return {
    api: "@trellisorg/distributed-lock on ioredis 6",
    isEndless: true,
    subjects: [
      {
        name: "its two commands, bare",
        async hold(key) {
          const id = crypto.randomUUID();
          sure(await client.evalsha(sha, 1, key, id, TTL_MS) === 1);
          sure(await client.del(key) === 1);
        },
      },
      {
        name: "ours",
        async hold(key) {
          const { unlock } = await mutex.lock(key);
          await unlock();
        },
      },
    ],
    close: () => client.quit(),
  };
}

/** By a computed name, so that type-checking takes none of them. */
async function imported<Package>(name: string): Promise<Package> {
  return await import(name);
}

interface IoredisPackage {
  Redis: new (url: string) => LockTarget & {
    set(...args: (string | number)[]): Promise<unknown>;
    get(key: string): Promise<unknown>;
    eval(...args: (string | number)[]): Promise<unknown>;
    evalsha(...args: (string | number)[]): Promise<unknown>;
    del(key: string): Promise<unknown>;
    script(subcommand: "LOAD", lua: string): Promise<string>;
    quit(): Promise<unknown>;
  };
}

interface NodeRedisPackage {
  createClient(options: { url: string }): LockTarget & {
    connect(): Promise<unknown>;
    close(): Promise<unknown>;
  };
}

interface UpstashPackage {
  Lock: new (config: object) => {
    acquire(): Promise<boolean>;
    release(): Promise<boolean>;
  };
}

interface RedisMutexPackage {
  RedisMutex: new (options: object) => {
    lock(key: string): Promise<{ unlock(): Promise<void> }>;
  };
}

interface RedisKitPackage {
  Redlock: new (clients: LockTarget[], options: object) => {
    acquire(key: string, ttlMs: number): Promise<
      { release(): Promise<boolean> } | null
    >;
  };
}
