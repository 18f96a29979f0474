/** Patience: one who waits, and where. */

import { onAbort } from "./aborts.ts";
import { acquire, claimFor, unlessAborted } from "./acquire.ts";
import { type Backend, clockOf, type Refusal, type Wanted } from "./backend.ts";
import { type Clock, whenLate } from "./clock.ts";
import { isPassing, type LockBackendError, unanswered } from "./errors.ts";
import { Keeper, type Terms } from "./keeper.ts";
import { type PatientTerms, poll } from "./poll.ts";
import { type Room, roomOf } from "./room.ts";

/** How long, and how, somebody is ready to wait. */
export interface Patience {
  /** For so many milliseconds. */
  readonly waitMs: number;
  /** For how long in all, if that is what is left of it. */
  readonly wholeMs?: number | undefined;
  /** How many of a process one turn in line may serve, where this is one. */
  readonly localTurns: number;
  /** By what name it is to be known to those who look on. */
  readonly label?: string | undefined;
  /** Whether patience does not count until the server has said a first no. */
  readonly isUnhurried?: boolean | undefined;
}

/** For how long one waits at most for the server to say a first no. */
function firstMs({ waitMs, isUnhurried }: Patience): number {
  return isUnhurried ? Infinity : waitMs;
}

/** What is left of it after that, where so many ms of the first are. */
function restOf(patience: Patience, leftMs: number): Patience {
  const { waitMs, isUnhurried } = patience;
  return isUnhurried
    ? patience
    : { ...patience, waitMs: leftMs, wholeMs: waitMs };
}

/**
 * Waits for what is `wanted`: in line, where there is one, in the order in which
 * the server saw who came.
 *
 * @param settle What to make of the keeper of the hold, or the last refusal.
 * @throws The signal's reason, at once if it was aborted before; else as a
 * rejection.
 * @throws {LockBackendError} As a rejection: the server could not be asked.
 */
export function wait<T>(
  backend: Backend,
  wanted: Wanted,
  terms: Terms,
  patience: Patience,
  settle: (answer: Keeper | Refusal) => T,
): Promise<T> {
  if (terms.signal?.aborted) throw terms.signal.reason;
  const { line } = backend;
  if (line !== undefined) {
    const room = roomOf(backend, line);
    return room.isQuietAt(wanted.key)
      ? tryInPassing(backend, room, wanted, terms, patience, settle)
      : waitInLine(room, wanted, terms, patience, settle);
  }
  return backend.findLine === undefined
    ? tryAgain(backend, wanted, terms, patience).then(settle)
    : lookFirst(backend, wanted, terms, patience, settle);
}

/** Tries again and again, for as long as patience lasts. */
async function tryAgain(
  backend: Backend,
  wanted: Wanted,
  terms: Terms,
  { waitMs, label, isUnhurried }: Patience,
): Promise<Keeper | Refusal> {
  const claim = claimFor(wanted, label, terms);
  let first: Refusal | undefined;
  if (isUnhurried) {
    const answer = await acquire(backend, claim, terms, (answer) => answer)
      .catch((error: unknown) => {
        if (isPassing(error)) return undefined;
        throw error;
      });
    if (answer instanceof Keeper) return answer;
    first = answer;
  }
  return await withPatience(
    backend,
    wanted.key,
    terms,
    waitMs,
    (terms, late) => poll(backend, claim, terms, late, label, first),
  );
}

/** Finds out whether there are lines, and waits for the rest of the patience. */
async function lookFirst<T>(
  backend: Backend,
  wanted: Wanted,
  terms: Terms,
  patience: Patience,
  settle: (answer: Keeper | Refusal) => T,
): Promise<T> {
  const clock = clockOf(backend);
  const waitMs = firstMs(patience);
  const until = clock.now() + waitMs;
  const line = await withPatience(
    backend,
    wanted.key,
    terms,
    waitMs,
    ({ signal }) => unlessAborted(signal, backend.findLine!()),
  );
  const rest = restOf(patience, Math.max(1, until - clock.now()));
  return await (line === undefined
    ? tryAgain(backend, wanted, terms, rest).then(settle)
    : waitInLine(roomOf(backend, line), wanted, terms, rest, settle));
}

/**
 * Makes `attempt` on terms whose signal also ends it when patience does.
 *
 * @param graceMs For how long beyond that an answer may be on its way.
 * @throws {LockBackendError} `late`, as a rejection: it had no answer by then.
 */
export async function withPatience<T>(
  backend: Backend,
  key: string,
  terms: Terms,
  waitMs: number,
  attempt: (terms: PatientTerms, late: LockBackendError) => Promise<T>,
  graceMs = 0,
): Promise<T> {
  const { signal } = terms;
  if (signal?.aborted) throw signal.reason;
  const end = new AbortController();
  const ignore = signal && onAbort(signal, () => end.abort(signal.reason));
  const late = unanswered(key, waitMs);
  const callOff = waitMs === Infinity ? () => {} : whenLate(
    clockOf(backend),
    () => end.abort(late),
    waitMs + graceMs,
    true,
  );
  try {
    return await attempt({ ...terms, signal: end.signal }, late);
  } finally {
    callOff();
    ignore?.();
  }
}

