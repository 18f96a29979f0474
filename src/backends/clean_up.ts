/**
 * What is to be undone on a server that did not answer: tried again until it is
 * done, or has undone itself by an expiry. A server that stays away is asked for
 * one thing at a time, however much is owed to it; once it answers, for all.
 */

import { systemClock, within } from "../core/clock.ts";

/** Between two tries, at first and at most. */
const FIRST_MS = 10;
const LAST_MS = 200;
/** After so long without an answer a try counts as lost: it is made again. */
const LOST_MS = 1_000;

/** One thing to undo. */
interface Debt {
  /** Rejects where there was no answer. */
  attempt(): Promise<void>;
  /** From when on there is nothing to undo any more. */
  readonly until: number;
  /** The latest try, until it is answered or counts as lost. */
  underWay: Promise<void> | undefined;
  /** Settles once all tries have been answered, and how many have not. */
  answered: Promise<unknown>;
  unanswered: number;
}

/** All that is to be undone by one client. */
export class CleanUps {
  readonly #isClosed: () => boolean;
  readonly #debts = new Map<string, Debt>();
  #pauseMs = FIRST_MS;
  #callOffTimer: (() => void) | undefined;

  /** @param isClosed Whether there is nobody to ask any more. */
  constructor(isClosed: () => boolean) {
    this.#isClosed = isClosed;
  }

  /** Whether there is anything. */
  get isEmpty(): boolean {
    return this.#debts.size === 0;
  }

  /** Makes an `attempt`, and others until one succeeds, for so long. */
  add(name: string, forMs: number, attempt: () => Promise<void>): void {
    const until = systemClock.now() + forMs;
    const answered = Promise.resolve();
    const debt = {
      attempt,
      until,
      underWay: undefined,
      answered,
      unanswered: 0,
    };
    this.#debts.set(name, debt);
    this.#settle(name, debt);
  }

  /**
   * Leaves it alone. What was sent by then may be done before or after anything
   * that is sent now: it is to be waited for.
   */
  callOff(name: string): Promise<unknown> | undefined {
    const debt = this.#debts.get(name);
    this.#drop(name);
    return debt && debt.unanswered > 0 ? debt.answered : undefined;
  }

  #settle(name: string, debt: Debt): void {
    const attempt = debt.attempt();
    debt.unanswered++;
    const done = debt.underWay = attempt.then(() => {
      debt.unanswered--;
      if (this.#debts.get(name) === debt) this.#drop(name);
      this.#settleAll();
    }, () => void debt.unanswered--);
    debt.answered = Promise.all([debt.answered, done]);
    within(systemClock, LOST_MS, () => attempt).catch(() => {
      // Answered since, or sent again.
      if (debt.underWay !== done) return;
      debt.underWay = undefined;
      if (this.#debts.get(name) !== debt) return;
      if (this.#isClosed()) return this.#drop(name);
      // Behind the others, which may be asked for sooner.
      this.#debts.delete(name);
      this.#debts.set(name, debt);
      this.#settleLater();
    });
  }

  #drop(name: string): void {
    this.#debts.delete(name);
    if (this.#debts.size > 0) return;
    this.#callOffTimer?.();
    this.#callOffTimer = undefined;
    this.#pauseMs = FIRST_MS;
  }

  /** Somebody answers there. */
  #settleAll(): void {
    this.#pauseMs = FIRST_MS;
    for (const [name, debt] of [...this.#debts]) {
      if (debt.underWay === undefined) this.#settle(name, debt);
    }
  }

  #settleLater(): void {
    this.#callOffTimer ??= systemClock.setTimer(() => {
      this.#callOffTimer = undefined;
      this.#pauseMs = Math.min(this.#pauseMs * 2, LAST_MS);
      const now = systemClock.now();
      const isClosed = this.#isClosed();
      let isAsked = false;
      for (const [name, debt] of [...this.#debts]) {
        if (debt.underWay !== undefined) continue;
        if (isClosed || now >= debt.until) this.#drop(name);
        else if (!isAsked) {
          isAsked = true;
          this.#settle(name, debt);
        }
      }
      // The one that was asked for may never be answered.
      const isOwed = ({ underWay }: Debt) => underWay === undefined;
      if ([...this.#debts.values()].some(isOwed)) this.#settleLater();
    }, this.#pauseMs);
  }
}
