/** The three kinds of bad news, and what they have in common. */

/** What a {@linkcode LockError} is about, in a word that never changes. */
export type LockErrorCode =
  | "LOCK_NOT_ACQUIRED"
  | "LOCK_LOST"
  | "LOCK_NOT_HELD"
  | "LOCK_BACKEND"
  | "LOCK_NOT_REPLICATED";

/**
 * What every error about a lock extends; a bad argument is a `TypeError` or
 * a `RangeError` instead, and an aborted wait rejects with the caller's reason.
 *
 * Thrown as itself, with the code `LOCK_NOT_HELD`, where something is asked of
 * a lock that was released or never acquired.
 *
 * @example Telling the kinds apart
 * ```ts
 * import { acquireLock, LockError } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * await acquireLock(here, "report");
 * const code = await acquireLock(here, "report").catch((error) => {
 *   if (error instanceof LockError) return error.code;
 * });
 * if (code !== "LOCK_NOT_ACQUIRED") throw new Error(`got ${code}`);
 * ```
 */
export class LockError extends Error {
  static {
    this.prototype.name = "LockError";
  }
  /** The kind of error, for a `switch`. */
  readonly code: LockErrorCode;
  /** The key of the lock that it is about. */
  readonly key: string;

  /** An error about the lock on `key`; `cause` is what led to it, if anything. */
  constructor(
    code: LockErrorCode,
    key: string,
    message: string,
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.key = key;
  }
}

/**
 * Taken: somebody else has the lock. The message is the caller's
 * `errorMessage`, so that it can go to a user as it is.
 *
 * @example Telling a user when to come back
 * ```ts
 * import { acquireLock, LockNotAcquiredError } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * await acquireLock(here, "report", { ttl: 5 });
 * try {
 *   await acquireLock(here, "report", { errorMessage: "Being written" });
 * } catch (error) {
 *   if (!(error instanceof LockNotAcquiredError)) throw error;
 *   const seconds = Math.ceil((error.retryAfterMs ?? 1000) / 1000);
 *   if (`${error.message}: ${seconds} s` !== "Being written: 5 s") throw error;
 * }
 * ```
 */
export class LockNotAcquiredError extends LockError {
  static {
    this.prototype.name = "LockNotAcquiredError";
  }
  /**
   * Milliseconds until the present hold ends by itself, unless it is renewed
   * or released before; `undefined` where the server cannot tell.
   */
  readonly retryAfterMs: number | undefined;
  /**
   * The place in line when patience ran out, as far as is known: 1 would have
   * been the next. Those of one process with the same label and `fencing` stand
   * there as one, unless `localTurns` is 0. `undefined` for one who did not
   * stand in line.
   */
  readonly place: number | undefined;

  /**
   * The lock on `key` is taken, for `retryAfterMs` more if that is known, and
   * the caller was at `place` in line.
   */
  constructor(
    key: string,
    message: string,
    retryAfterMs?: number,
    place?: number,
  ) {
    super("LOCK_NOT_ACQUIRED", key, message);
    this.retryAfterMs = retryAfterMs;
    this.place = place;
  }
}

/**
 * Why a hold ended that nobody released:
 *
 * - `expired`: its time ran out before it was extended;
 * - `taken`: somebody else has the key;
 * - `deleted`: the key is gone, and nobody has it;
 * - `unreachable`: its time ran out while the server could not be asked;
 * - `max-hold`: it was held for as long as it was allowed to be.
 */
export type LossReason =
  | "expired"
  | "taken"
  | "deleted"
  | "unreachable"
  | "max-hold";

const LOSS: Record<LossReason, string> = {
  expired: "its time ran out",
  taken: "somebody else has it",
  deleted: "it was deleted on the server",
  unreachable: "the server could not be asked in time",
  "max-hold": "it was held for as long as it was allowed to be",
};

/**
 * Lost: the hold can no longer be known to be ours, so others may be inside.
 * It is also the reason with which the lock's `signal` aborts.
 *
 * @example Stopping when the lock is lost
 * ```ts
 * import { acquireLock, LockLostError } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = await acquireLock(memory(), "report", { ttl: 0.05 });
 * let pages = 0;
 * while (!lock.signal.aborted) { // … and hand the signal to fetch() and such
 *   await new Promise((done) => setTimeout(done, 10));
 *   pages++;
 * }
 * const { reason } = lock.signal;
 * if (!(reason instanceof LockLostError)) throw reason;
 * if (reason.reason !== "expired" || pages === 0) throw reason;
 * ```
 */
export class LockLostError extends LockError {
  static {
    this.prototype.name = "LockLostError";
  }
  /** Why the hold ended. */
  readonly reason: LossReason;

  /** The lock on `key` was lost for `reason`. */
  constructor(key: string, reason: LossReason, cause?: unknown) {
    super("LOCK_LOST", key, `Lost the lock "${key}": ${LOSS[reason]}`, cause);
    this.reason = reason;
  }
}

