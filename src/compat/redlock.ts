/**
 * The API of `@redis-kit/lock`, over this library's locks: {@linkcode Redlock}
 * and its {@linkcode RedlockInstance}. Durations are in milliseconds.
 *
 * {@linkcode redlock}, the quorum that it stands on, is here as well.
 *
 * @example
 * ```ts
 * import { Redlock } from "@dreamer/utils/lock/redlock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * // … or your clients, one for each server
 * const redlock = new Redlock([memory(), memory(), memory()]);
 * await redlock.withLock("user:123:profile", 30_000, async () => {
 *   // … nobody else is here …
 * });
 * ```
 *
 * @module
 */

import { connect, type LockTarget, quorumOf } from "../connect.ts";
import type { Backend } from "../core/backend.ts";
import { LockBackendError, LockError, LockLostError } from "../core/errors.ts";
import { kindOf } from "../core/options.ts";
import { type DistributedLock, keepExtending, runWith, take } from "../lock.ts";

export { type LockTarget, type QuorumOptions, redlock } from "../connect.ts";

/**
 * How a {@linkcode Redlock} is set up. Not the options of the quorum that
 * `@dreamer/utils/lock` has by this name: those are {@linkcode QuorumOptions}.
 */
export interface RedlockOptions {
  /**
   * How differently clocks may run, as a part of the ttl, from 0 to 0.1: a lock
   * counts as lost by so much, and 2 ms, before its servers drop it.
   * Default: 0.01.
   */
  driftFactor?: number | undefined;
  /** Milliseconds of patience for each retry … Default: 200. */
  retryDelayMs?: number | undefined;
  /** … and so many more. Default: 100. */
  retryJitterMs?: number | undefined;
  /** How many retries, after the first try. 0 does not wait. Default: 3. */
  maxRetryAttempts?: number | undefined;
  /**
   * Checked, and without effect: a lock is extended at a third of its ttl, or
   * of what is left of it. Default: 1,000.
   */
  automaticExtensionThreshold?: number | undefined;
}

/** How {@linkcode Redlock.withLock} is to keep its lock. */
export interface WithLockOptions {
  /** As {@linkcode RedlockOptions.automaticExtensionThreshold}. */
  extensionThresholdMs?: number | undefined;
}

const NAME = "RedisLockError";

/**
 * A bad argument; nothing was sent.
 *
 * @example
 * ```ts
 * import { InvalidParameterError, Redlock } from "@dreamer/utils/lock/redlock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const error = await new Redlock([memory()]).acquire("report", 1.5)
 *   .catch((error) => error);
 * if (!(error instanceof InvalidParameterError)) throw error;
 * if (error.parameter !== "ttlMs") throw error;
 * ```
 */
export class InvalidParameterError extends TypeError {
  static {
    this.prototype.name = NAME;
  }
  /** Which argument. */
  readonly parameter: string;
  /** What it was. */
  readonly value: unknown;
  /** What it should have been. */
  readonly expectedType: string;

  /** `parameter` was `value`, which is no `expectedType`. */
  constructor(parameter: string, value: unknown, expectedType: string) {
    // A URL in place of clients has a password in it; not every object is a text.
    const shown = /^(redisClients|options)$/.test(parameter) ||
        typeof value === "object"
      ? kindOf(value)
      : String(value);
    super(
      `Invalid ${parameter}: expected ${expectedType}, got ${typeof value} (${shown})`,
    );
    this.parameter = parameter;
    this.value = value;
    this.expectedType = expectedType;
  }
}

/**
 * The servers could not be asked, or failed: whether the lock is taken is not
 * known. The `cause` tells what happened, of a quorum for each server.
 *
 * @example
 * ```ts
 * import { RedisConnectionError, Redlock } from "@dreamer/utils/lock/redlock";
 *
 * const down = {
 *   set: () => Promise.reject(new Error("READONLY replica")),
 *   get: () => Promise.resolve(null),
 *   del: () => Promise.resolve(0),
 *   eval: () => Promise.resolve(0),
 * };
 * const error = await new Redlock([down]).acquire("report", 1_000)
 *   .catch((error) => error);
 * if (!(error instanceof RedisConnectionError)) throw error;
 * ```
 */
