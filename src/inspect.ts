/** A window on locks from outside: who holds what, and freeing it by force. */

import { connect, type LockTarget } from "./connect.ts";
import type { Backend, Standee } from "./core/backend.ts";
import { isOurs, labelOf } from "./core/keys.ts";
import {
  checkKey,
  checkOptions,
  kindOf,
  outOfRange,
  readTtl,
  wrongType,
} from "./core/options.ts";

/** One who stands in line for a lock, seen from outside. */
export interface LockWaiter {
  /** Its label, if it gave one. */
  label?: string;
  /** Milliseconds since it, or those who stand there with it, last came. */
  waitedMs: number;
}

/** What can be seen of a lock from outside. */
export interface LockInfo {
  /** What is locked, or not. */
  key: string;
  /** Whether anybody holds it. */
  held: boolean;
  /** The label of the holder, if it gave one. Its owner stays a secret. */
  label?: string;
  /**
   * Whether the hold is of a program that knows nothing of this library, or the
   * string under the key no lock at all.
   */
  isForeign?: boolean;
  /**
   * Milliseconds for which the holder has had it, to within the 10 ms of a turn
   * in line. On a server that is known of those that draw a fencing token: it
   * is the time at which they did.
   */
  heldMs?: number;
  /**
   * Milliseconds until the hold ends unless it is renewed before; missing where
   * nobody holds it, or where a key without an expiry is in its place.
   */
  remainingMs?: number;
  /**
   * The last fencing token drawn, remembered for a day; not all holds draw. It
   * may be greater than the holder's: a turn in line draws several at once.
   */
  fencingToken?: number;
  /**
   * How many stand in line for it: those of one process who gave the same label
   * count as one, unless `localTurns` is 0. Missing where there is no line to be
   * seen, as of a quorum.
   */
  waiting?: number;
  /** The first 100 of them, in their order. */
  line?: LockWaiter[];
}

/**
 * Looks at a lock without touching it.
 *
 * @param on Where the lock lives; see {@linkcode acquireLock}.
 * @param key What to look at. Any string under it counts as a lock, also that
 * of another library.
 * @returns What is to be seen, as of when the server answered.
 * @throws {LockBackendError} The server could not be asked, or what is under
 * the key is no string.
 * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
 *
 * @example
 * ```ts
 * import { acquireLock, inspectLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * await using _ = await acquireLock(here, "report", { label: "web-3" });
 * const { held, label, remainingMs } = await inspectLock(here, "report");
 * if (!held || label !== "web-3" || remainingMs! > 30_000) throw new Error();
 * ```
 */
export async function inspectLock(
  on: LockTarget,
  key: string,
): Promise<LockInfo> {
  const action = "inspect a lock";
  checkKey(action, key);
  const backend = able(connect(on), "inspect", action, INSPECTED);
  const entry = await backend.inspect(key);
  const { owner, leftMs, heldMs, fencingToken, waiting, line } = entry;
  const info: LockInfo = { key, held: owner !== undefined };
  if (owner !== undefined) {
    if (!isOurs(owner)) info.isForeign = true;
    const label = labelOf(owner);
    if (label !== undefined) info.label = label;
    if (heldMs !== undefined) info.heldMs = heldMs;
    if (leftMs !== undefined) info.remainingMs = leftMs;
  }
  if (fencingToken !== undefined) info.fencingToken = fencingToken;
  if (waiting !== undefined) info.waiting = waiting;
  if (line !== undefined) info.line = line.map(toWaiter);
  return info;
}

function toWaiter({ owner, waitedMs }: Standee): LockWaiter {
  const label = labelOf(owner);
  return label === undefined ? { waitedMs } : { label, waitedMs };
}

/**
 * All locks whose key matches `pattern`, by and by: by SCAN, on every master,
 * which holds nobody up but takes time where there are many keys of any kind.
 *
 * Every string key that matches is taken for a lock, but for those that are
 * named as what stands beside one (`{…}…:line`, `:fence`, `:seen`, `:watch`). One
 * that was acquired or released meanwhile may or may not be there; none comes
 * twice.
 *
 * @param on Where the locks live; see {@linkcode acquireLock}.
 * @param pattern A glob pattern as of Redis: `*`, `?`, `[a-z]`, and a
 * backslash before one of these to mean itself.
 * @throws {LockBackendError} The server could not be asked.
 * @throws {TypeError | RangeError} An argument is bad, or the client can't SCAN;
 * nothing was sent.
 *
 * @example
 * ```ts
 * import { acquireLock, listLocks } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * await using _ = await acquireLock(here, "lock:report:7");
 * for await (const { key, remainingMs } of listLocks(here, "lock:*")) {
 *   console.log(key, remainingMs);
 * }
 * ```
 */
