/** From a wish to a hold: one attempt, or patience. */

import {
  type Backend,
  type Claim,
  clockOf,
  type Grant,
  type Refusal,
} from "./backend.ts";
import { type Moment, moment } from "./clock.ts";
import { LockBackendError } from "./errors.ts";
import { Keeper, type Terms } from "./keeper.ts";
import { driftMs } from "./options.ts";

/**
 * Acquires `claim` on `backend`, or hears that it is taken: one attempt.
 *
 * By then() rather than await: it is done for every lock, and each layer of
 * promises shows in the throughput.
 *
 * @param settle What to make of the keeper of the hold, or of the refusal.
 * @throws The signal's reason, at once, if it was aborted before.
 * @throws {LockBackendError} As a rejection: the server could not be asked, or
 * its grant came when the lease was over already.
 */
export function acquire<T>(
  backend: Backend,
  claim: Claim,
  terms: Terms,
  settle: (answer: Keeper | Refusal) => T,
): Promise<T> {
  const { signal } = terms;
  if (signal?.aborted) throw signal.reason;
  const asked = moment(clockOf(backend));
  const attempt = terms.fencing
    ? backend.tryAcquireFenced!(claim)
    : backend.tryAcquire(claim);
  const answer = signal === undefined ? attempt : orAborted(
    attempt,
    signal,
    (answer) => !answer.granted,
    () => backend.discard(claim),
  );
  return answer.then((answer) =>
    settle(answer.granted ? keep(backend, claim, asked, terms, answer) : answer)
  );
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
  signal?.throwIfAborted();
  const asked = moment(clockOf(backend));
  const attempt = backend.tryAcquireAll!(claims, fencing);
  const giveBack = () => claims.forEach((claim) => backend.discard(claim));
  const answer =
    await (signal === undefined
      ? attempt
      : orAborted(attempt, signal, (answer) => "granted" in answer, giveBack));
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
  if (tookMs < ttlMs - driftMs(ttlMs, terms.driftFactor)) {
    return new Keeper(backend, claim, asked, terms, fencingToken);
  }
  // The whole lease went by before the answer came: ours it may be no more.
  backend.discard(claim);
  throw new LockBackendError(
    key,
    `Cannot acquire "${key}": the answer took ${Math.round(tookMs)} ms, ` +
      "longer than the lease",
  );
}

/**
 * `attempt`, or a rejection with the signal's reason. The attempt can't be
 * called back: should it turn out to be no refusal, `giveBack` is called.
 */
function orAborted<T>(
  attempt: Promise<T>,
  signal: AbortSignal,
  isRefusal: (answer: T) => boolean,
  giveBack: () => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      attempt.then((answer) => isRefusal(answer) || giveBack(), () => {});
    };
    // Unheard in the very callback that answers: an abort in the microtask
    // after it would otherwise give back what the caller is about to use.
    const answered = () => signal.removeEventListener("abort", abort);
    signal.addEventListener("abort", abort, { once: true });
    attempt.then(
      (answer) => (answered(), resolve(answer)),
      (error) => (answered(), reject(error)),
    );
  });
}
