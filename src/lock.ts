/** The verbs: options in, a held lock out. */

import { connect, type LockTarget } from "./connect.ts";
import {
  acquire,
  acquireAll,
  claimFor,
  confirm,
  unlessAborted,
} from "./core/acquire.ts";
import { GRACE_MS } from "./core/attempts.ts";
import {
  type Backend,
  type Claim,
  clockOf,
  type Refusal,
  type Verdict,
  type Wanted,
} from "./core/backend.ts";
import { type Clock, moment, within } from "./core/clock.ts";
import {
  isPassing,
  isSilence,
  LockError,
  LockLostError,
  LockNotAcquiredError,
} from "./core/errors.ts";
import { judgeWhenRead, Keeper, type Terms } from "./core/keeper.ts";
import { drawOwner, labelOf } from "./core/keys.ts";
import {
  checkBoolean,
  checkKey,
  checkNumber,
  kindOf,
  type LockOptions,
  type Manner,
  outOfRange,
  readKeys,
  readOptions,
  readTtl,
  type Settings,
  wrongType,
} from "./core/options.ts";
import { type Patience, wait, withPatience } from "./core/wait.ts";
import { tell } from "./core/events.ts";

/**
 * Takes the lock on `key`: at once, or once it is free, for as long as `waitMs`
 * says. Who waits stands in line, and is served in the order of arrival.
 *
 * The server keeps it for `ttl` seconds unless it is extended or released; a
 * moment before, `lock.signal` aborts with {@linkcode LockLostError}. With
 * `autoExtend` it is renewed in the background at a third of that time, and
 * lost only if no renewal gets through until the end.
 *
 * @param on Where the lock lives: a client (ioredis, node-redis, Upstash's,
 * Bun's, Valkey GLIDE), a function that sends a command, anything with the
 * `set`, `get`, `del` and `eval` of ioredis, or a backend such as `memory()`.
 * @param key What to lock; see {@linkcode lockKey}. It is the Redis key. Of
 * several keys all are taken, or none.
 * @param options `ttl` is in seconds, anything `…Ms` in milliseconds.
 * @returns The lock, or `null` if it is taken and `throwOnFail` is `false`.
 * @throws {LockNotAcquiredError} Somebody else had it all the while.
 * @throws {LockBackendError} The server could not be asked, or failed.
 * @throws {LockReplicationError} Fewer than `replicas` have confirmed it.
 * @throws The reason of `signal`, if that aborted.
 * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
 *
 * @example Waiting for it, two seconds at most
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * const first = await acquireLock(here, "report");
 * const second = acquireLock(here, "report", { waitMs: 2_000 });
 * await first.release(); // … which hands it to the next in line
 * await (await second).release();
 * ```
 *
 * @example Several at once, all or none
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const accounts = ["account:7", "account:3"];
 * await using lock = await acquireLock(memory(), accounts, { waitMs: 500 });
 * if (lock.keys.join() !== "account:3,account:7") throw new Error("unsorted");
 * ```
 *
 * @example Holding it by hand
 * ```ts
 * import { acquireLock, lockKey } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = await acquireLock(memory(), lockKey("report", 7), { ttl: 10 });
 * try {
 *   // … write the report …
 *   lock.assertHeld();
 * } finally {
 *   await lock.release();
 * }
 * ```
 *
 * @example Going on without it
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * await using lock = await acquireLock(memory(), "lock:report:7", {
 *   throwOnFail: false,
 * });
 * if (lock === null) console.log("somebody else is on it");
 * ```
 */
export function acquireLock(
  on: LockTarget,
  key: string | readonly string[],
  options: LockOptions & { throwOnFail: false },
): Promise<DistributedLock | null>;
/** The lock, or an error where it is taken. */
export function acquireLock(
  on: LockTarget,
  key: string | readonly string[],
  options?: LockOptions & { throwOnFail?: true | undefined },
): Promise<DistributedLock>;
/** The lock, or `null` where it is taken and `throwOnFail` turns out `false`. */
export function acquireLock(
  on: LockTarget,
  key: string | readonly string[],
  options?: LockOptions,
): Promise<DistributedLock | null>;
export function acquireLock(
  on: LockTarget,
  key: string | readonly string[],
  options?: LockOptions,
): Promise<DistributedLock | null> {
  return take(on, key, options, false);
}

/**
 * Acquires for `acquireLock()`, for `withLock()`, where the lock is scoped, or
 * for an older API. Not async, for speed: what it throws has to become a
 * rejection.
 */
export function take(
  on: LockTarget,
  keyOrKeys: string | readonly string[],
  options: LockOptions | undefined,
  isScoped: boolean,
  manner?: Manner,
): Promise<DistributedLock | null> {
  try {
    const backend = connect(on);
    const keys = readKeys("acquire a lock", keyOrKeys);
    const key = typeof keys === "string" ? keys : keys[0];
    const action = `acquire "${key}"`;
    const settings = readOptions(action, options, isScoped, manner);
    if (settings.fencing && backend.tryAcquireFenced === undefined) {
      const rule = `fencing must be false on ${backend.name}, which draws none`;
      outOfRange(action, rule, true);
    }
    const { replicas } = settings;
    if (replicas > 0 && backend.confirm === undefined) {
      const rule = `replicas must be 0 on ${backend.name}, which can't ask any`;
      outOfRange(action, rule, replicas);
    }
    const taking = typeof keys === "string"
      ? attempt(
        backend,
        { key, ttlMs: settings.ttlMs },
        settings,
        settings,
        (answer) =>
          answer instanceof Keeper
            ? handle(answer)
            : refused(key, answer, settings),
      )
      : takeSeveral(backend, keys, settings);
    return replicas > 0 ? confirmed(backend, taking, settings) : taking;
  } catch (error) {
    return Promise.reject(error);
  }
}

