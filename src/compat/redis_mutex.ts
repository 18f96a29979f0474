/**
 * `RedisMutex`, with the names, units and results of
 * `@trellisorg/distributed-lock`, over the locks of this library.
 *
 * `lockTimeout` and all other durations are in **milliseconds** here.
 *
 * @example
 * ```ts
 * import { RedisMutex } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const mutex = new RedisMutex({ client: memory(), lockPrefix: "redis" });
 * const { unlock, extend } = await mutex.lock("my-resource");
 * await extend();
 * await unlock();
 *
 * await mutex.withLock(["a", "b"], async (signal) => {
 *   signal.throwIfAborted();
 * });
 * ```
 *
 * @module
 */

import { isTarget, type LockTarget } from "../connect.ts";
import {
  LockError,
  LockLostError,
  LockNotAcquiredError,
} from "../core/errors.ts";
import {
  checkBoolean,
  checkNumber,
  checkOptions,
  kindOf,
  type LockOptions as CoreOptions,
  outOfRange,
  wrongType,
} from "../core/options.ts";
import { inspectLock } from "../inspect.ts";
import {
  acquireLock,
  type DistributedLock as Held,
  withLock,
} from "../lock.ts";

export {
  LockBackendError,
  LockError,
  type LockErrorCode,
  LockLostError,
  LockNotAcquiredError,
  type LossReason,
} from "../core/errors.ts";
export type { LockTarget } from "../connect.ts";

/**
 * How patient an acquisition is, in the terms of promise-retry: for as long as
 * its pauses would last all together.
 *
 * Nobody polls here, whatever is said: who waits stands in line, and is called.
 */
export interface RetryOptions {
  /** How often it would be tried again; 0 fails at once. Default: 10. */
  retries?: number | undefined;
  /** By what each pause is longer than the one before. Default: 2. */
  factor?: number | undefined;
  /** Milliseconds of the first pause. Default: 1000. */
  minTimeout?: number | undefined;
  /** Milliseconds that no pause is longer than. Default: `Infinity`. */
  maxTimeout?: number | undefined;
  /** Whether pauses are longer by a random factor of 1 to 2. Default: `false`. */
  randomize?: boolean | undefined;
  /** Whether to wait without end. Default: `false`. */
  forever?: boolean | undefined;
  /** Milliseconds that all of it lasts at most. Default: `Infinity`. */
  maxRetryTime?: number | undefined;
  /** Accepted, and of no effect: there is no timer of a retry to unref. */
  unref?: boolean | undefined;
}

/** What one `lock()` may have otherwise than the mutex. */
export interface LockOptions {
  /** In place of all of the mutex's. */
  retryOptions?: RetryOptions | undefined;
  /** Milliseconds after which the lock expires. */
  lockTimeout?: number | undefined;
}

/** What one `withLock()` may have otherwise than the mutex. */
export interface WithLockOptions extends LockOptions {
  /** See {@linkcode RedisMutexLockOptions.automaticExtensionThreshold}. */
  automaticExtensionThreshold?: number | undefined;
}

/**
 * Frees what was locked. It never frees the lock of somebody else, and the
 * second time does nothing.
 */
export type UnlockFn = () => Promise<void>;

/** A held lock, on all of the resources that were asked for. */
export interface LockReturnValue {
  /** Frees it: see {@linkcode UnlockFn}. */
  unlock: UnlockFn;
  /**
   * Makes it last `lockTimeout` from now. One that has expired is taken again,
   * if nobody has it.
   *
   * @returns The same lock with its new `expiration`; any of them unlocks it.
   * @throws {LockedError} It had expired, and somebody else has it.
   * @throws {LockError} It was unlocked, or the server failed.
   */
  extend: () => Promise<LockReturnValue>;
  /**
   * Until when it is sure to be held: milliseconds of `Date.now()`, a little
   * less than the server's time. After waiting in line it can be sooner at
   * first, as a lock that was handed over is confirmed a moment later.
   */
  expiration: number;
}

/**
 * What runs while a lock is held. Its signal aborts once that can no longer be
 * known, because others may be inside then.
 */
export type LockedFunction<R> = (signal: AbortSignal) => R | Promise<R>;

/** A class like ioredis's `Redis`. */
export type RedisClass = new (...args: never[]) => LockTarget;