export async function* listLocks(
  on: LockTarget,
  pattern: string,
): AsyncGenerator<LockInfo, void, void> {
  const action = "list locks";
  if (typeof pattern !== "string") {
    wrongType(action, "pattern must be a string", pattern);
  }
  if (pattern === "") outOfRange(action, "pattern must not be empty", pattern);
  const backend = able(connect(on), "scan", action, SCANNED);
  const seen = new Set<string>();
  for await (const key of backend.scan(pattern)) {
    if (seen.has(key)) continue;
    seen.add(key);
    const info = await inspectLock(on, key);
    if (info.held) yield info;
  }
}

/**
 * Frees a lock whoever holds it, for the next in line. A holder that once waited
 * for it and can be called is told at once; one that is renewed, with its next
 * renewal; any other when it extends or releases it. Until then it may go on,
 * and two hold the lock: for a holder that is known to be gone, or wrong.
 *
 * @param on Where the lock lives; see {@linkcode acquireLock}.
 * @param key What to free.
 * @returns Whether anybody held it.
 * @throws {LockBackendError} The server could not be asked, or what is under
 * the key is no string and hence no lock: it is left alone.
 * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
 *
 * @example
 * ```ts
 * import { acquireLock, forceRelease } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * const lock = await acquireLock(here, "report");
 * if (!await forceRelease(here, "report")) throw new Error("nobody had it");
 * if (await lock.release()) throw new Error("still ours");
 * ```
 */
export async function forceRelease(
  on: LockTarget,
  key: string,
): Promise<boolean> {
  const action = "free a lock";
  checkKey(action, key);
  const backend = able(connect(on), "forceRelease", action, INSPECTED);
  return await backend.forceRelease(key);
}

/** How {@linkcode fencedSet} writes. */
export interface FencedSetOptions {
  /**
   * Seconds to keep the value, and with it the memory of its token. Default:
   * both stay until deleted.
   */
  ttl?: number | undefined;
}

/**
 * Writes a string to Redis unless a holder with a greater fencing token has
 * written before: the resource's half of fencing, for one that lives on the
 * same server. Checked and written in one step.
 *
 * The newest token is remembered beside `key`, as `{key}:seen`, as long as the
 * value. All writers of a key have to write like this.
 *
 * @param on Where to write; see {@linkcode acquireLock}.
 * @param key Where to write to; not the lock's own key.
 * @param value What to write.
 * @param fencingToken Of the lock that guards it: `lock.fencingToken`.
 * @param options For how long.
 * @returns `true` if it was written, `false` if the token was too old.
 * @throws {LockBackendError} The server could not be asked, or failed.
 * @throws {TypeError | RangeError} An argument is bad; nothing was sent.
 *
 * @example
 * ```ts
 * import { fencedSet, withLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * await withLock(here, "lock:report:7", async (lock) => {
 *   if (!await fencedSet(here, "report:7", "…", lock.fencingToken!)) {
 *     throw new Error("a later holder was here before us");
 *   }
 * }, { fencing: true });
 * ```
 */
export async function fencedSet(
  on: LockTarget,
  key: string,
  value: string,
  fencingToken: number,
  options: FencedSetOptions = {},
): Promise<boolean> {
  const action = "write";
  checkKey(action, key);
  if (typeof value !== "string") {
    wrongType(action, "value must be a string", value, kindOf(value));
  }
  const rule = "fencingToken must be a positive safe integer";
  if (typeof fencingToken !== "number") wrongType(action, rule, fencingToken);
  if (!Number.isSafeInteger(fencingToken) || fencingToken < 1) {
    outOfRange(action, rule, fencingToken);
  }
  checkOptions(action, options, new Set(["ttl"]));
  const { ttl } = options;
  const ttlMs = ttl === undefined ? undefined : readTtl(action, ttl);
  const backend = able(connect(on), "writeFenced", action, FENCED);
  return await backend.writeFenced({ key, value, fencingToken, ttlMs });
}

/** Where that can be done. */
const INSPECTED = "a client, or a backend that can be looked into";
const SCANNED = "a client that can SCAN";
const FENCED = "one server, and no quorum";

/** One that has `Member`. */
type Able<Member extends keyof Backend> =
  & Backend
  & { [name in Member]: NonNullable<Backend[name]> };

/** `backend`, which has `member`, or a sentence that it has not. */
function able<Member extends keyof Backend>(
  backend: Backend,
  member: Member,
  action: string,
  what: string,
): Able<Member> {
  if (backend[member] === undefined) {
    wrongType(action, `\`on\` must be ${what}`, backend, backend.name);
  }
  return backend as Able<Member>;
}