/** What was taken, once enough replicas have it; else it is released again. */
async function confirmed(
  backend: Backend,
  taking: Promise<DistributedLock | null>,
  { replicas, waitMs, signal }: Settings,
): Promise<DistributedLock | null> {
  const clock = clockOf(backend);
  const until = clock.now() + waitMs;
  const lock = await taking;
  if (lock === null) return null;
  try {
    const leftMs = until - clock.now();
    await confirm(backend, claimsOf(lock), replicas, leftMs, signal);
  } catch (error) {
    leaveTurns(lock);
    const isCalledOff = signal?.aborted;
    await giveBack(clock, [lock], isCalledOff ? GIVE_BACK_MS : UNCONFIRMED_MS);
    throw error;
  }
  return lock;
}

/** What the caller gets for a refusal. */
function refused(key: string, answer: Refusal, settings: Settings): null {
  if (!settings.throwOnFail) return null;
  const { errorMessage } = settings;
  const { retryAfterMs, place } = answer;
  throw new LockNotAcquiredError(key, errorMessage, retryAfterMs, place);
}

/**
 * Takes all of `keys`, or none: in one step where the backend can and nobody
 * has one of them; else one after the other in their order, which is the same
 * for everybody, waiting for each in its line.
 */
async function takeSeveral(
  backend: Backend,
  keys: readonly string[],
  settings: Settings,
): Promise<DistributedLock | null> {
  const { waitMs, isUnhurried } = settings;
  const clock = clockOf(backend);
  let until = clock.now() + waitMs;
  const canAtOnce = backend.tryAcquireAll !== undefined &&
    (backend.areTogether === undefined || backend.areTogether(keys));
  if (!canAtOnce) return await takeInTurn(backend, keys, settings, until);
  const answer = await takeAtOnce(backend, keys, settings);
  if (answer instanceof DistributedLock) return answer;
  if (answer !== undefined && waitMs === 0) {
    return refused(keys[answer.index ?? 0], answer, settings);
  }
  if (isUnhurried) until = clock.now() + waitMs;
  return await takeInTurn(backend, keys, settings, until, answer);
}

/**
 * Takes all of `keys` in one step, or none. `undefined` is for one who has
 * patience, of a server that isn't ready yet.
 */
async function takeAtOnce(
  backend: Backend,
  keys: readonly string[],
  settings: Settings,
): Promise<DistributedLock | Refusal | undefined> {
  const { label, ttlMs, waitMs, isUnhurried, fencing } = settings;
  const owner = drawOwner(label, undefined, fencing);
  const claims = keys.map((key) => ({ key, owner, ttlMs }));
  const tellers = keys.map((key) => telling(backend, key, label, same));
  const atOnce = (terms: Terms) => acquireAll(backend, claims, terms);
  let answer: Keeper[] | Refusal;
  try {
    answer =
      await (waitMs === 0 || isUnhurried ? atOnce(settings) : withPatience(
        backend,
        keys[0],
        settings,
        waitMs,
        atOnce,
        GRACE_MS,
      ));
  } catch (error) {
    // One after the other, each is waited for until the server is ready.
    if (waitMs === 0 || !isPassing(error)) throw error;
    return undefined;
  }
  if (Array.isArray(answer)) {
    answer.forEach((keeper, i) => tellers[i](keeper));
    return handle(answer[0], answer.slice(1));
  }
  // Who has patience is told when that is over.
  if (waitMs === 0) tellers[answer.index ?? 0](answer);
  return answer;
}

/**
 * Takes one of `keys` after the other, or none, by `until`.
 *
 * @param refusal What it came to to take them in one step, if that was tried.
 */
async function takeInTurn(
  backend: Backend,
  keys: readonly string[],
  settings: Settings,
  until: number,
  refusal?: Refusal,
): Promise<DistributedLock | null> {
  const { ttlMs, waitMs } = settings;
  const clock = clockOf(backend);
  // Renewed while we wait for the others, whatever becomes of it afterwards.
  const meanwhile = { ...settings, autoExtend: true, maxHoldMs: Infinity };
  const taken: DistributedLock[] = [];
  const keepers: Keeper[] = [];
  try {
    for (const key of keys) {
      const wanted = { key, ttlMs };
      const leftMs = waitMs === 0 ? 0 : Math.max(1, until - clock.now());
      const patience = { ...settings, waitMs: leftMs };
      const answer = await attempt(backend, wanted, meanwhile, patience, same);
      if (!(answer instanceof Keeper)) {
        await giveBack(clock, taken);
        return refused(key, answer, settings);
      }
      keepers.push(answer);
      taken.push(handle(answer));
    }
    // What was taken is ours by now: a silence from here on is no refusal.
    refusal = undefined;
    for (const keeper of keepers) keeper.begin(settings);
    if (!settings.autoExtend) await makeWhole(backend, taken, settings, until);
    for (const lock of taken) lock.assertHeld();
  } catch (error) {
    await giveBack(clock, taken);
    // No answer in what was left of our patience, after one that was a no.
    if (refusal && isSilence(error) && clock.now() >= until) {
      return refused(keys[refusal.index ?? 0], refusal, settings);
    }
    throw error;
  }
  const [first, ...others] = keepers;
  return handle(first, others);
}

/** Gives each of several its whole lease: that of the first may be half over. */
async function makeWhole(
  backend: Backend,
  locks: readonly DistributedLock[],
  settings: Settings,
  until: number,
): Promise<void> {
  const { waitMs, isUnhurried } = settings;
  const leftMs = waitMs === 0 || isUnhurried
    ? Infinity
    : Math.max(LAST_STEP_MS, until - clockOf(backend).now());
  const extend = () => Promise.all(locks.map((lock) => lock.extend()));
  await withPatience(
    backend,
    locks[0].key,
    settings,
    leftMs,
    ({ signal }) => unlessAborted(signal, extend()),
    GRACE_MS,
  );
}

