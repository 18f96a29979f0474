/**
 * Renews all holds of one backend together: a thousand of them cost a few
 * commands per period, and one timer.
 */

import { type Backend, type Claim, clockOf, type Verdict } from "./backend.ts";
import { type Clock, within } from "./clock.ts";
import { type LockBackendError, toFailure } from "./errors.ts";
import type { Keeper } from "./keeper.ts";

/** How many holds go into one command: a script holds everybody else up. */
const MOST_AT_ONCE = 250;

/** A hold that is renewed, and when it is due, by the monotonic clock. */
export interface Renewed {
  keeper: Keeper;
  dueAt: number;
}

/** What the steps of a renewal are a part of: of one that was extended for long,
 * the lease that it is renewed with, as it is due when so much is left. */
function leaseOf({ leaseMs, claim }: Keeper): number {
  return Math.min(leaseMs, claim.ttlMs);
}

/** The renewal of each backend that has something to renew. */
const renewals = new WeakMap<Backend, Renewal>();

/** The renewal of `backend`. */
export function renewalOf(backend: Backend): Renewal {
  let renewal = renewals.get(backend);
  if (renewal === undefined) {
    renewals.set(backend, renewal = new Renewal(backend));
  }
  return renewal;
}

/**
 * Extends each of `claims`, or only those with less left, if `atLeast`; what a
 * backend throws is the answer to all.
 */
export async function extendAll(
  backend: Backend,
  claims: readonly Claim[],
  atLeast?: boolean,
): Promise<readonly (Verdict | LockBackendError)[]> {
  try {
    return await backend.extend(claims, atLeast);
  } catch (cause) {
    return claims.map(({ key }) => toFailure("extend", key, cause));
  }
}

/**
 * Due is a hold at a third of its lease. An attempt that has no answer after a
 * sixth of it counts as lost, one that failed is repeated after a twelfth: time
 * for five and more before the lease is over.
 */
export class Renewal {
  readonly #backend: Backend;
  readonly #clock: Clock;
  readonly #all = new Set<Renewed>();
  #wakesAt = Infinity;
  #callOff = () => {};

  constructor(backend: Backend) {
    this.#backend = backend;
    this.#clock = clockOf(backend);
  }

  /** Renews the hold of `keeper` at `dueAt`, and from then on. */
  plan(keeper: Keeper, dueAt: number): void {
    if (keeper.renewed !== undefined) keeper.renewed.dueAt = dueAt;
    else this.#all.add(keeper.renewed = { keeper, dueAt });
    if (dueAt < this.#wakesAt) this.#wakeAt(dueAt);
  }

  /** The same in the place of another, at less cost than a new one. */
  replace(renewed: Renewed, keeper: Keeper, dueAt: number): void {
    renewed.keeper.renewed = undefined;
    renewed.keeper = keeper;
    keeper.renewed = renewed;
    this.plan(keeper, dueAt);
  }

  /**
   * Leaves the hold of `keeper` alone. Where another is to come soon the timer
   * stays, until {@linkcode tidy}: set and cleared for each, it would cost more
   * than all the rest of a short hold.
   */
  drop(keeper: Keeper, isFollowed: boolean = false): void {
    if (keeper.renewed === undefined) return;
    this.#all.delete(keeper.renewed);
    keeper.renewed = undefined;
    if (!isFollowed) this.tidy();
  }

  /** Nothing is to come soon: without a hold no timer is left. */
  tidy(): void {
    if (this.#all.size === 0) this.#wakeAt(Infinity);
  }

  #wakeAt(at: number): void {
    if (at === this.#wakesAt) return;
    this.#callOff();
    this.#wakesAt = at;
    this.#callOff = at === Infinity
      ? () => {}
      : this.#clock.setTimer(() => this.#round(), at - this.#clock.now());
  }

  /** Renews what is due, along with what will be soon. */
  #round(): void {
    const now = this.#clock.now();
    const due: Keeper[] = [];
    this.#wakesAt = Infinity;
    let next = Infinity;
    // Woken for an answer that has come since, there may be nothing to do.
    const isTime = [...this.#all].some(({ dueAt }) => dueAt <= now);
    for (const renewed of this.#all) {
      const { keeper, dueAt } = renewed;
      const leaseMs = leaseOf(keeper);
      // Judged before it is renewed: after a stall it may be too late.
      if (keeper.loss !== undefined) continue;
      let again = dueAt;
      // Early by up to half a period, so that many go together from now on.
      if (isTime && dueAt <= now + leaseMs / 6) {
        if (!keeper.needsRenewal) {
          this.drop(keeper);
          continue;
        }
        renewed.dueAt = again = now + leaseMs / 6;
        if (!keeper.isBeingExtended) due.push(keeper);
      }
      next = Math.min(next, again);
    }
    this.#wakeAt(next);
    for (let i = 0; i < due.length; i += MOST_AT_ONCE) {
      void this.#renew(due.slice(i, i + MOST_AT_ONCE));
    }
  }

  async #renew(keepers: readonly Keeper[]): Promise<void> {
    const claims = keepers.map(({ claim }) => claim);
    const asked = keepers.map((keeper) => keeper.asks(keeper.claim.ttlMs));
    const extension = extendAll(this.#backend, claims, true);
    // One that is lost must not hold up who extends by hand: should it arrive
    // after all, it makes no lease shorter.
    const limitMs = Math.min(...keepers.map(leaseOf)) / 6;
    const awaited = within(this.#clock, limitMs, () => extension);
    for (const keeper of keepers) keeper.isBeingRenewed(awaited);
    const answers = await extension;
    for (const [i, keeper] of keepers.entries()) {
      const { ttlMs } = keeper.claim;
      keeper.answered(answers[i], asked[i], ttlMs);
      if (typeof answers[i] !== "string" && keeper.renewed !== undefined) {
        this.plan(keeper, this.#clock.now() + leaseOf(keeper) / 12);
      }
    }
  }
}
