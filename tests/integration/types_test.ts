/**
 * What may be handed in without a cast, and what comes out: the compiler is the
 * test here, and `deno check` its runner. None of the clients ever connects.
 */
import { assertInstanceOf, assertThrows } from "@std/assert";
import { Redis as Upstash } from "@upstash/redis";
import { GlideClient, GlideClusterClient } from "@valkey/valkey-glide";
import { Cluster as Ioredis6Cluster, Redis as Ioredis6 } from "ioredis";
import { Cluster as Ioredis5Cluster, Redis as Ioredis5 } from "ioredis5";
import { Buffer } from "node:buffer";
import {
  createClient as createRedis6,
  createClientPool as createRedis6Pool,
  createCluster as createRedis6Cluster,
  type RedisClientType as Redis6,
  RESP_TYPES,
} from "redis";
import {
  createClient as createRedis4,
  createCluster as createRedis4Cluster,
  type RedisClientType as Redis4,
} from "redis4";
import {
  createClient as createRedis5,
  createClientPool as createRedis5Pool,
  createCluster as createRedis5Cluster,
  type RedisClientType as Redis5,
} from "redis5";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  fencedSet,
  type LockOptions,
  type LockTarget,
  redis,
  redlock,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { Redlock } from "@dreamer/utils/lock/redlock";
import { RedisMutex } from "@dreamer/utils/lock/redis-mutex";
import {
  Debounce,
  type DebounceConfig,
  Lock as UpstashLock,
  type LockAcquireConfig,
  type LockConfig,
  type LockCreateConfig,
  type LockStatus,
  type RetryConfig,
} from "@dreamer/utils/lock/upstash";
import { test } from "../support/test.ts";

const lazy = { lazyConnect: true };
const nodes = { rootNodes: [{ url: "redis://127.0.0.1:1" }] };

/** One of each kind. That this compiles is the better part of the test. */
const targets: { [kind: string]: () => LockTarget } = {
  "ioredis 6": () => new Ioredis6(lazy),
  "ioredis 6, a cluster": () => new Ioredis6Cluster([], lazy),
  "ioredis 6, either": (): Ioredis6 | Ioredis6Cluster => new Ioredis6(lazy),
  "ioredis 5": () => new Ioredis5(lazy),
  "ioredis 5, a cluster": () => new Ioredis5Cluster([], lazy),
  "node-redis 6": () => createRedis6(),
  "node-redis 6, by the type that people write": () => createRedis6() as Redis6,
  "node-redis 6, with RESP2": () => createRedis6({ RESP: 2 }),
  "node-redis 6, with bytes for text": () =>
    createRedis6().withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }),
  "node-redis 6, a pool": () => createRedis6Pool(),
  "node-redis 6, a cluster": () => createRedis6Cluster(nodes),
  "node-redis 5": () => createRedis5(),
  "node-redis 5, by the type that people write": () => createRedis5() as Redis5,
  "node-redis 5, a pool": () => createRedis5Pool(),
  "node-redis 5, a cluster": () => createRedis5Cluster(nodes),
  "node-redis 4": () => createRedis4(),
  "node-redis 4, by the type that people write": () => createRedis4() as Redis4,
  "node-redis 4, a cluster": () => createRedis4Cluster(nodes),
  "@upstash/redis": () => new Upstash({ url: "http://[::1]", token: "t" }),
  // Made by an asynchronous function, which connects.
  "Valkey GLIDE": () => Object.create(GlideClient.prototype) as GlideClient,
  "Valkey GLIDE, a cluster": () =>
    Object.create(GlideClusterClient.prototype) as GlideClusterClient,
  "a function": () => {
    const redis = new Ioredis6(lazy);
    return ([name, ...args]: string[]) => redis.call(name, ...args);
  },
  "a bare object around ioredis": () => {
    const redis = new Ioredis6(lazy);
    return {
      set: (key: string, value: string, ...args: (string | number)[]) =>
        redis.call("SET", key, value, ...args),
      get: (key: string) => redis.get(key),
      del: (key: string) => redis.del(key),
      eval: (lua: string, count: number, ...args: string[]) =>
        redis.eval(lua, count, ...args),
    };
  },
  "the double of a unit test": () => ({
    set: () => Promise.resolve("OK"),
    get: () => Promise.resolve(null),
    del: () => Promise.resolve(1),
    eval: () => Promise.resolve(1),
  }),
  "memory()": () => memory(),
};

for (const [kind, make] of Object.entries(targets)) {
  test(`${kind}: fits without a cast`, () => {
    const lock = new DistributedLock(make(), "types:k", "owner", 10);
    assertInstanceOf(lock, DistributedLock);
  });
}

test("what is no client does not compile", () => {
  const redis = new Ioredis6(lazy);
  const lockOn = (on: LockTarget) =>
    new DistributedLock(on, "types:k", "owner", 10);
  // @ts-expect-error A URL.
  assertThrows(() => lockOn("redis://127.0.0.1"), TypeError);
  // @ts-expect-error What a client is made of.
  assertThrows(() => lockOn({ url: "redis://127.0.0.1" }), TypeError);
  // @ts-expect-error Not awaited.
  assertThrows(() => lockOn(Promise.resolve(redis)), TypeError);
  // @ts-expect-error Not there.
  assertThrows(() => lockOn(undefined), TypeError);
  // @ts-expect-error It has set and get, but they lock nothing.
  assertThrows(() => lockOn(new Map<string, string>()), TypeError);
  // @ts-expect-error Commands of a pipeline are not sent yet.
  const onPipeline = () => lockOn(redis.pipeline());
  // @ts-expect-error As above.
  const onMulti = () => lockOn(createRedis6().multi());
  void [onPipeline, onMulti];
});