/** What a {@linkcode RedisMutex} is made of. */
export interface RedisMutexLockOptions {
  /**
   * Where the locks live: what {@linkcode acquireLock} takes, which is never
   * closed; or the URL or options of a connection of the mutex's own, opened
   * by ioredis at the first need. See {@linkcode RedisMutex.close}.
   */
  client: LockTarget | string | URL | object;
  /** Stands before `:lock-<resource>`. Default: `@trellisorg/distributed-lock`. */
  lockPrefix?: string | undefined;
  /** Milliseconds after which a lock expires by itself. Default: 10,000. */
  lockTimeout?: number | undefined;
  /** How patient `lock()` is. Default: 17 minutes, see {@linkcode RetryOptions}. */
  retryOptions?: RetryOptions | undefined;
  /**
   * How many milliseconds before its end `withLock()` renews a lock at the
   * latest. It does so when a third of the time has passed anyway. Default: 500.
   */
  automaticExtensionThreshold?: number | undefined;
  /**
   * Whether the order of arrival is kept strictly, also between those of one
   * process and those of others. Without, it is kept too, but a process may
   * serve some of its own at one go. Default: `false`.
   */
  fifo?: boolean | undefined;
  /**
   * What to open a connection with, where `client` is a URL or options.
   * Default: the `Redis` of the package `ioredis`, which has to be installed.
   */
  Redis?: RedisClass | undefined;
}

/**
 * Taken: somebody else has the lock. Its name is `LOCKED`, or `PARTIAL_LOCK`
 * where `checkLock()` found only some of several resources taken.
 *
 * @example
 * ```ts
 * import { LockError, RedisMutex } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const mutex = new RedisMutex({ client: memory() });
 * await mutex.lock("a");
 * const error = await mutex.checkLock(["a", "b"]).catch((error) => error);
 * if (!(error instanceof LockError)) throw error;
 * if (error.name !== "PARTIAL_LOCK") throw error;
 * ```
 */
export class LockedError extends LockNotAcquiredError {
  /** Whether all was taken, or only some of it. */
  override readonly name: "LOCKED" | "PARTIAL_LOCK";

  /** Of `resources` some are taken, or, as far as is known, all. */
  constructor(
    name: "LOCKED" | "PARTIAL_LOCK",
    resources: readonly string[],
    key: string,
    retryAfterMs?: number,
    place?: number,
  ) {
    const message =
      `One of ${resources} is currently acquired by another process.`;
    super(key, message, retryAfterMs, place);
    this.name = name;
  }
}

/**
 * What locks of any kind can do: what a class of your own extends, and the type
 * to ask for where any will do.
 *
 * It is not the `DistributedLock` of `@dreamer/utils/lock`, which is one lock.
 *
 * @example A function that takes any kind of lock
 * ```ts
 * import {
 *   type DistributedLock,
 *   RedisMutex,
 * } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const report = (lock: DistributedLock) => lock.withLock("report", () => 7);
 * if (await report(new RedisMutex({ client: memory() })) !== 7) throw new Error();
 * ```
 */
export abstract class DistributedLock {
  /** Takes the lock on all of the resources, or none. */
  abstract lock(
    resources: string | string[],
    options?: LockOptions,
  ): Promise<LockReturnValue>;

  /** Runs `fn` while holding the lock, which is renewed until it is done. */
  abstract withLock<R>(
    name: string | string[],
    fn: LockedFunction<R>,
    options?: WithLockOptions,
  ): Promise<R>;

  /** Resolves if none of the resources is locked. */
  abstract checkLock(resources: string | string[]): Promise<void>;
}

/** What we call of a connection of our own. */
interface Connection {
  on(event: "error", listener: () => void): unknown;
  disconnect(): void;
}

/** The one package that is ever loaded, and only by who gives no client. */
const IOREDIS: string = "ioredis";

/** {@linkcode RedisMutexLockOptions} of one call, checked and complete. */
interface Wish {
  readonly resources: readonly string[];
  readonly keys: readonly string[];
  readonly options: CoreOptions & { throwOnFail?: true };
}

/**
 * Locks on named resources of a Redis server.
 *
 * @example Waiting half a second at most, and asking first
 * ```ts
 * import { RedisMutex } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const mutex = new RedisMutex({
 *   client: memory(), // or your client, or { host: "localhost", port: 6379 }
 *   lockTimeout: 5_000,
 *   retryOptions: { retries: 1, minTimeout: 500 },
 *   fifo: true,
 * });
 * await mutex.checkLock("report");
 * const { unlock } = await mutex.lock(["report", "archive"]);
 * await unlock();
 * ```
 */
