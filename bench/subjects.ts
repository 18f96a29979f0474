/**
 * What is compared with what? Each way of locking that is measured, in as few
 * lines as its own documentation allows, side by side on one client.
 */
import type { LockTarget } from "../mod.ts";
import { acquireLock, redis } from "./ours.ts";
import {
  type Ioredis,
  type IoredisPackage,
  load,
  type NodeRedis,
  openNodeRedis,
  type RedisKitPackage,
  type RedisSemaphorePackage,
  type Redlock5Package,
  type RedlockUniversalPackage,
} from "./packages.ts";

/** How long the server keeps a silent hold, whoever asks. */
const TTL_MS = 10_000;

/** One way of locking. */
export interface Subject {
  readonly name: string;
  /**
   * Locks `key`, gives it back, and makes sure that it was held until then: by
   * what the server answered to the release where the library passes that on,
   * or else by what the library says. One function and not two: an `await` more
   * is what some of the differences are made of.
   *
   * @param during Called in between.
   */
  hold(key: string, during?: () => Promise<void>): Promise<void>;
}

/** A subject that cannot run here. */
export interface Absent {
  readonly name: string;
  readonly reason: string;
}

/** All that is compared on one client: the first is what the others do more than. */
export interface Field {
  readonly client: string;
  readonly subjects: readonly Subject[];
  readonly absent: readonly Absent[];
  close(): Promise<unknown>;
}

/** Opens one field after the other, closing each before the next. */
export async function* fields(url: string): AsyncGenerator<Field> {
  for (const open of [onIoredis, onNodeRedis5, onNodeRedis6]) {
    const field = await open(url);
    try {
      yield field;
    } finally {
      await field.close();
    }
  }
}

async function onIoredis(url: string): Promise<Field> {
  const { Redis } = await load<IoredisPackage>("ioredis");
  const client = new Redis(url);
  return await field("ioredis 6", client.keys.bind(client), {
    bare: () => bareIoredis(client),
    ours: () => ours(client),
    "ours, observed": () => ours(redis(client, { onEvent: () => {} })),
    "redis-semaphore": () => redisSemaphore(client),
    "redlock-universal, lean": () => redlockUniversal(client, "lean"),
    "redlock-universal": () => redlockUniversal(client, "standard"),
    "redlock 5": () => redlock5(client),
  }, () => client.quit());
}

async function onNodeRedis5(url: string): Promise<Field> {
  const client = await openNodeRedis("redis", url);
  return await field("node-redis 5", client.keys.bind(client), {
    bare: () => bareNodeRedis(client),
    ours: () => ours(client),
    "@redis-kit/lock": () => redisKit(client),
  }, () => client.close());
}

async function onNodeRedis6(url: string): Promise<Field> {
  const client = await openNodeRedis("redis6", url);
  return await field("node-redis 6", client.keys.bind(client), {
    bare: () => bareNodeRedis(client),
    ours: () => ours(client),
  }, () => client.close());
}

/** Makes the subjects and tries each; what fails is left out, with the reason. */
async function field(
  client: string,
  keysLike: (pattern: string) => Promise<string[]>,
  makers: Record<string, () => Promise<Subject["hold"]>>,
  close: () => Promise<unknown>,
): Promise<Field> {
  const subjects: Subject[] = [];
  const absent: Absent[] = [];
  for (const [name, make] of Object.entries(makers)) {
    try {
      const subject = { name, hold: await make() };
      await tryOut(subject, keysLike);
      subjects.push(subject);
    } catch (error) {
      // Without these two there is nothing to tell.
      if (name === "bare" || name === "ours") throw error;
      const [reason] = String(error).split("\n");
      absent.push({ name, reason });
    }
  }
  return { client, subjects, absent, close };
}

