/**
 * Waiting where there is no line: trying again and again, and earlier where one
 * is told that it is worth a try.
 */

import { acquire, unlessAborted } from "./acquire.ts";
import { type Backend, type Claim, clockOf, type Refusal } from "./backend.ts";
import { isPassing, isSilence, LockBackendError } from "./errors.ts";
import type { Keeper, Terms } from "./keeper.ts";
import { drawOwner } from "./keys.ts";

/** Between two tries, at first and at most. */
const FIRST_MS = 10;
const LAST_MS = 150;
/**
 * The same of who is called anyway: the first of them asks this often, should a
 * call be lost, the second half as often, and so on down to the last.
 */
const CALLED_MS = 160;
const CALLED_LAST_MS = 2_000;

/** Terms whose signal also says that patience is over. */
export interface PatientTerms extends Terms {
  readonly signal: AbortSignal;
}

/** Those of this process who wait for one key: the first tries for all. */
interface Group {
  readonly members: Member[];
  /** The last word on the key that any of them heard. */
  last: Refusal | LockBackendError | undefined;
}

/** One of a group who is not the first, or was not. */
interface Member {
  /** It is the first now. */
  lead(): void;
  /** The servers could not be asked. */
  fail(error: LockBackendError): void;
}

/** The groups of each backend, by key. */
const groups = new WeakMap<Backend, Map<string, Group>>();

/** Joins those who wait for `key`; the turn is to be waited for, if there is one. */
function join(
  backend: Backend,
  key: string,
): { group: Group; turn: Promise<void> | undefined; leave: () => void } {
  let all = groups.get(backend);
  if (all === undefined) groups.set(backend, all = new Map());
  let group = all.get(key);
  if (group === undefined) {
    all.set(key, group = { members: [], last: undefined });
  }
  const { members } = group;
  let lead = () => {};
  let fail: Member["fail"] = () => {};
  const turn = members.length === 0
    ? undefined
    : new Promise<void>((resolve, reject) => {
      lead = resolve;
      fail = reject;
    });
  // It may fail when nobody waits for it any more.
  turn?.catch(() => {});
  const member = { lead, fail };
  members.push(member);
  const leave = () => {
    const at = members.indexOf(member);
    if (at >= 0) members.splice(at, 1);
    if (at === 0) members[0]?.lead();
    if (members.length === 0 && all.get(key) === group) all.delete(key);
  };
  return { group, turn, leave };
}

/** The group of one who waits for nobody. */
function alone(): ReturnType<typeof join> {
  const group: Group = { members: [], last: undefined };
  return { group, turn: undefined, leave: () => {} };
}

/**
 * Tries again and again, with pauses that differ, or all would try at once. Of
 * those of a process who can be called only the first tries, in their order:
 * they would take each other's votes.
 *
 * @param terms With a signal, which aborts with `late` when patience ends.
 * @param first What the first try came to, if that was made already.
 * @throws The signal's reason, as a rejection; but for `late` the last refusal
 * is the result, where there was one.
 * @throws {LockBackendError} As a rejection: the server could not be asked.
 */
export async function poll(
  backend: Backend,
  claim: Claim,
  terms: PatientTerms,
  late: LockBackendError,
  label: string | undefined,
  first?: Refusal,
): Promise<Keeper | Refusal> {
  const { signal } = terms;
  const { key } = claim;
  const clock = clockOf(backend);
  const watch = backend.watch?.(key);
  const { group, turn, leave } = watch === undefined
    ? alone()
    : join(backend, key);
  // As long as nobody listens, nothing is opened for a key that may be free.
  let isWatching = turn !== undefined || (watch?.isHeard ?? false);
  let isCalled = false;
  let wake = () => {};
  if (watch !== undefined) {
    watch.onCall = () => {
      isCalled = true;
      wake();
    };
  }
  try {
    if (turn !== undefined) await unlessAborted(signal, turn);
    if (isWatching) await unlessAborted(signal, watch!.open());
    for (let pauseMs = FIRST_MS;;) {
      isCalled = false;
      const answer = first ?? await acquire(
        backend,
        claim,
        terms,
        (answer) => answer,
        isWatching ? watch : undefined,
      ).catch((error: unknown) => {
        if (isPassing(error)) return error;
        // Who has had an answer waits for the servers to come back, too.
        const mayComeBack = watch !== undefined && !backend.isClosed?.() &&
          !signal.aborted && group.last !== undefined;
        if (mayComeBack && isSilence(error)) return error;
        throw error;
      });
      first = undefined;
      const isFailure = answer instanceof LockBackendError;
      if (!isFailure && !("granted" in answer)) return answer;
      group.last = answer;
      // Each try by a name of its own: what a quorum cleans up after the last
      // one may reach a server late, and must not take the next one's vote.
      const owner = drawOwner(label, undefined, terms.fencing);
      claim = { ...claim, owner };
      if (watch !== undefined && !isWatching) {
        // What happens before it can be called is seen by the next try.
        isWatching = true;
        await unlessAborted(signal, watch.open());
        continue;
      }
      const place = watch?.place;
      const meanMs = place === undefined
        ? pauseMs
        : Math.min(CALLED_MS * place, CALLED_LAST_MS);
      const { retryAfterMs = Infinity } = isFailure ? {} : answer;
      const nextMs = Math.min(
        meanMs * (0.5 + Math.random()),
        // One after the other, where they know their order.
        retryAfterMs + 1 + FIRST_MS * ((place ?? 1) - 1),
      );
      if (!isCalled) {
        let callOff = () => {};
        const rest = new Promise<void>((resolve) => {
          wake = resolve;
          callOff = clock.setTimer(resolve, Math.max(0, nextMs), true);
        });
        await unlessAborted(signal, rest).finally(callOff);
      }
      if (isCalled) pauseMs = FIRST_MS;
      else if (place === undefined) pauseMs = Math.min(pauseMs * 2, LAST_MS);
    }
  } catch (error) {
    // Without an answer is only the last try.
    if (error === late && group.last !== undefined) {
      if (group.last instanceof LockBackendError) throw group.last;
      return group.last;
    }
    // Of servers that nobody here has ever heard, all are told at once.
    const isOurs = error instanceof LockBackendError && error !== late &&
      !signal.aborted;
    if (isOurs && group.last === undefined) {
      for (const member of group.members.splice(0)) member.fail(error);
    }
    throw error;
  } finally {
    watch?.close();
    leave();
  }
}
