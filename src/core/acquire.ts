/** From a wish to a hold: one attempt, or patience. */

import { onAbort } from "./aborts.ts";
import {
  type Backend,
  type Claim,
  clockOf,
  type Grant,
  type Refusal,
  type Wanted,
  type Watch,
} from "./backend.ts";
import { asking, type Moment, pause, within } from "./clock.ts";
import {
  isPassing,
  LockBackendError,
  LockReplicationError,
  outlasted,
} from "./errors.ts";
import { Keeper, type Terms } from "./keeper.ts";
import { drawOwner } from "./keys.ts";
import { validMs } from "./options.ts";

/** A claim on what is wanted, by an owner of its own. */
export function claimFor(
  { key, ttlMs }: Wanted,
  label: string | undefined,
  { fencing }: Terms,
): Claim {
  return { key, owner: drawOwner(label, undefined, fencing), ttlMs };
}

/**
 * Acquires `claim` on `backend`, or hears that it is taken: one attempt.
 *
 * By then() rather than await: it is done for every lock, and each layer of
 * promises shows in the throughput.
 *
 * @param settle What to make of the keeper of the hold, or of the refusal.
 * @param watch By whom to ask, so as to be told of the release.
 * @param onRefused See `Backend.tryAcquire()`.
 * @throws The signal's reason, at once, if it was aborted before.
 * @throws {LockBackendError} As a rejection: the server could not be asked, or
 * its grant came when the lease was over already.
 */
export function acquire<T>(
  backend: Backend,
  claim: Claim,
  terms: Terms,
  settle: (answer: Keeper | Refusal) => T,
  watch?: Watch,
  onRefused?: () => void,
): Promise<T> {
  const { signal, fencing } = terms;
  if (signal?.aborted) throw signal.reason;
  const asked = asking(clockOf(backend));
  const answered = (answer: Grant | Refusal) =>
    settle(
      answer.granted ? keep(backend, claim, asked, terms, answer) : answer,
    );
  const isPlain = signal === undefined && watch === undefined && !fencing;
  if (isPlain && backend.tryAcquireThen !== undefined) {
    return backend.tryAcquireThen(claim, answered, onRefused);
  }
  const attempt = watch !== undefined
    ? watch.tryAcquire(claim, fencing)
    : fencing
    ? backend.tryAcquireFenced!(claim)
    : backend.tryAcquire(claim, onRefused);
  const answer = signal === undefined
    ? attempt
    : unlessAborted(signal, attempt, ({ granted }) => {
      if (granted) backend.discard(claim);
    });
  return answer.then(answered);
}

/**
 * The same for several keys at once, on a backend that can: all or none.
 */
export async function acquireAll(
  backend: Backend,
  claims: readonly Claim[],
  terms: Terms,
): Promise<Keeper[] | Refusal> {
  const { signal, fencing } = terms;
  if (signal?.aborted) throw signal.reason;
  const asked = asking(clockOf(backend));
  const attempt = backend.tryAcquireAll!(claims, fencing);
  const giveBack = () => claims.forEach((claim) => backend.discard(claim));
  const answer =
    await (signal === undefined
      ? attempt
      : unlessAborted(signal, attempt, (answer) => {
        if (!("granted" in answer)) giveBack();
      }));
  if ("granted" in answer) return answer;
  const keepers: Keeper[] = [];
  try {
    for (const [i, grant] of answer.entries()) {
      keepers.push(keep(backend, claims[i], asked, terms, grant));
    }
  } catch (error) {
    for (const keeper of keepers) keeper.release();
    giveBack();
    throw error;
  }
  return keepers;
}

/** Between two questions to the replicas, at first and at most. */
const CONFIRM_FIRST_MS = 10;
const CONFIRM_LAST_MS = 100;
/** For how long they may take to answer the first; with each twice as long. */
const ANSWER_MS = 20;
/** At most, as all else that is asked on that connection waits along. */
const ANSWER_LAST_MS = 320;
/** For how long they are asked at least, by one who has no patience. */
const CONFIRM_MS = 1_000;

/**
 * Resolves once `replicas` have what was granted for `claims`, where so much is
 * left of the patience.
 *
 * @throws {LockReplicationError} As a rejection: fewer had by then, or in a
 * third of the lease.
 * @throws {LockBackendError} As a rejection: the server could not be asked.
 * @throws The signal's reason, as a rejection.
 */
export async function confirm(
  backend: Backend,
  claims: readonly Claim[],
  replicas: number,
  patienceMs: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const clock = clockOf(backend);
  const [{ key, ttlMs }] = claims;
  const limitMs = Math.min(Math.max(CONFIRM_MS, patienceMs), ttlMs / 3);
  const until = clock.now() + limitMs;
  let confirmed = 0;
  let cause: unknown;
  let pauseMs = CONFIRM_FIRST_MS;
  for (let answerMs = ANSWER_MS; clock.now() < until; answerMs *= 2) {
    const leftMs = until - clock.now();
    const answerLimitMs = Math.min(answerMs, ANSWER_LAST_MS, leftMs);
    const asked = within(
      clock,
      leftMs,
      () => backend.confirm!(claims, replicas, answerLimitMs),
    );
    const answer = await (signal ? unlessAborted(signal, asked) : asked)
      .catch((error: unknown) => error);
    if (signal?.aborted) throw signal.reason;
    if (typeof answer === "number") {
      if (answer >= replicas) return;
      confirmed = Math.max(confirmed, answer);
    } else if (typeof answer === "string") {
      const what = "it was gone before its replicas had it";
      throw new LockBackendError(key, `Cannot acquire "${key}": ${what}`);
    } else {
      const isFinal = answer instanceof LockBackendError &&
        answer.reply !== undefined && !isPassing(answer);
      if (isFinal) throw answer;
      cause = answer;
    }
    await pause(clock, Math.min(pauseMs, until - clock.now()), signal);
    pauseMs = Math.min(pauseMs * 2, CONFIRM_LAST_MS);
  }
  const ms = Math.round(limitMs);
  throw new LockReplicationError(key, replicas, confirmed, ms, cause);
}

/** Keeps what was granted, if there is anything left of it. */
function keep(
  backend: Backend,
  claim: Claim,
  asked: Moment,
  terms: Terms,
  { fencingToken }: Grant,
): Keeper {
  const { key, ttlMs } = claim;
  const tookMs = clockOf(backend).now() - asked.now;
  if (tookMs < validMs(ttlMs, terms)) {
    return new Keeper(backend, claim, asked, terms, fencingToken);
  }
  // The whole lease went by before the answer came: ours it may be no more.
  backend.discard(claim);
  throw outlasted("acquire", key, tookMs);
}

/**
 * What `promise` comes to, or the signal's reason as soon as it aborts.
 *
 * @param tooLate Told of what it comes to after that: it can't be called back.
 */
export function unlessAborted<T>(
  signal: AbortSignal,
  promise: Promise<T>,
  tooLate?: (answer: T) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      promise.then(tooLate, () => {});
    };
    if (signal.aborted) abort();
    const ignore = onAbort(signal, abort);
    // Unheard in the very callback that answers: an abort in the microtask
    // after it would otherwise give back what the caller is about to use.
    promise.then(
      (answer) => (ignore(), resolve(answer)),
      (error) => (ignore(), reject(error)),
    );
  });
}
