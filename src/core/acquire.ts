/** From a wish to a hold: try, wait, try again, until granted or given up. */

import {
  type Backend,
  type Claim,
  clockOf,
  type Grant,
  type Refusal,
} from "./backend.ts";
import { elapsedMs, moment } from "./clock.ts";
import { LockBackendError } from "./errors.ts";
import { Keeper } from "./keeper.ts";
import type { Waiting } from "./wait.ts";

/**
 * Acquires `claim` on `backend`.
 *
 * @param signal Gives up: rejects with its reason, and nothing stays behind.
 * @returns The keeper of the hold, or the last refusal.
 * @throws {LockBackendError} The server could not be asked, or its grant came
 * when the lease was over already.
 */
export async function acquire(
  backend: Backend,
  claim: Claim,
  waiting: Waiting,
  signal?: AbortSignal,
): Promise<Keeper | Refusal> {
  const clock = clockOf(backend);
  for (;;) {
    signal?.throwIfAborted();
    const asked = moment(clock);
    const attempt = backend.tryAcquire(claim);
    const answer = signal === undefined
      ? await attempt
      : await orAborted(attempt, signal, () => backend.discard(claim));
    if (answer.granted) {
      const keeper = new Keeper(clock, claim.key, asked, claim.ttlMs);
      if (keeper.remainingMs > 0) return keeper;
      backend.discard(claim);
      throw new LockBackendError(
        claim.key,
        `Cannot acquire "${claim.key}": the answer took ` +
          `${Math.round(elapsedMs(clock, asked))} ms, longer than the lease`,
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