/** How long the answer may take at least that makes a lease of several whole. */
const LAST_STEP_MS = 200;

/** How long to wait for what is given back: callers are to be told in time. */
const GIVE_BACK_MS = 15;
/** The same where nobody called it off: what was not confirmed is gone then. */
const UNCONFIRMED_MS = 1_000;

/** Releases all, and waits for that unless the server says nothing. */
async function giveBack(
  clock: Clock,
  locks: readonly DistributedLock[],
  limitMs: number = GIVE_BACK_MS,
): Promise<void> {
  const released = () => Promise.all(locks.map(finish));
  await within(clock, limitMs, released).catch(() => {});
}

const same = <T>(answer: T): T => answer;

/** Acquires, and tells how it went before anything else can be told of it. */
function attempt<T>(
  backend: Backend,
  wanted: Wanted,
  terms: Terms,
  patience: Patience,
  settle: (answer: Keeper | Refusal) => T,
): Promise<T> {
  const { waitMs, label } = patience;
  const told = telling(backend, wanted.key, label, settle);
  return waitMs === 0
    ? acquire(backend, claimFor(wanted, label, terms), terms, told)
    : wait(backend, wanted, terms, patience, told);
}

/** `settle`, which tells of the answer first, if anybody wants to know. */
function telling<T>(
  backend: Backend,
  key: string,
  label: string | undefined,
  settle: (answer: Keeper | Refusal) => T,
): (answer: Keeper | Refusal) => T {
  if (backend.onEvent === undefined) return settle;
  const begunAt = clockOf(backend).now();
  return (answer) => {
    const tookMs = clockOf(backend).now() - begunAt;
    if (answer instanceof Keeper) {
      const { fencingToken } = answer;
      tell(backend, { type: "acquired", key, label, tookMs, fencingToken });
      answer.watch();
    } else {
      const { retryAfterMs, place } = answer;
      tell(backend, {
        type: "refused",
        key,
        label,
        tookMs,
        retryAfterMs,
        place,
      });
    }
    return settle(answer);
  };
}

/**
 * Runs `fn` while holding the lock on `key`, and releases it afterwards. The
 * lock is renewed for as long as `fn` takes, unless `autoExtend` is `false`.
 *
 * What `fn` returns or throws is what comes out; a release that fails changes
 * nothing about that. If the lock was lost before `fn` was done, others may
 * have been inside: that is an error even though `fn` succeeded, unless it
 * released the lock itself. Where `fn` failed, the loss is the `cause` of its
 * error, if that had none.
 *
 * @param on Where the lock lives; see {@linkcode acquireLock}.
 * @param key What to lock.
 * @param fn What to do; its argument is the held lock.
 * @param options As for {@linkcode acquireLock}.
 * @returns What `fn` returned, or `null` if the lock was taken and
 * `throwOnFail` is `false`; then `fn` was not called.
 * @throws {LockNotAcquiredError} Somebody else has it; `fn` was not called.
 * @throws {LockBackendError} The server could not be asked; `fn` was not called.
 * @throws {LockReplicationError} Fewer than `replicas` have confirmed it; `fn`
 * was not called.
 * @throws {LockLostError} `fn` succeeded, but the lock was lost on the way.
 * @throws The reason of `signal`, if that aborted before there was a lock.
 * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
 *
 * @example
 * ```ts
 * import { lockKey, withLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const left = await withLock(
 *   memory(),
 *   lockKey("withdraw", "user123"),
 *   (lock) => {
 *     lock.signal.throwIfAborted();
 *     return 1000 - 300;
 *   },
 *   { ttl: 10, errorMessage: "Withdrawal in progress" },
 * );
 * if (left !== 700) throw new Error(`left: ${left}`);
 * ```
 */
export function withLock<T>(
  on: LockTarget,
  key: string | readonly string[],
  fn: (lock: DistributedLock) => T | Promise<T>,
  options: LockOptions & { throwOnFail: false },
): Promise<T | null>;
/** What `fn` returned, or an error where the lock is taken. */
export function withLock<T>(
  on: LockTarget,
  key: string | readonly string[],
  fn: (lock: DistributedLock) => T | Promise<T>,
  options?: LockOptions & { throwOnFail?: true | undefined },
): Promise<T>;
/** What `fn` returned, or `null` where `throwOnFail` turns out `false`. */
export function withLock<T>(
  on: LockTarget,
  key: string | readonly string[],
  fn: (lock: DistributedLock) => T | Promise<T>,
  options?: LockOptions,
): Promise<T | null>;
export async function withLock<T>(
  on: LockTarget,
  key: string | readonly string[],
  fn: (lock: DistributedLock) => T | Promise<T>,
  options?: LockOptions,
): Promise<T | null> {
  if (typeof fn !== "function") {
    wrongType("run with a lock", "fn must be a function", fn);
  }
  const lock = await take(on, key, options, true);
  return lock === null ? null : await runWith(lock, fn);
}

/** Runs `fn` with `lock`, and releases it afterwards: see `withLock()`. */
export async function runWith<T>(
  lock: DistributedLock,
  fn: (lock: DistributedLock) => T | Promise<T>,
): Promise<T> {
  let result: T;
  try {
    result = await fn(lock);
  } catch (error) {
    const loss = await finish(lock);
    if (loss !== undefined) leadTo(error, loss);
    throw error;
  }
  const loss = await finish(lock);
  if (loss !== undefined) throw loss;
  return result;
}