/** Whether two types are the same, and not only alike. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends
  (<T>() => T extends B ? 1 : 2) ? true : false;

/** Does not compile unless its type argument is `true`. */
const sure = <_ extends true>() => {};

/** Never called: its return types are what is looked at. */
function _results(on: LockTarget, options: LockOptions, is: boolean) {
  const fn = () => 7;
  return {
    plain: acquireLock(on, "k"),
    withTtl: acquireLock(on, "k", { ttl: 5 }),
    orError: acquireLock(on, "k", { throwOnFail: true }),
    orNull: acquireLock(on, "k", { throwOnFail: false }),
    either: acquireLock(on, "k", { throwOnFail: is }),
    unknown: acquireLock(on, "k", options),
    run: withLock(on, "k", fn),
    runLater: withLock(on, "k", () => Promise.resolve("done")),
    runOrError: withLock(on, "k", fn, { ttl: 5, throwOnFail: true }),
    runOrNull: withLock(on, "k", fn, { throwOnFail: false }),
    runEither: withLock(on, "k", fn, { throwOnFail: is }),
    runUnknown: withLock(on, "k", fn, options),
    runNothing: withLock(on, "k", () => {}),
  };
}
type Results = ReturnType<typeof _results>;
type Lock = DistributedLock;

test("the types say where null may come out", () => {
  sure<Same<Results["plain"], Promise<Lock>>>();
  sure<Same<Results["withTtl"], Promise<Lock>>>();
  sure<Same<Results["orError"], Promise<Lock>>>();
  sure<Same<Results["orNull"], Promise<Lock | null>>>();
  sure<Same<Results["either"], Promise<Lock | null>>>();
  sure<Same<Results["unknown"], Promise<Lock | null>>>();
  sure<Same<Results["run"], Promise<number>>>();
  sure<Same<Results["runLater"], Promise<string>>>();
  sure<Same<Results["runOrError"], Promise<number>>>();
  sure<Same<Results["runOrNull"], Promise<number | null>>>();
  sure<Same<Results["runEither"], Promise<number | null>>>();
  sure<Same<Results["runUnknown"], Promise<number | null>>>();
  sure<Same<Results["runNothing"], Promise<void>>>();
  // @ts-expect-error So that the lines above would not compile for nothing.
  sure<Same<Results["orNull"], Promise<Lock>>>();
});

/** Never called: all types of `@upstash/lock` have a name here, too. */
function _ofUpstash(config: LockConfig, create: LockCreateConfig) {
  const retry: RetryConfig = config.retry;
  const acquire: LockAcquireConfig = { lease: config.lease, retry };
  const lock = new UpstashLock({ ...create, id: config.id });
  const status: Promise<LockStatus> = lock.getStatus();
  return [acquire, status, {} as DebounceConfig];
}

/** Never called: each line must be refused by the compiler. */
function _misspelt(on: LockTarget) {
  // @ts-expect-error A name that is none.
  void acquireLock(on, "k", { tll: 5 });
  // @ts-expect-error Not a number.
  void acquireLock(on, "k", { ttl: "5" });
  // @ts-expect-error The options and fn in the wrong order.
  void withLock(on, "k", { ttl: 5 }, () => {});
  // @ts-expect-error No key.
  void acquireLock(on);
}

/**
 * Never called: with `exactOptionalPropertyTypes`, as here, what may be left
 * out may also be given as undefined, by whoever passes on what came to him.
 */
function _leftOut(on: LockTarget, it: undefined) {
  const patience = { retries: it, factor: it, minTimeout: it, maxTimeout: it };
  const mutex = { lockTimeout: it, automaticExtensionThreshold: it };
  const backend: Backend = {
    ...memory({ clock: it, onEvent: it }),
    ...{ line: it, notices: it, bursts: it, clock: it, onEvent: it },
    ...{ tryAcquireAll: it, confirm: it, watch: it, isClosed: it, scan: it },
  };
  const options: LockOptions = {
    ...{ ttl: it, signal: it, throwOnFail: it, errorMessage: it, label: it },
    ...{ waitMs: it, autoExtend: it, maxHoldMs: it, fencing: it },
    ...{ localTurns: it, replicas: it },
  };
  return [
    acquireLock(on, "k", options),
    // It is no reason for null.
    withLock(on, "k", () => 7, { throwOnFail: it }).then((n) => n + 1),
    redis(new Ioredis6(lazy), { onEvent: it }),
    redlock([backend], { onEvent: it, serverTimeoutMs: it }),
    fencedSet(on, "k", "v", 1, { ttl: it }),
    new UpstashLock({ id: "k", redis: backend, lease: it, retry: it })
      .acquire({ lease: it, retry: { attempts: it, delay: it }, uuid: it }),
    new Debounce({ id: "k", redis: backend, wait: it, callback: () => {} }),
    new Redlock([backend], {
      ...{ driftFactor: it, retryDelayMs: it, retryJitterMs: it },
      ...{ maxRetryAttempts: it, automaticExtensionThreshold: it },
    }).withLock("k", 5, () => {}, { extensionThresholdMs: it }),
    new RedisMutex({
      ...{ client: "", lockPrefix: it, retryOptions: it, fifo: it, Redis: it },
      ...mutex,
    }).withLock("k", () => {}, { ...mutex, retryOptions: patience }),
  ];
}