/** Whether it locks at all: nobody is fast for having done nothing. */
async function tryOut(
  { hold }: Subject,
  keysLike: (pattern: string) => Promise<string[]>,
): Promise<void> {
  const key = `bench:try:${crypto.randomUUID()}`;
  const there = async () => (await keysLike(`*${key}*`)).length;
  for (let time = 0; time < 2; time++) {
    await hold(key, async () => {
      if (await there() === 0) throw new Error("holds nothing on the server");
      const second = await hold(key).then(() => true, () => false);
      if (second) throw new Error("lets two hold the same key");
    });
    if (await there() > 0) throw new Error("leaves its key on the server");
  }
}

/** Throws unless `held`: what was not held is no pair. */
function sure(held: boolean): void {
  if (!held) throw new Error("The lock is not held");
}

// deno-lint-ignore require-await
async function ours(
  client: LockTarget,
): Promise<Subject["hold"]> {
  return async (key, during) => {
    const lock = await acquireLock(client, key, { ttl: TTL_MS / 1000 });
    if (during) await during();
    sure(await lock.release());
  };
}

const RELEASE = `if redis.call("GET", KEYS[1]) == ARGV[1] then
return redis.call("DEL", KEYS[1]) end
return 0`;

/** The commands alone: what every lock on one server costs at least. */
async function bareIoredis(client: Ioredis): Promise<Subject["hold"]> {
  const sha = String(await client.script("LOAD", RELEASE));
  return async (key, during) => {
    const token = crypto.randomUUID();
    sure(await client.set(key, token, "PX", TTL_MS, "NX") === "OK");
    if (during) await during();
    sure(await client.evalsha(sha, 1, key, token) === 1);
  };
}

async function bareNodeRedis(client: NodeRedis): Promise<Subject["hold"]> {
  const sha = await client.scriptLoad(RELEASE);
  return async (key, during) => {
    const token = crypto.randomUUID();
    sure(await client.set(key, token, { NX: true, PX: TTL_MS }) === "OK");
    if (during) await during();
    const call = { keys: [key], arguments: [token] };
    sure(await client.evalSha(sha, call) === 1);
  };
}

/** A new Mutex each time: it draws its owner as it is made. */
async function redisSemaphore(client: Ioredis): Promise<Subject["hold"]> {
  const { Mutex } = await load<RedisSemaphorePackage>("redis-semaphore");
  const options = {
    lockTimeout: TTL_MS,
    acquireAttemptsLimit: 1,
    refreshInterval: 0,
  };
  return async (key, during) => {
    const mutex = new Mutex(client, key, options);
    await mutex.acquire();
    sure(mutex.isAcquired);
    if (during) await during();
    await mutex.release();
  };
}

/** One lock object for each key, made once, as its documentation shows. */
async function redlockUniversal(
  client: Ioredis,
  performance: "standard" | "lean",
): Promise<Subject["hold"]> {
  const { createLock, IoredisAdapter } = await load<RedlockUniversalPackage>(
    "redlock-universal",
  );
  const adapter = new IoredisAdapter(client);
  const locks = new Map<string, ReturnType<typeof createLock>>();
  return async (key, during) => {
    let lock = locks.get(key);
    if (lock === undefined) {
      const ttl = TTL_MS;
      lock = createLock({ adapter, key, ttl, retryAttempts: 0, performance });
      locks.set(key, lock);
    }
    const handle = await lock.acquire();
    if (during) await during();
    sure(await lock.release(handle));
  };
}

async function redlock5(client: Ioredis): Promise<Subject["hold"]> {
  const { default: Redlock } = await load<Redlock5Package>("redlock");
  const redlock = new Redlock([client], {
    retryCount: 0,
    automaticExtensionThreshold: 0,
  });
  return async (key, during) => {
    const lock = await redlock.acquire([key], TTL_MS);
    if (during) await during();
    // Rejects where the server says that it was not ours.
    await lock.release();
  };
}

async function redisKit(client: NodeRedis): Promise<Subject["hold"]> {
  const { Redlock } = await load<RedisKitPackage>("@redis-kit/lock");
  const redlock = new Redlock([client], { maxRetryAttempts: 0 });
  return async (key, during) => {
    const lock = await redlock.acquire(key, TTL_MS);
    if (lock === null) throw new Error("The lock is not held");
    if (during) await during();
    sure(await lock.release());
  };
}