export class RedisConnectionError extends LockBackendError {
  static {
    this.prototype.name = NAME;
  }

  /** `operation` failed because of `cause`. */
  constructor(operation: string, cause?: unknown) {
    const { message = "Unknown error" } = cause instanceof Error ? cause : {};
    const [key, reply] = cause instanceof LockBackendError
      ? [cause.key, cause.reply]
      : [""];
    const text = `Redis operation '${operation}' failed: ${message}`;
    super(key, text, cause, reply);
  }
}

/**
 * Locks on one server, or on a majority of several that know nothing of each
 * other. Of two both have to grant a lock: one alone does as well.
 *
 * @example Holding it by hand
 * ```ts
 * import { Redlock } from "@dreamer/utils/lock/redlock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const redlock = new Redlock([memory()], { maxRetryAttempts: 5 });
 * const lock = await redlock.acquire("payment:order:456", 10_000);
 * if (lock) {
 *   try {
 *     lock.startAutoExtension();
 *   } finally {
 *     await lock.release();
 *   }
 * }
 * ```
 */
export class Redlock {
  readonly #backend: Backend;
  readonly #waitMs: number;
  readonly #driftFactor: number;

  /**
   * Locks on `redisClients`: anything that `acquireLock` takes, each one server.
   *
   * @throws {InvalidParameterError} There are none, or an option is bad.
   * @throws {TypeError | RangeError} One is nothing that a lock can live on, or
   * comes twice.
   */
  constructor(
    redisClients: readonly LockTarget[],
    options: RedlockOptions = {},
  ) {
    if (!Array.isArray(redisClients) || redisClients.length === 0) {
      const expected = "non-empty array of Redis clients";
      throw new InvalidParameterError("redisClients", redisClients, expected);
    }
    checkObject("options", options);
    const { driftFactor = 0.01, automaticExtensionThreshold } = options;
    const { retryDelayMs = 200, retryJitterMs = 100, maxRetryAttempts = 3 } =
      options;
    if (!(isNotNegative(driftFactor) && driftFactor <= 0.1)) {
      const expected = "number between 0 and 0.1";
      throw new InvalidParameterError("driftFactor", driftFactor, expected);
    }
    const patience = { retryDelayMs, retryJitterMs, maxRetryAttempts };
    for (const [name, value] of Object.entries(patience)) {
      if (isNotNegative(value)) continue;
      throw new InvalidParameterError(name, value, "non-negative number");
    }
    checkThreshold("automaticExtensionThreshold", automaticExtensionThreshold);
    this.#driftFactor = driftFactor;
    const eachMs = retryDelayMs + retryJitterMs;
    // For ever means for ever, also where nothing is waited in between.
    this.#waitMs = maxRetryAttempts === Infinity
      ? Infinity
      : maxRetryAttempts === 0
      ? 0
      : maxRetryAttempts * eachMs;
    this.#backend = redisClients.length === 1
      ? connect(redisClients[0], "redisClients[0]")
      : quorumOf(redisClients, {}, 2, "redisClients");
  }

  /**
   * Acquires the lock on a key, or on all of several, or waits for it: for as
   * long as the retries and pauses would have taken at most.
   *
   * @returns The lock, or `null` if it is taken.
   * @throws {RedisConnectionError} The server, or a majority of them, could not
   * be asked.
   * @throws {InvalidParameterError} An argument is bad.
   */
  async acquire(
    keys: string | readonly string[],
    ttlMs: number,
  ): Promise<RedlockInstance | null> {
    checkKeys(keys);
    checkMs("ttlMs", ttlMs);
    const lock = await this.#take(keys, ttlMs, { throwOnFail: false });
    return lock && new RedlockInstance(lock);
  }