/** Makes the loss reachable from what fn threw, where there is room for it. */
function leadTo(error: unknown, loss: LockLostError): void {
  if (
    error instanceof Error && error !== loss && !("cause" in error) &&
    Object.isExtensible(error)
  ) {
    // As the constructor of Error would: there, but not listed.
    Object.defineProperty(error, "cause", {
      value: loss,
      writable: true,
      configurable: true,
    });
  }
}

/** A handle for what was just granted: of one key, or of several as one. */
function handle(
  keeper: Keeper,
  others: readonly Keeper[] = [],
): DistributedLock {
  // In place of a target: what is checked and acquired, and need not be again.
  const granted: unknown = keeper;
  const lock = new DistributedLock(granted as LockTarget, "", "", 0);
  if (others.length > 0) join(lock, others.map((other) => handle(other)));
  return lock;
}

/** A held lock on its way to another process: see `DistributedLock.toJSON()`. */
export interface LockJSON {
  /** What is locked. */
  key: string;
  /** The owner: a secret, like the lock itself. */
  owner: string;
  /** The `ttl` that it was acquired with, in seconds. */
  ttl: number;
  /** Whether it is renewed in the background. */
  autoExtend: boolean;
  /** For how many more milliseconds it may be held, if that is limited. */
  maxHoldMs?: number;
  /** Its fencing token, if one was drawn. */
  fencingToken?: number;
  /** Whether its lease is still the short one that comes with a turn in line. */
  isShort?: boolean;
  /** The same of each further key, where there are several. */
  others?: LockJSON[];
}

/**
 * Ends a hold that nobody will look at again: told is only a loss that came
 * before this. A release that fails is tried again in the background.
 */
let finish: (lock: DistributedLock) => Promise<LockLostError | undefined>;
let leaveTurns: (lock: DistributedLock) => void;
/** Makes one lock of several keys of locks of one. */
let join: (lock: DistributedLock, others: readonly DistributedLock[]) => void;
/** What a lock was granted: one claim for each key. */
let claimsOf: (lock: DistributedLock) => readonly Claim[];

/**
 * Adds `byMs` milliseconds to what is left of a lock's lease, or takes them off,
 * for an older API.
 *
 * @returns `false` where nothing would be left: then nothing was done.
 * @throws As `extend()` of a lock does.
 */
export let prolong: (lock: DistributedLock, byMs: number) => Promise<boolean>;

/**
 * Gives a held lock an owner of the caller's choice, for an older API: another
 * handle for it, while that one holds no more. `null` where it is not held.
 *
 * Acquired under a name of our own draw, as two who choose the same name would
 * both be taken for the holder.
 */
export let rename: (
  lock: DistributedLock,
  owner: string,
) => Promise<DistributedLock | null>;

/** Renews a held lock in the background from now on, or no more. */
export let keepExtending: (lock: DistributedLock, isWanted: boolean) => void;

/**
 * One lock: held once {@linkcode acquireLock} hands it out, then released or
 * lost.
 *
 * Whether it is held is judged whenever it is asked, by the clocks of this
 * machine and a little before the server's own expiry: it is never `true` when
 * somebody else could have the lock, also right after the process was stalled.
 *
 * @example
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const lock = await acquireLock(memory(), "report", { ttl: 10 });
 * if (!lock.isAcquired() || lock.remainingMs > 10_000) throw new Error("?");
 * if (!await lock.release()) throw new Error("it was lost before");
 * if (lock.isAcquired()) throw new Error("?");
 * ```
 */
