/** From a wish to a hold: try, wait, try again, until granted or given up. */

import {
  type Backend,
  type Claim,
  clockOf,
  type Grant,
  type Refusal,
} from "./backend.ts";
import { moment } from "./clock.ts";
import { LockBackendError } from "./errors.ts";
import { Keeper, type Terms } from "./keeper.ts";
import { driftMs } from "./options.ts";
import type { Waiting } from "./wait.ts";

/**
 * Acquires `claim` on `backend`.
 *
 * @returns The keeper of the hold, or the last refusal.
 * @throws {LockBackendError} The server could not be asked, or its grant came
 * when the lease was over already.
 */
export async function acquire(
  backend: Backend,
  claim: Claim,
  waiting: Waiting,
  terms: Terms,
): Promise<Keeper | Refusal> {
  const clock = clockOf(backend);
  const { signal } = terms;
  for (;;) {
    if (signal?.aborted) throw signal.reason;
    const asked = moment(clock);
    const attempt = terms.fencing
      ? backend.tryAcquireFenced!(claim)
      : backend.tryAcquire(claim);
    const answer = signal === undefined
      ? await attempt
      : await orAborted(attempt, signal, () => backend.discard(claim));
    if (answer.granted) {
      // The whole lease went by before the answer came: ours it may be no more.
      const tookMs = clock.now() - asked.now;
      if (tookMs < claim.ttlMs - driftMs(claim.ttlMs)) {
        return new Keeper(backend, claim, asked, terms, answer.fencingToken);
      }
      backend.discard(claim);
      throw new LockBackendError(
        claim.key,
        `Cannot acquire "${claim.key}": the answer took ` +
          `${Math.round(tookMs)} ms, longer than the lease`,
      );
    }
    if (!await waiting.again(answer)) return answer;
  }
}

/**
 * `attempt`, or a rejection with the signal's reason. The attempt can't be
 * called back: should it be granted after all, `giveBack` is called.
 */
function orAborted(
  attempt: Promise<Grant | Refusal>,
  signal: AbortSignal,
  giveBack: () => void,
): Promise<Grant | Refusal> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      attempt.then((answer) => answer.granted && giveBack(), () => {});
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