export class RedisMutex extends DistributedLock implements AsyncDisposable {
  /** The client that was handed in, or what to open our own by. */
  readonly #client: LockTarget | undefined;
  readonly #from: string | object;
  readonly #Redis: RedisClass | undefined;
  readonly #lockPrefix: string;
  readonly #lockTimeout: number;
  readonly #waitMs: () => number;
  readonly #localTurns: number | undefined;
  #connection: Promise<LockTarget & Connection> | undefined;
  #isClosed = false;

  /**
   * A mutex; nothing is opened or sent yet.
   *
   * @throws {TypeError | RangeError} An option is bad.
   */
  constructor(options: RedisMutexLockOptions) {
    super();
    const action = "make a mutex";
    checkOptions(action, options);
    const { client, Redis, fifo } = options;
    const { lockPrefix = "@trellisorg/distributed-lock" } = options;
    const { lockTimeout = 10_000, retryOptions } = options;
    this.#client = isTarget(client) ? client : undefined;
    this.#from = this.#client ?? readConnection(action, client);
    if (Redis !== undefined && typeof Redis !== "function") {
      wrongType(action, "Redis must be a class", Redis, kindOf(Redis));
    }
    this.#Redis = Redis;
    if (typeof lockPrefix !== "string") {
      wrongType(action, "lockPrefix must be a string", lockPrefix);
    }
    this.#lockPrefix = lockPrefix;
    this.#lockTimeout = readTimeout(action, lockTimeout);
    this.#waitMs = readPatience(action, retryOptions);
    readThreshold(action, options);
    this.#localTurns = readFlag(action, { fifo }) ? 0 : undefined;
  }

  /**
   * Takes the lock on all of the resources, or none, once nobody has any of
   * them: for as long as `retryOptions` are patient, and in the order of
   * arrival.
   *
   * @param resources What to lock: one name or several.
   * @param options What to do otherwise than the mutex does.
   * @throws {LockedError} Somebody else had it all the while.
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
   */
  override async lock(
    resources: string | string[],
    options: LockOptions = {},
  ): Promise<LockReturnValue> {
    const wish = this.#wish("lock", resources, options);
    const target = await this.#target("lock");
    try {
      const lock = await acquireLock(target, wish.keys, wish.options);
      return valueOf(new Hold(lock, wish));
    } catch (error) {
      throw asLocked(error, wish);
    }
  }

  /**
   * Runs `fn` while holding the lock on all of the resources. It is renewed
   * until `fn` is done, and then released.
   *
   * @param name What to lock: one name or several.
   * @param fn What to do; its argument is a signal that aborts if the lock is
   * lost.
   * @param options What to do otherwise than the mutex does.
   * @returns What `fn` returned.
   * @throws What `fn` threw.
   * @throws {LockedError} Somebody else had it all the while; `fn` was not
   * called.
   * @throws {LockBackendError} The server could not be asked; `fn` was not
   * called.
   * @throws {LockLostError} `fn` succeeded, but the lock was lost on the way.
   * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
   */
  override async withLock<R>(
    name: string | string[],
    fn: LockedFunction<R>,
    options: WithLockOptions = {},
  ): Promise<R> {
    const action = "run with a lock";
    const wish = this.#wish(action, name, options);
    readThreshold(action, options);
    if (typeof fn !== "function") {
      wrongType(action, "fn must be a function", fn, kindOf(fn));
    }
    const target = await this.#target(action);
    let isInside = false;
    try {
      return await withLock(target, wish.keys, ({ signal }) => {
        isInside = true;
        return fn(signal);
      }, wish.options);
    } catch (error) {
      // What fn throws may be the refusal of another lock.
      throw isInside ? error : asLocked(error, wish);
    }
  }

  /**
   * Resolves if none of the resources is locked, by anybody. It is no promise:
   * the next moment may be different.
   *
   * @param resources What to look at: one name or several.
   * @throws {LockedError} All are (`LOCKED`), or some of them (`PARTIAL_LOCK`).
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
   */
  override async checkLock(resources: string | string[]): Promise<void> {
    const action = "check a lock";
    const wish = this.#wish(action, resources, {});
    const target = await this.#target(action);
    const all = await Promise.all(
      wish.keys.map((key) => inspectLock(target, key)),
    );
    const held = all.filter((info) => info.held);
    if (held.length === 0) return;
    throw new LockedError(
      held.length === all.length ? "LOCKED" : "PARTIAL_LOCK",
      wish.resources,
      held[0].key,
      held[0].remainingMs,
    );
  }