export class DistributedLock implements AsyncDisposable {
  static {
    finish = (lock) => lock.#finish();
    leaveTurns = (lock) => {
      for (const one of lock.#all) one.#leaveTurn();
    };
    join = (lock, others) => void (lock.#others = others);
    claimsOf = (lock) => lock.#all.map((one) => one.#claim);
    prolong = (lock, byMs) => lock.#prolong(byMs);
    rename = (lock, owner) => lock.#rename(owner);
    keepExtending = (lock, isWanted) => lock.#keepExtending(isWanted);
  }

  readonly #backend: Backend;
  #terms: Terms;
  #claim: Claim;
  #keeper: Keeper | undefined;
  /** Whether the owner is our own draw, so that each hold can have another. */
  readonly #isDrawn: boolean;
  #wasHandedOver = false;
  /** Whether something of ours may be on the server. */
  #mayBeThere: boolean;
  /** Whether a release went unanswered, and may have freed it all the same. */
  #mayBeFreed = false;
  /** Freed by a call that failed for another key: the next one says so. */
  #isUntold = false;
  #acquiring: Promise<boolean> | undefined;
  #releasing: Promise<unknown> | undefined;
  /** Of several keys: a lock for each but the first. They go as one. */
  #others: readonly DistributedLock[] = ALONE;
  #controller: AbortController | undefined;

  /**
   * A lock that is yet to be acquired, by {@linkcode acquire}, under an owner
   * of the caller's choice. Most callers want {@linkcode acquireLock}.
   *
   * @param on Where the lock lives; see {@linkcode acquireLock}.
   * @param key What to lock.
   * @param value The owner: random, known to nobody else, and another for
   * each lock, or two will take themselves for one.
   * @param ttl Seconds that the server keeps a silent hold.
   * @throws {TypeError | RangeError} An argument is bad.
   *
   * @example
   * ```ts
   * import { DistributedLock } from "@dreamer/utils/lock";
   * import { memory } from "@dreamer/utils/lock/memory";
   *
   * const owner = crypto.randomUUID();
   * const lock = new DistributedLock(memory(), "report", owner, 10);
   * if (await lock.acquire()) await lock.release();
   * ```
   */
  constructor(on: LockTarget, key: string, value: string, ttl: number) {
    this.#isDrawn = this.#mayBeThere = on instanceof Keeper;
    if (on instanceof Keeper) {
      this.#backend = on.backend;
      this.#keeper = on;
      this.#claim = on.claim;
      // What ended the waiting says nothing of another try.
      this.#terms = on.terms.signal === undefined
        ? on.terms
        : { ...on.terms, signal: undefined };
      return;
    }
    this.#terms = PLAIN;
    const action = "make a lock";
    this.#backend = connect(on);
    checkKey(action, key);
    if (typeof value !== "string") {
      wrongType(action, "value must be a string", value, kindOf(value));
    }
    if (value === "") outOfRange(action, "value must not be empty", value);
    this.#claim = { key, owner: value, ttlMs: readTtl(action, ttl) };
  }

  /** This and the others: a lock for each key. */
  get #all(): readonly DistributedLock[] {
    return [this, ...this.#others];
  }

  /** What is locked; of several keys the first in their order. */
  get key(): string {
    return this.#claim.key;
  }

  /** All that is locked: each key once, sorted. */
  get keys(): readonly string[] {
    return this.#all.map(({ key }) => key);
  }

  /**
   * The name of this hold on the server: random, with the label behind it.
   * Whoever knows it can release the lock, so it belongs in no log.
   */
  get owner(): string {
    return this.#claim.owner;
  }

  /**
   * The fencing token, if one was asked for: a safe integer, greater than that
   * of every hold of this key before. Send it along with each write, and let
   * the resource refuse a token smaller than the greatest that it has seen: so
   * a holder who was stopped, and does not know yet that it is late, does no
   * harm. See {@linkcode fencedSet} for a resource on the same Redis.
   *
   * It is the server's time in microseconds, or one more than the last token if
   * that is greater (Kleppmann, "How to do distributed locking", 2016, for what
   * it is good for).
   */
  get fencingToken(): number | undefined {
    return this.#keeper?.fencingToken;
  }

  /** The fencing token of each key, where they were asked for. */
  get fencingTokens(): ReadonlyMap<string, number> {
    return new Map(
      this.#all.flatMap(({ key, fencingToken }) =>
        fencingToken === undefined ? [] : [[key, fencingToken]]
      ),
    );
  }

  /**
   * Aborts with {@linkcode LockLostError} once the lock is lost; a release
   * leaves it as it is. Of a lock that was never acquired it is aborted from
   * the start, with a {@linkcode LockError}.
   *
   * Reading `aborted` does not wait for a timer: after a stall of the process
   * the first read tells the truth.
   */
  get signal(): AbortSignal {
    const own = this.#keeper?.signal;
    if (own === undefined) return AbortSignal.abort(this.#notHeld());
    return this.#others === ALONE ? own : this.#commonSignal(own);
  }

  /** Aborts with the first loss of any of several keys. */
  #commonSignal(own: AbortSignal): AbortSignal {
    if (this.#controller === undefined) {
      const controller = this.#controller = new AbortController();
      const all = [own, ...this.#others.map(({ signal }) => signal)];
      // Each of them judges as it is read, and tells of a loss then.
      let isOver = false;
      const judge = () => {
        // Aborting looks at the signal as well.
        const lost = isOver ? undefined : all.find(({ aborted }) => aborted);
        if (lost === undefined) return;
        isOver = true;
        controller.abort(lost.reason);
      };
      for (const one of all) one.addEventListener("abort", judge);
      judgeWhenRead(controller.signal, judge);
      judge();
    }
    return this.#controller.signal;
  }

  /**
   * Milliseconds for which the lock is sure to be ours if nothing is done: what
   * the server keeps it for, less the time of the request and an allowance for
   * clocks that run at different speeds (1 % and 2 ms). 0 if it is not held.
   */
  get remainingMs(): number {
    const own = this.#keeper?.remainingMs ?? 0;
    return this.#others === ALONE
      ? own
      : Math.min(own, ...this.#others.map(({ remainingMs }) => remainingMs));
  }

  /** Whether it is held right now. Asks nobody: see {@linkcode remainingMs}. */
  isAcquired(): boolean {
    return this.remainingMs > 0;
  }

  /**
   * Does nothing while the lock is held.
   *
   * @throws {LockLostError} It was lost.
   * @throws {LockError} It was released or never acquired, or the clocks of this
   * machine have come to disagree and it is not known yet (`LOCK_NOT_HELD`).
   */
  assertHeld(): void {
    if (this.#keeper !== undefined && this.#keeper.remainingMs > 0) {
      for (const other of this.#others) other.assertHeld();
      return;
    }
    throw this.#keeper?.loss ?? this.#notHeld();
  }

  /**
   * Makes one attempt to acquire the lock, as it was acquired before; but
   * `replicas` are not asked again.
   *
   * @returns `true` if it is held now, also if it was before; `false` if it is
   * taken.
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {LockLostError} Of several keys, one was lost before the last came.
   * @throws {LockError} It was handed over by `toJSON()`, and the owner is one of
   * the caller's choice (`LOCK_NOT_HELD`).
   */
  acquire(): Promise<boolean> {
    if (this.isAcquired()) return Promise.resolve(true);
    return this.#acquiring ??= this.#acquire().finally(() => {
      this.#acquiring = undefined;
    });
  }

  async #acquire(): Promise<boolean> {
    // Under the same owner the server would take two handles for one.
    if (this.#wasHandedOver && !this.#isDrawn) throw this.#notHeld();
    // A release under way, or one that failed, could free the new hold.
    await this.release();
    if (this.#keeper !== undefined && this.#isDrawn) {
      const label = labelOf(this.#claim.owner);
      const owner = drawOwner(label, undefined, this.#terms.fencing);
      this.#claim = { ...this.#claim, owner };
    }
    const { key, owner } = this.#claim;
    const answer = await acquire(
      this.#backend,
      this.#claim,
      this.#terms,
      telling(this.#backend, key, labelOf(owner), same),
    );
    if (!(answer instanceof Keeper)) return false;
    this.#keeper = answer;
    this.#mayBeThere = true;
    this.#mayBeFreed = this.#wasHandedOver = false;
    this.#controller = undefined;
    if (this.#others === ALONE) return true;
    let areOurs = false;
    try {
      for (const other of this.#others) {
        if (!await other.acquire()) return false;
      }
      // The first may be over by the time of the last.
      this.assertHeld();
      return areOurs = true;
    } finally {
      // Without all of several keys there is no use in some.
      if (!areOurs) await this.#finish();
    }
  }

  /**
   * Makes the lock last `ttl` seconds from now, which may be less than is left.
   * Of a lock that is renewed, the next renewal makes it the first `ttl` again
   * where it is less. After one without an answer, which may come about at any
   * time, a later one counts for no longer than that.
   *
   * @param ttl Seconds; by default as many as it was acquired for.
   * @throws {LockLostError} It was lost, or is as of now.
   * @throws {LockBackendError} The server could not be asked, or failed; the
   * lock is held for as long as it was anyway, or for `ttl` if that is less.
   * @throws {LockError} It was released or never acquired, or the clocks of this
   * machine have come to disagree and it is not known yet (`LOCK_NOT_HELD`).
   * @throws {TypeError | RangeError} `ttl` is bad; nothing was sent.
   */
  async extend(ttl?: number): Promise<void> {
    const ttlMs = ttl === undefined
      ? this.#claim.ttlMs
      : readTtl(`extend "${this.key}"`, ttl);
    this.assertHeld();
    await (this.#others === ALONE ? this.#keeper!.extend(ttlMs) : Promise.all([
      this.#keeper!.extend(ttlMs),
      ...this.#others.map((other) => other.extend(ttl)),
    ]));
    this.assertHeld();
  }

  async #prolong(byMs: number): Promise<boolean> {
    this.assertHeld();
    const all = this.#all.map((one) => one.#keeper!);
    const areLeft = await Promise.all(all.map((one) => one.prolong(byMs)));
    if (!areLeft.every((isLeft) => isLeft)) return false;
    this.assertHeld();
    return true;
  }

  async #rename(owner: string): Promise<DistributedLock | null> {
    const backend = this.#backend;
    const keeper = this.#keeper!;
    let verdict: Verdict;
    try {
      verdict = await backend.rename!(this.#claim, owner);
    } catch (error) {
      // It may have come about: one of the two names is what is to be freed.
      this.#leaveTurn();
      backend.discard({ ...this.#claim, owner });
      void this.#finish();
      throw error;
    }
    const { lease, terms } = keeper;
    const claim = { ...this.#claim, owner };
    this.#leaveTurn();
    if (verdict !== "done" || lease === undefined) {
      if (verdict === "done") backend.discard(claim);
      else void this.#finish();
      return null;
    }
    keeper.release();
    this.#mayBeThere = false;
    const { asked, ms, isShort } = lease;
    const renamed = new Keeper(
      backend,
      claim,
      asked,
      terms,
      keeper.fencingToken,
      ms,
      isShort,
    );
    renamed.watch();
    return handle(renamed);
  }

  /** Nobody else of us goes on with this hold, which may not be ours any more. */
  #leaveTurn(): void {
    const keeper = this.#keeper!;
    keeper.turn?.drop(this.owner);
    keeper.turn = undefined;
  }

  #keepExtending(isWanted: boolean): void {
    this.#terms = { ...this.#terms, autoExtend: isWanted };
    this.#keeper?.keepOn(this.#terms);
    for (const other of this.#others) other.#keepExtending(isWanted);
  }

  /**
   * Frees the lock. Harmless if it is not ours any more, and cheap the second
   * time: then nothing is sent.
   *
   * It waits for the answer for as long as the client does.
   *
   * @returns `true` if this call freed it; `false` if it was not ours to free.
   * @throws {LockBackendError} The server could not be asked, or failed. The
   * lock counts as released all the same: it expires, if not released again.
   */
  release(): Promise<boolean> {
    const acquiring = this.#acquiring;
    if (acquiring !== undefined) {
      // What is under way is to be given back as well.
      return acquiring.then(() => this.release(), () => this.release());
    }
    if (this.#others === ALONE) return this.#release();
    const locks = this.#all;
    const all = locks.map((one) => one.#release());
    this.#backend.flush?.();
    // All of them before one's failure is told: none is given up for another.
    return Promise.allSettled(all).then(async (outcomes) => {
      if (outcomes.some(({ status }) => status === "rejected")) {
        // Of those that were freed nobody is told: the next call tells of all.
        for (const [i, outcome] of outcomes.entries()) {
          locks[i].#isUntold = outcome.status === "fulfilled" && outcome.value;
        }
      }
      const freed = await Promise.all(all);
      return freed.every((isFreed) => isFreed);
    });
  }

  #release(): Promise<boolean> {
    if (this.#releasing !== undefined) {
      // Told "freed" is one call only; where that one fails, this one tries.
      return this.#releasing.then(() => false, () => this.#release());
    }
    if (!this.#mayBeThere) {
      const isUntold = this.#isUntold;
      this.#isUntold = false;
      return Promise.resolve(isUntold);
    }
    this.#isUntold = false;
    return this.#free((verdict) => verdict === "done");
  }

  /** Releases what may be there, and passes on what `then` makes of it. */
  #free<T>(
    then: (verdict: Verdict, loss: LockLostError | undefined) => T,
  ): Promise<T> {
    const backend = this.#backend;
    const keeper = this.#keeper!;
    let begunAt = backend.onEvent && clockOf(backend).now();
    const heldMs = begunAt === undefined ? 0 : keeper.heldMs;
    const { turn } = keeper;
    let lease = turn?.toPassOn(keeper);
    if (lease !== undefined) {
      // To another of this process: the server need not know.
      this.#mayBeThere = false;
      if (begunAt !== undefined) {
        this.#tellOfRelease(heldMs, begunAt);
        begunAt = undefined;
        // Whoever was told may have called off the one who was to have it.
        lease = turn!.toPassOn(keeper);
      }
      if (lease !== undefined) {
        keeper.passOn(lease);
        return Promise.resolve(then("done", undefined));
      }
      this.#mayBeThere = true;
    }
    keeper.release(turn?.isFollowed);
    const done = (verdict: Verdict): T => {
      this.#releasing = undefined;
      this.#mayBeThere = false;
      let { loss } = keeper;
      if (verdict === "done") {
        if (begunAt !== undefined) this.#tellOfRelease(heldMs, begunAt);
      } else if (loss === undefined && !keeper.isOver && !this.#mayBeFreed) {
        // Gone before its time: somebody else could be inside since.
        if (verdict === "taken") loss = keeper.wasLost("taken", heldMs);
        if (verdict === "absent") loss = keeper.wasLost("deleted", heldMs);
      }
      return then(verdict, loss);
    };
    const failed = (error: unknown): never => {
      this.#releasing = undefined;
      this.#mayBeFreed = true;
      if (begunAt !== undefined) this.#tellOfRelease(heldMs, begunAt, error);
      throw error;
    };
    const claim = this.#claim;
    const releasing = turn !== undefined
      ? turn.end(claim, done, failed)
      : backend.releaseThen !== undefined
      ? backend.releaseThen(claim, this.#others !== ALONE, done, failed)
      : backend.release(claim).then(done, failed);
    this.#releasing = releasing;
    return releasing;
  }

  #tellOfRelease(heldMs: number, begunAt: number, error?: unknown): void {
    const tookMs = clockOf(this.#backend).now() - begunAt;
    this.#keeper!.tell(
      error === undefined
        ? { type: "released", heldMs, tookMs }
        : { type: "release-failed", heldMs, tookMs, error },
    );
  }

  /**
   * Releases, so that `await using` gives the lock back at the end of a block.
   * A release that fails is tried again in the background and not told; an
   * answer is waited for no longer than the lease lasts.
   *
   * @throws {LockLostError} The lock was lost before the end of the block.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const acquiring = this.#acquiring;
    if (acquiring !== undefined) {
      const { ttlMs } = this.#claim;
      try {
        await within(clockOf(this.#backend), ttlMs, () => acquiring);
      } catch {
        // Without an answer so far: what comes of it is given back then.
        acquiring.then(() => this.#finish(), () => {});
      }
    }
    const loss = await this.#finish();
    if (loss !== undefined) throw loss;
  }

  async #finish(): Promise<LockLostError | undefined> {
    if (this.#others === ALONE) return await this.#finishOne();
    const losses = await Promise.all(
      this.#all.map((one) => one.#finishOne()),
    );
    return losses.find((loss) => loss !== undefined);
  }

  async #finishOne(): Promise<LockLostError | undefined> {
    const keeper = this.#keeper;
    const clock = clockOf(this.#backend);
    // From then on nobody is kept out: a server that says nothing until then
    // is not waited for any longer.
    const until = clock.now() + (keeper?.remainingMs || this.#claim.ttlMs);
    const answered = <T>(releasing: Promise<T>) =>
      // Passed on inside the process, no answer has to come.
      this.#releasing === undefined
        ? releasing
        : within(clock, until - clock.now(), () => releasing);
    if (this.#releasing !== undefined) {
      await answered(this.#releasing).catch(() => {});
    }
    const loss = keeper?.loss;
    if (!this.#mayBeThere) return loss;
    if (loss?.reason === "unreachable") {
      // Known already, and no answer is to be waited for.
      this.#backend.discard(this.#claim);
      return loss;
    }
    try {
      return await answered(this.#free((_, loss) => loss));
    } catch {
      if (clock.now() < until) this.#backend.discard(this.#claim);
    }
    return loss;
  }

  /**
   * Lets go of the lock without releasing it, so that another process can go
   * on with it: `JSON.stringify(lock)` here, {@linkcode DistributedLock.resume}
   * there. From now on this handle holds nothing and renews nothing, and the
   * lease has to last until the other has resumed it.
   *
   * What comes out lets whoever has it release the lock: it belongs in no log.
   * And it is to be resumed once: who resumes it twice has two holders.
   *
   * @throws {LockLostError} It was lost.
   * @throws {LockError} It was released or never acquired; or it is just being
   * extended, or was without an answer, which may be done yet (`LOCK_NOT_HELD`).
   *
   * @example
   * ```ts
   * import { acquireLock, DistributedLock } from "@dreamer/utils/lock";
   * import { memory } from "@dreamer/utils/lock/memory";
   *
   * const here = memory();
   * const lock = await acquireLock(here, "report", { ttl: 10 });
   * const message = JSON.stringify(lock); // … sent to another process …
   * if (lock.isAcquired()) throw new Error("held twice");
   * const resumed = await DistributedLock.resume(here, message);
   * await resumed.release();
   * ```
   */
  toJSON(): LockJSON {
    this.assertHeld();
    const keeper = this.#keeper!;
    const { key, owner, ttlMs } = this.#claim;
    if (this.#all.some((one) => one.#keeper!.mayBeCut)) {
      // It could cut the lease short after the other has asked what is left.
      const why = "is being extended, or was without an answer";
      const message = `The lock "${key}" can't be handed over: it ${why}`;
      throw new LockError("LOCK_NOT_HELD", key, message);
    }
    const { autoExtend, maxHoldMs } = this.#terms;
    const json: LockJSON = { key, owner, ttl: ttlMs / 1000, autoExtend };
    if (maxHoldMs < Infinity) json.maxHoldMs = maxHoldMs - keeper.heldMs;
    if (keeper.fencingToken !== undefined) {
      json.fencingToken = keeper.fencingToken;
    }
    if (keeper.lease?.isShort) json.isShort = true;
    if (this.#others !== ALONE) {
      json.others = this.#others.map((other) => other.toJSON());
    }
    this.#leaveTurn();
    keeper.release();
    this.#mayBeThere = false;
    this.#wasHandedOver = true;
    return json;
  }

  /**
   * Goes on with a lock that another process let go of by
   * {@linkcode DistributedLock.toJSON}: asks the server what is left of it, and
   * renews it if it was renewed there.
   *
   * @param on Where the lock lives; see {@linkcode acquireLock}.
   * @param json What came out of `toJSON()`, or its text.
   * @returns The held lock.
   * @throws {LockLostError} It is gone, or somebody else has it.
   * @throws {LockBackendError} The server could not be asked, or failed.
   * @throws {TypeError | RangeError} `json` is no lock's; nothing was sent.
   */
  static async resume(
    on: LockTarget,
    json: LockJSON | string,
  ): Promise<DistributedLock> {
    const backend = connect(on);
    const handedOver = readJSON("resume a lock", json);
    const all = await Promise.allSettled(
      handedOver.map((one) => resumeOne(backend, one)),
    );
    const keepers = all.flatMap((one) =>
      one.status === "fulfilled" ? [one.value] : []
    );
    const failed = all.find((one) => one.status === "rejected");
    if (failed !== undefined) {
      // Of several keys all or none: nobody gets a handle to release the rest.
      await Promise.all(
        keepers.map((keeper) => finish(handle(keeper))),
      );
      throw failed.reason;
    }
    const [first, ...others] = keepers;
    return handle(first, others);
  }

  #notHeld(): LockError {
    const why = this.#keeper === undefined
      ? "it was never acquired"
      : this.#keeper.isInDoubt
      ? "the clocks of this machine disagree, and the server is being asked"
      : this.#wasHandedOver
      ? "it was handed over"
      : "it was released";
    return new LockError(
      "LOCK_NOT_HELD",
      this.key,
      `The lock "${this.key}" is not held: ${why}`,
    );
  }
}

/** The others of a lock of one key. */
const ALONE: readonly DistributedLock[] = [];

/** How a lock is kept that nobody said anything about. */
const PLAIN: Terms = {
  autoExtend: false,
  maxHoldMs: Infinity,
  fencing: false,
};

/** What is gone on with. */
interface HandedOver {
  readonly claim: Claim;
  readonly terms: Terms;
  readonly fencingToken: number | undefined;
  readonly isShort: boolean;
}

/** Asks what is left of a hold, and keeps it from there. */
async function resumeOne(
  backend: Backend,
  { claim, terms, fencingToken, isShort }: HandedOver,
): Promise<Keeper> {
  const asked = moment(clockOf(backend));
  const { verdict, leftMs } = await backend.inquire(claim);
  if (verdict !== "done") {
    const reason = verdict === "taken" ? "taken" : "expired";
    throw new LockLostError(claim.key, reason);
  }
  const keeper = new Keeper(
    backend,
    claim,
    asked,
    terms,
    fencingToken,
    leftMs,
    isShort,
  );
  keeper.watch();
  try {
    handle(keeper).assertHeld();
  } catch (error) {
    // Nobody gets a handle, so nobody could end its renewal.
    keeper.release();
    throw error;
  }
  return keeper;
}

/** Checks what was handed over: it may come from anywhere. */
function readJSON(action: string, json: LockJSON | string): HandedOver[] {
  let from: Partial<LockJSON> | null;
  try {
    from = typeof json === "string" ? JSON.parse(json) : json;
  } catch {
    from = null;
  }
  if (typeof from !== "object" || from === null) {
    wrongType(action, "json must be what toJSON() gave", json, kindOf(json));
  }
  const { key, owner, ttl, autoExtend, isShort = false, others = [] } = from;
  checkKey(action, key);
  if (typeof owner !== "string" || owner === "") {
    wrongType(action, "owner must be a string", owner, kindOf(owner));
  }
  checkBoolean(action, "autoExtend", autoExtend);
  checkBoolean(action, "isShort", isShort);
  if (!Array.isArray(others)) {
    wrongType(action, "others must be an array", others);
  }
  const { maxHoldMs, fencingToken } = from;
  checkNumber(action, "maxHoldMs", maxHoldMs, "> 0");
  checkNumber(action, "fencingToken", fencingToken, "> 0");
  if (fencingToken !== undefined && !Number.isSafeInteger(fencingToken)) {
    const rule = "fencingToken must be a safe integer";
    outOfRange(action, rule, fencingToken);
  }
  const terms: Terms = {
    autoExtend,
    maxHoldMs: maxHoldMs ?? Infinity,
    fencing: fencingToken !== undefined,
  };
  const claim: Claim = { key, owner, ttlMs: readTtl(action, ttl) };
  return [
    { claim, terms, fencingToken, isShort },
    ...others.flatMap((other) => readJSON(action, other)),
  ];
}