  /**
   * Runs `fn` while holding the lock on a key, or on all of several, and
   * releases it afterwards. It is extended for as long as `fn` takes.
   *
   * What `fn` returns or throws is what comes out, whatever becomes of the
   * release; should the lock have been lost on the way, that is an error.
   *
   * @throws {LockNotAcquiredError} It is taken, and `fn` was not called: `Failed
   * to acquire lock for resource: …`.
   * @throws {LockLostError} `fn` succeeded, but the lock was lost on the way.
   * @throws {RedisConnectionError} The server, or a majority of them, could not
   * be asked; `fn` was not called.
   * @throws {InvalidParameterError} An argument is bad.
   */
  async withLock<T>(
    keys: string | readonly string[],
    ttlMs: number,
    fn: () => T | Promise<T>,
    options: WithLockOptions = {},
  ): Promise<T> {
    if (typeof fn !== "function") {
      throw new InvalidParameterError("fn", fn, "function");
    }
    checkKeys(keys);
    checkMs("ttlMs", ttlMs);
    checkObject("options", options);
    checkThreshold("extensionThresholdMs", options.extensionThresholdMs);
    const name = typeof keys === "string" ? keys : `[${keys.join(", ")}]`;
    const errorMessage = `Failed to acquire lock for resource: ${name}`;
    const how = { errorMessage, autoExtend: true };
    const lock = await this.#take(keys, ttlMs, how);
    // Without arguments, as ever: some functions have optional ones.
    return await runWith(lock!, () => fn());
  }

