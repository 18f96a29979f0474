/**
 * The API of `@upstash/lock`, over this library's locks: {@linkcode Lock}, and
 * {@linkcode Debounce}. Durations are in milliseconds.
 *
 * @example
 * ```ts
 * import { Lock } from "@dreamer/utils/lock/upstash";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = new Lock({ id: "unique-lock-id", redis: memory() });
 * if (await lock.acquire()) {
 *   // … nobody else is here …
 *   await lock.release();
 * }
 * ```
 *
 * @module
 */

import { connect, type LockTarget } from "../connect.ts";
import type { Backend } from "../core/backend.ts";
import { callInBurst } from "../core/bursts.ts";
import { LockLostError } from "../core/errors.ts";
import {
  checkKey,
  checkOptions,
  kindOf,
  outOfRange,
  wrongType,
} from "../core/options.ts";
import { type DistributedLock, prolong, rename, take } from "../lock.ts";

export type { LockTarget };

/** How often, and at what distance, to try. */
export interface RetryConfig {
  /**
   * How many tries there are, the first included: 1 does not wait, and 0 does
   * not even try. Default: 3.
   */
  attempts?: number | undefined;
  /** Milliseconds of patience for each further one. Default: 100. */
  delay?: number | undefined;
}

/** How a {@linkcode Lock} is set up. */
export interface LockCreateConfig {
  /** What is locked: the Redis key. */
  id: string;
  /** Where it lives: whatever `acquireLock` takes. */
  redis: LockTarget;
  /** Milliseconds after which the lock is free again. Default: 10,000. */
  lease?: number | undefined;
  /** How to wait while it is taken. */
  retry?: RetryConfig | undefined;
}

/**
 * All that the original knew of a lock. No lock here gives it away, as whoever
 * has the `UUID` can free the lock: it is for programs that name the type.
 *
 * @example
 * ```ts
 * import { Lock, type LockConfig } from "@dreamer/utils/lock/upstash";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const config: LockConfig = {
 *   id: "report",
 *   redis: memory(),
 *   lease: 5_000,
 *   retry: { attempts: 10, delay: 200 },
 *   UUID: null,
 * };
 * const { UUID: _, ...rest } = config;
 * const lock = new Lock(rest);
 * if (!await lock.acquire()) throw new Error("taken");
 * await lock.release();
 * ```
 */
export interface LockConfig {
  /** What is locked: the Redis key. */
  id: string;
  /** Where it lives: whatever `acquireLock` takes. */
  redis: LockTarget;
  /** Milliseconds after which the lock is free again. */
  lease: number;
  /** How to wait while it is taken. */
  retry: RetryConfig;
  /** The value of the key while it is held. */
  UUID: string | null;
}

/** What one {@linkcode Lock.acquire} may have otherwise than its lock. */
export interface LockAcquireConfig {
  /** Milliseconds after which the lock is free again. */
  lease?: number | undefined;
  /** How to wait while it is taken. */
  retry?: RetryConfig | undefined;
  /**
   * The value of the key while it is held: random, and another for each hold.
   * Default: one of our own draw.
   */
  uuid?: string | undefined;
}

/** Whether this very instance holds the lock. */
export type LockStatus = "ACQUIRED" | "FREE";

const DEFAULT_LEASE_MS = 10_000;
const DEFAULT_RETRY = { attempts: 3, delay: 100 };
type Retry = typeof DEFAULT_RETRY;
const DEFAULT_WAIT_MS = 1_000;

/**
 * A lock on `id`, to be acquired and released again and again. While it is
 * taken, `acquire()` stands in line with all others, for as long as the tries
 * and pauses of `retry` would have taken.
 *
 * @example Waiting longer, holding longer
 * ```ts
 * import { Lock } from "@dreamer/utils/lock/upstash";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = new Lock({
 *   id: "report",
 *   redis: memory(),
 *   lease: 5_000,
 *   retry: { attempts: 10, delay: 200 },
 * });
 * if (!await lock.acquire({ lease: 20_000 })) throw new Error("taken");
 * await lock.extend(1_500);
 * if (await lock.getStatus() !== "ACQUIRED") throw new Error("lost");
 * await lock.release();
 * ```
 */