/**
 * As long as nobody here waits for the key, nobody else may: one attempt as of
 * one who has no patience, and in line only after it was refused.
 */
function tryInPassing<T>(
  backend: Backend,
  room: Room,
  wanted: Wanted,
  terms: Terms,
  patience: Patience,
  settle: (answer: Keeper | Refusal) => T,
): Promise<T> {
  const { key } = wanted;
  const claim = claimFor(wanted, patience.label, terms);
  const waitMs = firstMs(patience);
  const { attempts } = room;
  return new Promise((resolve, reject) => {
    const stand = (leftMs: number, refusal?: Refusal) => {
      const rest = restOf(patience, leftMs);
      resolve(waitInLine(room, wanted, terms, rest, settle, refusal, true));
    };
    /** The server's no, of which more was still to be asked. */
    let refusal: Refusal | undefined;
    const attempt = attempts.watch(key, waitMs, (leftMs) => {
      // It may have been granted, and only the answer be lost.
      if (leftMs > 0 && refusal === undefined) backend.discard(claim);
      if (leftMs > 0) return stand(leftMs, refusal);
      if (refusal === undefined) return reject(unanswered(key, waitMs));
      try {
        resolve(settle(refusal));
      } catch (error) {
        reject(error);
      }
    });
    const goOn = (refusal?: Refusal) => {
      stand(attempts.unwatch(attempt), refusal);
      attempts.follow(attempt);
    };
    const failed = (error: unknown) => {
      if (isPassing(error) && !attempt.isLate) return goOn();
      reject(error);
      if (attempt.keeper !== undefined) return;
      attempts.unwatch(attempt);
      attempts.follow(attempt);
    };
    const answered = (answer: Keeper | Refusal) => {
      if (attempt.isLate) {
        if (!(answer instanceof Keeper)) return;
        answer.release();
        backend.discard(claim);
      } else if (answer instanceof Keeper) {
        attempts.remember(attempt, answer, patience.localTurns);
        attempts.follow(attempt);
        resolve(settle(answer));
      } else goOn(answer);
    };
    try {
      const onRefused = () => void (refusal = { granted: false });
      acquire(backend, claim, terms, answered, undefined, onRefused)
        .catch(failed);
    } catch (error) {
      failed(error);
    }
  });
}

/** Waits in the room for one's turn. */
function waitInLine<T>(
  room: Room,
  wanted: Wanted,
  terms: Terms,
  patience: Patience,
  settle: (answer: Keeper | Refusal) => T,
  refusal?: Refusal,
  isAhead = false,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const answer = (answer: Keeper | Refusal) => {
      try {
        resolve(settle(answer));
      } catch (error) {
        reject(error);
      }
    };
    const { key, ttlMs } = wanted;
    const waiter = new Waiter(ttlMs, terms, patience, answer, reject);
    room.enter(key, waiter, refusal, isAhead);
  });
}

/** One who waits, until seated, refused, failed or called off. */
export class Waiter {
  readonly ttlMs: number;
  readonly label: string | undefined;
  readonly terms: Terms;
  readonly waitMs: number;
  readonly wholeMs: number;
  readonly localTurns: number;
  readonly isUnhurried: boolean;
  /** Whether it waits no more. */
  isOver = false;
  readonly #answer: (answer: Keeper | Refusal) => void;
  readonly #reject: (reason: unknown) => void;
  #callOff: (() => void) | undefined;
  #ignore: (() => void) | undefined;

  constructor(
    ttlMs: number,
    terms: Terms,
    {
      waitMs,
      wholeMs = waitMs,
      localTurns,
      label,
      isUnhurried = false,
    }: Patience,
    answer: (answer: Keeper | Refusal) => void,
    reject: (reason: unknown) => void,
  ) {
    this.ttlMs = ttlMs;
    this.label = label;
    this.terms = terms;
    this.waitMs = waitMs;
    this.wholeMs = wholeMs;
    this.localTurns = localTurns;
    this.isUnhurried = isUnhurried;
    this.#answer = answer;
    this.#reject = reject;
  }

  /** From now on its patience runs; `depart` is called when it is over, or when
   * it was called off. */
  begin(clock: Clock, depart: () => void): void {
    const { signal } = this.terms;
    if (this.waitMs < Infinity) this.wait(clock, this.waitMs, depart);
    if (signal === undefined) return;
    const abort = () => {
      this.#finish();
      this.#reject(signal.reason);
      depart();
    };
    if (signal.aborted) abort();
    else this.#ignore = onAbort(signal, abort);
  }

  /** Calls `then` in so many milliseconds, unless it waits no more by then. */
  wait(clock: Clock, ms: number, then: () => void): void {
    this.#callOff = clock.setTimer(then, ms, true);
  }

  /** It is its turn. */
  seat(keeper: Keeper): void {
    this.#finish();
    this.#answer(keeper);
  }

  /** Its patience ran out. */
  refuse(refusal: Refusal): void {
    this.#finish();
    this.#answer(refusal);
  }

  /** The server could not be asked. */
  fail(error: LockBackendError): void {
    this.#finish();
    this.#reject(error);
  }

  #finish(): void {
    this.isOver = true;
    this.#callOff?.();
    this.#ignore?.();
  }
}