/**
 * Unreachable: the server or its client failed, so whether the lock is taken
 * is not known. The original error is the `cause`; the message repeats none of
 * its text, which may name commands and their arguments.
 *
 * @example A server's error is never taken for a taken lock
 * ```ts
 * import { acquireLock, LockBackendError } from "@dreamer/utils/lock";
 *
 * const down = {
 *   set: () => Promise.reject(new Error("READONLY replica")),
 *   get: () => Promise.resolve(null),
 *   del: () => Promise.resolve(0),
 *   eval: () => Promise.resolve(0),
 * };
 * try {
 *   await acquireLock(down, "report", { throwOnFail: false });
 * } catch (error) {
 *   if (!(error instanceof LockBackendError)) throw error;
 *   if (error.reply !== "READONLY") throw error;
 * }
 * ```
 */
export class LockBackendError extends LockError {
  static {
    this.prototype.name = "LockBackendError";
  }
  /**
   * The first word of the server's error reply, such as `READONLY` or
   * `NOAUTH`; `undefined` where no reply came, so that what was asked may or
   * may not have been done.
   */
  readonly reply: string | undefined;

  /** The server could not do for the lock on `key` what `message` says. */
  constructor(
    key: string,
    message: string,
    cause?: unknown,
    reply?: string,
    code: "LOCK_BACKEND" | "LOCK_NOT_REPLICATED" = "LOCK_BACKEND",
  ) {
    super(code, key, message, cause);
    this.reply = reply;
  }
}

/**
 * Too few: the lock was granted, but fewer replicas than `replicas` says had
 * confirmed it in time; so it was released again.
 *
 * @example Going on where a replica is away
 * ```ts
 * import { acquireLock, LockReplicationError } from "@dreamer/utils/lock";
 * import { Redis } from "ioredis";
 *
 * const client = new Redis(process.env.REDIS_URL ?? "redis://localhost:6379");
 * try {
 *   await acquireLock(client, "lock:report", { ttl: 0.5, replicas: 9 });
 * } catch (error) {
 *   if (!(error instanceof LockReplicationError)) throw error;
 *   console.log(`${error.confirmed} of ${error.replicas} replicas`);
 * } finally {
 *   client.disconnect();
 * }
 * ```
 */
export class LockReplicationError extends LockBackendError {
  static {
    this.prototype.name = "LockReplicationError";
  }
  /** How many replicas were to confirm the lock. */
  readonly replicas: number;
  /** The most of them that had confirmed it, of all times that they were asked. */
  readonly confirmed: number;

  /** So many of `replicas` confirmed the lock on `key` in `ms` milliseconds. */
  constructor(
    key: string,
    replicas: number,
    confirmed: number,
    ms: number,
    cause?: unknown,
  ) {
    const what =
      `${confirmed} of ${replicas} replicas confirmed it in ${ms} ms`;
    super(
      key,
      `Cannot acquire "${key}": ${what}`,
      cause,
      undefined,
      "LOCK_NOT_REPLICATED",
    );
    this.replicas = replicas;
    this.confirmed = confirmed;
  }
}

/**
 * What a server answers that will be ready again by itself: it has become a
 * replica, reads its data, has lost its primary or too many replicas, or is
 * about to give a slot of its Cluster to another. Nothing was done.
 */
const PASSING = new Set([
  ...["READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS"],
  ...["CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY"],
]);

/** What is told where a backend threw `cause`: itself, or what wraps it. */
export function toFailure(
  action: string,
  key: string,
  cause: unknown,
): LockBackendError {
  return cause instanceof LockBackendError
    ? cause
    : new LockBackendError(key, `Cannot ${action} "${key}"`, cause);
}

/** What is said to who waited for so long and had no answer. */
export function unanswered(key: string, waitMs: number): LockBackendError {
  const what = `no answer from the server in ${Math.round(waitMs)} ms`;
  return new LockBackendError(key, `Cannot wait for "${key}": ${what}`);
}

/** What is said to who was granted a lease that was over with the answer. */
export function outlasted(
  action: string,
  key: string,
  tookMs: number,
): LockBackendError {
  const what = `the answer took ${Math.round(tookMs)} ms`;
  const message = `Cannot ${action} "${key}": ${what}, longer than the lease`;
  return new LockBackendError(key, message);
}

/** Whether no word came from the server, and what was asked may yet be done. */
export function isSilence(error: unknown): error is LockBackendError {
  return error instanceof LockBackendError && error.reply === undefined;
}

/** Whether who has patience is to try again, and nobody said "taken". */
export function isPassing(error: unknown): error is LockBackendError {
  return error instanceof LockBackendError && error.reply !== undefined &&
    PASSING.has(error.reply);
}