  /**
   * Closes the connection, if it is the mutex's own; then nothing can be locked
   * any more. A client that was handed in stays as it is, and so does the mutex.
   * What is still held expires by itself.
   */
  async close(): Promise<void> {
    this.#isClosed = true;
    const connection = this.#connection;
    this.#connection = undefined;
    try {
      (await connection)?.disconnect();
    } catch {
      // It was never opened, which its users were told.
    }
  }

  /** As {@linkcode close}, at the end of a block with `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #wish(
    action: string,
    names: string | string[],
    options: LockOptions,
  ): Wish {
    const resources = readResources(action, names);
    checkOptions(action, options);
    const { lockTimeout = this.#lockTimeout, retryOptions } = options;
    const waitMs = retryOptions === undefined
      ? this.#waitMs
      : readPatience(action, retryOptions);
    return {
      resources,
      keys: resources.map((name) => `${this.#lockPrefix}:lock-${name}`),
      options: {
        ttl: readTimeout(action, lockTimeout) / 1000,
        waitMs: waitMs(),
        localTurns: this.#localTurns,
      },
    };
  }

  async #target(action: string): Promise<LockTarget> {
    if (this.#client !== undefined) return this.#client;
    if (this.#isClosed) {
      throw new Error(`Cannot ${action} as the mutex was closed`);
    }
    return await (this.#connection ??= open(this.#from, this.#Redis));
  }
}

/**
 * A mutex of these options, in the form that the NestJS module asks for.
 *
 * @param options As for {@linkcode RedisMutex}.
 * @throws {TypeError | RangeError} An option is bad.
 *
 * @example
 * ```ts
 * import { redisMutexLockAdapter } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const mutex = redisMutexLockAdapter({ client: memory() });
 * await mutex.checkLock("my-resource");
 * ```
 */
export function redisMutexLockAdapter(
  options: RedisMutexLockOptions,
): RedisMutex {
  return new RedisMutex(options);
}

/** What the values of one lock have in common, however often it is extended. */
class Hold {
  readonly lock: Held;
  readonly wish: Wish;
  isUnlocked = false;
  #extending: Promise<void> | undefined;

  constructor(lock: Held, wish: Wish) {
    this.lock = lock;
    this.wish = wish;
  }

  extend(): Promise<void> {
    return this.#extending ??= this.#extend().finally(() => {
      this.#extending = undefined;
    });
  }

  async #extend(): Promise<void> {
    const { lock } = this;
    if (this.isUnlocked) {
      const message = `The lock "${lock.key}" is not held: it was unlocked`;
      throw new LockError("LOCK_NOT_HELD", lock.key, message);
    }
    try {
      await lock.extend();
    } catch (error) {
      if (!(error instanceof LockLostError)) throw error;
      if (await lock.acquire()) return;
      throw new LockedError("LOCKED", this.wish.resources, lock.key);
    }
  }

  async unlock(): Promise<void> {
    this.isUnlocked = true;
    // It may be about to be taken again.
    await this.#extending?.catch(() => {});
    await this.lock.release();
  }
}

/** The value for a lock as it stands now. */
function valueOf(hold: Hold): LockReturnValue {
  return {
    unlock: () => hold.unlock(),
    extend: async () => {
      await hold.extend();
      return valueOf(hold);
    },
    expiration: Math.floor(Date.now() + hold.lock.remainingMs),
  };
}

/** A refusal by its old name; any other error as it is. */
function asLocked(error: unknown, { resources }: Wish): unknown {
  if (!(error instanceof LockNotAcquiredError)) return error;
  const { key, retryAfterMs, place } = error;
  return new LockedError("LOCKED", resources, key, retryAfterMs, place);
}

/** Opens a connection of our own. */
async function open(
  client: string | object,
  Redis?: RedisClass,
): Promise<LockTarget & Connection> {
  const Class = (Redis ?? await loadRedis()) as unknown as new (
    from: string | object,
  ) => LockTarget & Connection;
  const connection = new Class(client);
  // It would print them; who asks for a lock is told by a rejection.
  connection.on("error", () => {});
  return connection;
}