export class Lock {
  readonly #id: string;
  readonly #backend: Backend;
  readonly #leaseMs: number;
  readonly #retry: Retry;
  /** The last hold; a failed acquire() leaves it alone. */
  #lock: DistributedLock | undefined;

  /**
   * A lock that is yet to be acquired.
   *
   * @throws {TypeError | RangeError} The configuration is bad.
   */
  constructor(config: LockCreateConfig) {
    const action = "make a lock";
    checkOptions(action, config);
    const { id, redis, lease, retry } = config;
    checkKey(action, id, "id");
    this.#id = id;
    this.#backend = connect(redis, "redis");
    this.#leaseMs = readLease(action, lease, DEFAULT_LEASE_MS);
    this.#retry = readRetry(action, retry, DEFAULT_RETRY);
  }

  /** What is locked. */
  get id(): string {
    return this.#id;
  }

  /**
   * Acquires the lock, or waits for it.
   *
   * @param config What is to be otherwise, this time only.
   * @returns `true` if it is held now; `false` if it is taken, also by an
   * earlier hold of this instance, which goes on.
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {TypeError | RangeError} `config` is bad, or asks for a `uuid` on
   * a quorum; nothing was sent.
   */
  async acquire(config: LockAcquireConfig = {}): Promise<boolean> {
    const action = `acquire "${this.#id}"`;
    checkOptions(action, config);
    const leaseMs = readLease(action, config.lease, this.#leaseMs);
    const { attempts, delay } = readRetry(action, config.retry, this.#retry);
    // As in the original, an empty one is none.
    const uuid = readUuid(action, config.uuid) || undefined;
    const backend = this.#backend;
    if (uuid !== undefined && backend.rename === undefined) {
      const rule = `uuid must not be given on ${backend.name}`;
      // Its kind only: whoever knows the value can free the lock.
      outOfRange(action, rule, uuid, kindOf(uuid));
    }
    if (attempts === 0) return false;
    const waitMs = attempts === Infinity ? Infinity : (attempts - 1) * delay;
    const options = { ttl: leaseMs / 1000, waitMs, throwOnFail: false };
    const manner = { isUnhurried: true };
    let lock = await take(backend, this.#id, options, false, manner);
    if (lock !== null && uuid !== undefined) lock = await rename(lock, uuid);
    if (lock === null) return false;
    this.#lock = lock;
    return true;
  }

  /**
   * Frees the lock.
   *
   * @returns `true` if this call did; `false` if it was not held, or not any
   * more: nobody else's hold is touched.
   * @throws {LockBackendError} The server could not be asked, or failed.
   */
  release(): Promise<boolean> {
    return this.#lock?.release() ?? Promise.resolve(false);
  }

  /**
   * Adds `amt` milliseconds to what is left of the lease, or takes them off
   * where it is negative; taking off all of it releases the lock. Whatever is
   * acquired later has the lease that it was set up with.
   *
   * @returns `true` if it did; `false` if the lock is not held, or not any more.
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {TypeError | RangeError} `amt` is no finite number.
   */
  async extend(amt: number): Promise<boolean> {
    const action = `extend "${this.#id}"`;
    if (typeof amt !== "number") wrongType(action, "amt must be a number", amt);
    if (!Number.isFinite(amt)) outOfRange(action, "amt must be finite", amt);
    const lock = this.#lock;
    if (!lock?.isAcquired()) return false;
    try {
      return await prolong(lock, amt) || await lock.release();
    } catch (error) {
      if (error instanceof LockLostError) return false;
      throw error;
    }
  }

  /**
   * Asks the server whether this instance holds the lock: another one's hold
   * is not its own.
   *
   * @throws {LockBackendError} The server could not be asked, or failed.
   */
  async getStatus(): Promise<LockStatus> {
    const lock = this.#lock;
    if (lock === undefined) return "FREE";
    const { key, owner } = lock;
    const { verdict } = await this.#backend.inquire({ key, owner });
    return verdict === "done" ? "ACQUIRED" : "FREE";
  }
}

/** How a {@linkcode Debounce} is set up. */
// deno-lint-ignore no-explicit-any
export interface DebounceConfig<Args extends unknown[] = any[]> {
  /** By which calls belong together, in whichever process. */
  id: string;
  /** Where they are counted: whatever `acquireLock` takes, but a quorum. */
  redis: LockTarget;
  /** Milliseconds of quiet after which the last call runs. Default: 1,000. */
  wait?: number | undefined;
  /** What to run, with the arguments of the call. */
  callback: (...args: Args) => unknown;
}

/**
 * A function of which only the last call runs, once `wait` milliseconds have
 * gone by without another, wherever the others came from. While calls keep
 * coming it runs once in every `wait`, at first after two; never more often.
 *
 * Should the process of the last call die before it runs, the latest call of
 * another process runs in its place, if that is still around.
 *
 * @example
 * ```ts
 * import { Debounce } from "@dreamer/utils/lock/upstash";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const saved: string[] = [];
 * const save = new Debounce({
 *   id: "save",
 *   redis: memory(),
 *   wait: 50,
 *   callback: (text: string) => void saved.push(text),
 * });
 * await Promise.all([save.call("d"), save.call("dr"), save.call("draft")]);
 * if (saved.join() !== "draft") throw new Error(saved.join());
 * ```
 */
// deno-lint-ignore no-explicit-any
export class Debounce<Args extends unknown[] = any[]> {
  readonly #id: string;
  readonly #backend: Backend;
  readonly #waitMs: number;
  readonly #callback: (...args: Args) => unknown;

  /**
   * A debounced function.
   *
   * @throws {TypeError | RangeError} The configuration is bad.
   */
  constructor(config: DebounceConfig<Args>) {
    const action = "debounce";
    checkOptions(action, config);
    const { id, redis, wait = DEFAULT_WAIT_MS, callback } = config;
    checkKey(action, id, "id");
    this.#id = id;
    this.#backend = connect(redis, "redis");
    if (this.#backend.bursts === undefined) {
      const rule = "redis must be one server and no quorum";
      wrongType(action, rule, redis, this.#backend.name);
    }
    this.#waitMs = readMs(action, "wait", wait);
    if (typeof callback !== "function") {
      wrongType(action, "callback must be a function", callback);
    }
    this.#callback = callback;
  }

  /**
   * Calls the function: with these arguments, if it turns out to be the last
   * call.
   *
   * Resolves after `wait` milliseconds, whether it ran or not, and after the
   * callback if it did; later by up to another `wait` where a run would come too
   * soon after the one before. The latest call of its process stays, where
   * another process called after it, until that has run.
   *
   * @throws What the callback throws, if it was this call that ran it.
   * @throws {LockBackendError} The server could not be asked, or failed.
   */
  async call(...args: Args): Promise<void> {
    const { bursts } = this.#backend;
    const run = () => this.#callback(...args);
    await callInBurst(this.#backend, bursts!, this.#id, this.#waitMs, run);
  }
}

function readLease(
  action: string,
  lease: number | undefined,
  before: number,
): number {
  if (lease === undefined) return before;
  readMs(action, "lease", lease);
  if (lease < 1) outOfRange(action, "lease must be at least 1 ms", lease);
  return lease;
}

function readRetry(
  action: string,
  retry: RetryConfig | undefined,
  before: Retry,
): Retry {
  if (retry === undefined) return before;
  if (typeof retry !== "object" || retry === null) {
    wrongType(action, "retry must be an object", retry);
  }
  const { attempts = before.attempts, delay = before.delay } = retry;
  if (typeof attempts !== "number") {
    wrongType(action, "attempts must be a number", attempts);
  }
  if (attempts !== Infinity && !(Number.isInteger(attempts) && attempts >= 0)) {
    outOfRange(action, "attempts must be a whole number >= 0", attempts);
  }
  return { attempts, delay: readMs(action, "delay", delay) };
}

function readMs(action: string, name: string, ms: unknown): number {
  if (typeof ms !== "number") {
    wrongType(action, `${name} must be a number of milliseconds`, ms);
  }
  if (!(ms >= 0) || ms > Number.MAX_SAFE_INTEGER) {
    outOfRange(action, `${name} must be >= 0, and finite`, ms);
  }
  return ms;
}

function readUuid(action: string, uuid: unknown): string | undefined {
  if (uuid === undefined || typeof uuid === "string") return uuid;
  return wrongType(action, "uuid must be a string", uuid, kindOf(uuid));
}