  #take(
    keys: string | readonly string[],
    ttlMs: number,
    how: { throwOnFail?: boolean; errorMessage?: string; autoExtend?: boolean },
  ): Promise<DistributedLock | null> {
    const options = { ...how, ttl: ttlMs / 1000, waitMs: this.#waitMs };
    const manner = { driftFactor: this.#driftFactor, isUnhurried: true };
    return take(this.#backend, keys, options, false, manner)
      .catch((error) => {
        throw translated("acquire", error);
      });
  }
}

/**
 * A lock that {@linkcode Redlock.acquire} acquired.
 *
 * @example
 * ```ts
 * import { Redlock, RedlockInstance } from "@dreamer/utils/lock/redlock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = await new Redlock([memory()]).acquire(["b", "a"], 10_000);
 * if (!(lock instanceof RedlockInstance) || !lock.isValid) throw new Error();
 * if (lock.resourceKeys.join() !== "a,b") throw new Error();
 * lock.signal.addEventListener("abort", () => console.log("lost"));
 * if (!await lock.extend(20_000)) throw new Error("lost");
 * await lock.release();
 * ```
 */
export class RedlockInstance {
  readonly #lock: DistributedLock;
  #isReleased = false;
  #releasing: Promise<boolean> | undefined;
  /** Whether a release was begun, after which it is held no more. */
  #isLeft = false;
  /** When it ends by the wall clock, as of the last look. */
  #expiresAt: number;

  /** A held lock by this API. */
  constructor(lock: DistributedLock) {
    this.#lock = lock;
    this.#expiresAt = Date.now() + lock.remainingMs;
  }

  /** Whether it is neither released nor expired. */
  get isValid(): boolean {
    return !this.#isReleased && this.#lock.isAcquired();
  }

  /** Whether it was released. */
  get isReleased(): boolean {
    return this.#isReleased;
  }

  /** Whether it can't be known to be held any more; of a released one, whether
   * its time would be up by now. */
  get isExpired(): boolean {
    // In this order: one who has lost it ends at the moment of the look.
    return this.#look() <= Date.now();
  }

  /** Until when it is held for sure, if it is not extended. */
  get expirationTime(): Date {
    return new Date(this.#look());
  }

  #look(): number {
    const { remainingMs } = this.#lock;
    const now = Date.now();
    if (remainingMs > 0) this.#expiresAt = now + remainingMs;
    else if (!this.#isReleased) {
      this.#expiresAt = Math.min(this.#expiresAt, now);
    }
    return this.#expiresAt;
  }

  /** What is locked; of several the first, in order. */
  get resourceKey(): string {
    return this.#lock.key;
  }

  /** All that is locked, each once and sorted. */
  get resourceKeys(): string[] {
    return [...this.#lock.keys];
  }

  /**
   * Aborts with {@linkcode LockLostError} once the lock is lost, be it that an
   * extension in the background could not be had.
   */
  get signal(): AbortSignal {
    return this.#lock.signal;
  }

  /**
   * Frees the lock, and ends its extension.
   *
   * @returns `true` if it did, or if it was released before; `false` if it was
   * not ours to free any more, or could not be freed. Only in the last case it
   * is not {@linkcode isReleased}, and can be released again, or expires.
   */
  release(): Promise<boolean> {
    if (this.#isReleased) return Promise.resolve(true);
    return this.#releasing ??= this.#release();
  }

  async #release(): Promise<boolean> {
    this.#look();
    this.#isLeft = true;
    try {
      const isFreed = await this.#lock.release();
      this.#isReleased = true;
      return isFreed;
    } catch (error) {
      if (error instanceof LockBackendError) return false;
      throw error;
    } finally {
      this.#releasing = undefined;
    }
  }

  /**
   * Makes the lock last `newTtlMs` from now, which may be less than is left.
   *
   * @param newTtlMs Milliseconds; by default as many as it was acquired for.
   * @returns `true` if it did; `false` if it is not held any more.
   * @throws {LockError} It was released, or is being released: `Cannot extend a
   * released lock`.
   * @throws {RedisConnectionError} The server, or a majority of them, could not
   * be asked; it is held for as long as it was anyway.
   * @throws {InvalidParameterError} `newTtlMs` is bad.
   */
  async extend(newTtlMs?: number): Promise<boolean> {
    const what = "extend a released lock";
    this.#assertNotReleased(what);
    if (newTtlMs !== undefined) checkMs("newTtlMs", newTtlMs);
    if (this.#isLeft) return false;
    try {
      await this.#lock.extend(newTtlMs && newTtlMs / 1000);
      return true;
    } catch (error) {
      this.#assertNotReleased(what);
      if (error instanceof LockLostError) return false;
      throw translated("extend", error);
    }
  }

  /**
   * Extends the lock in the background from now on, by the ttl that it was
   * acquired for. Harmless the second time. Should that fail until the lock is
   * lost, {@linkcode signal} tells.
   *
   * @param thresholdMs Checked, and without effect: the lock is extended when
   * two thirds of its ttl are left, which is sooner than any threshold below.
   * Default: 1,000.
   * @throws {LockError} It was released, or is being released: `Cannot start
   * auto-extension on a released lock`; or a release failed.
   * @throws {LockLostError} It was lost.
   * @throws {InvalidParameterError} `thresholdMs` is bad.
   */
  startAutoExtension(thresholdMs: number = 1_000): void {
    this.#assertNotReleased("start auto-extension on a released lock");
    checkMs("thresholdMs", thresholdMs);
    // Clocks in doubt are no loss: the server is being asked.
    const isLost = !this.#lock.isAcquired() && this.#lock.signal.aborted;
    if (isLost || this.#isLeft) this.#lock.assertHeld();
    keepExtending(this.#lock, true);
  }

  /** Extends the lock no more in the background. */
  stopAutoExtension(): void {
    keepExtending(this.#lock, false);
  }

  #assertNotReleased(what: string): void {
    if (!this.#isReleased && this.#releasing === undefined) return;
    throw new LockError("LOCK_NOT_HELD", this.#lock.key, `Cannot ${what}`);
  }
}

/** A failure of the servers in the words of this API. */
function translated(operation: string, error: unknown): unknown {
  return error instanceof LockBackendError
    ? new RedisConnectionError(operation, error)
    : error;
}

function isNotNegative(value: unknown): boolean {
  return typeof value === "number" && value >= 0;
}

function checkKeys(keys: unknown): void {
  const isKey = (key: unknown) => typeof key === "string" && key.trim() !== "";
  if (typeof keys === "string") {
    if (isKey(keys)) return;
    throw new InvalidParameterError("key", keys, "non-empty string");
  }
  if (!Array.isArray(keys) || keys.length === 0) {
    const expected = "non-empty array of strings";
    throw new InvalidParameterError("keys", keys, expected);
  }
  for (const [i, key] of keys.entries()) {
    if (isKey(key)) continue;
    throw new InvalidParameterError(`keys[${i}]`, key, "non-empty string");
  }
}

function checkMs(name: string, ms: unknown): void {
  if (Number.isSafeInteger(ms) && ms as number > 0) return;
  throw new InvalidParameterError(name, ms, "positive integer");
}

function checkObject(name: string, value: unknown): void {
  if (typeof value === "object" && value !== null) return;
  throw new InvalidParameterError(name, value, "object");
}

function checkThreshold(name: string, ms: unknown): void {
  if (ms !== undefined) checkMs(name, ms);
}