async function loadRedis(): Promise<RedisClass> {
  let cause: unknown;
  try {
    // By a name that no bundler and no package manager follows: whoever hands
    // in a client needs no ioredis.
    const { Redis } = await import(IOREDIS);
    if (typeof Redis === "function") return Redis;
  } catch (error) {
    cause = error;
  }
  throw new Error(
    'Cannot connect as the package "ioredis" (5 or later) could not be ' +
      "loaded: install it, or give its class as the option Redis, or a client",
    { cause },
  );
}

/** By what a connection is opened. */
function readConnection(action: string, from: unknown): string | object {
  if (from instanceof URL) return from.href;
  if (typeof from === "string" && from !== "") return from;
  // A client that we can't use would pass for options, and we would talk to a
  // server at localhost that nobody spoke of.
  const isClient = (value: object) =>
    ["get", "set", "call", "send", "sendCommand", "customCommand"].some(
      (name) => typeof (value as Record<string, unknown>)[name] === "function",
    );
  if (
    typeof from === "object" && from !== null && !Array.isArray(from) &&
    !isClient(from)
  ) {
    return from;
  }
  return wrongType(
    action,
    "client must be one that acquireLock() takes, or the URL or the options " +
      "of a connection",
    from,
    kindOf(from),
  );
}

function readResources(
  action: string,
  names: string | string[],
): readonly string[] {
  const resources = Array.isArray(names) ? [...names] : [names];
  if (resources.length === 0) {
    outOfRange(action, "there must be at least one resource", names);
  }
  for (const one of resources) {
    if (typeof one !== "string") {
      wrongType(action, "a resource must be a string", one, kindOf(one));
    }
    if (one === "") outOfRange(action, "a resource must not be empty", one);
  }
  return resources;
}

function readTimeout(action: string, lockTimeout: number): number {
  checkNumber(action, "lockTimeout", lockTimeout, ">= 1");
  if (lockTimeout === Infinity) {
    outOfRange(action, "lockTimeout must be finite", lockTimeout);
  }
  return lockTimeout;
}

/** Only checked: locks are renewed sooner than this could ask for. */
function readThreshold(action: string, options: WithLockOptions): void {
  const { automaticExtensionThreshold: ms } = options;
  checkNumber(action, "automaticExtensionThreshold", ms, ">= 0");
}

/** How long the pauses of promise-retry would be all together. */
function readPatience(
  action: string,
  options: RetryOptions = {},
): () => number {
  if (typeof options !== "object" || options === null) {
    const shown = kindOf(options);
    wrongType(action, "retryOptions must be an object", options, shown);
  }
  const { retries = 10, factor = 2, minTimeout = 1000 } = options;
  const { maxTimeout = Infinity, maxRetryTime = Infinity } = options;
  const { randomize, forever, unref } = options;
  checkNumber(action, "retries", retries, ">= 0");
  checkNumber(action, "factor", factor, ">= 0");
  checkNumber(action, "minTimeout", minTimeout, ">= 0");
  checkNumber(action, "maxTimeout", maxTimeout, ">= 0");
  checkNumber(action, "maxRetryTime", maxRetryTime, ">= 0");
  readFlag(action, { unref });
  if (minTimeout > maxTimeout) {
    const rule = `minTimeout must be at most maxTimeout, ${maxTimeout}`;
    outOfRange(action, rule, minTimeout);
  }
  const isRandom = readFlag(action, { randomize });
  if (readFlag(action, { forever }) || retries === Infinity) {
    return () => maxRetryTime;
  }
  return () => {
    const stretch = isRandom ? 1 + Math.random() : 1;
    let sum = 0;
    for (let i = 0; i < retries && sum < maxRetryTime; i++) {
      const pause = Math.min(
        Math.round(stretch * Math.max(minTimeout, 1) * factor ** i),
        maxTimeout,
      );
      sum += pause;
      const areAlike = factor === 1 || pause === 0 ||
        (pause === maxTimeout && factor > 1);
      const left = retries - i - 1;
      if (areAlike && left > 0) {
        sum += pause * left;
        break;
      }
    }
    return Math.min(sum, maxRetryTime);
  };
}

/** The one option in `flags`: whether it is on. */
function readFlag(action: string, flags: Record<string, unknown>): boolean {
  const [[name, value]] = Object.entries(flags);
  if (value !== undefined) checkBoolean(action, name, value);
  return value === true;
}
