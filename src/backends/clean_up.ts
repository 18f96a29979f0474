/**
 * What is to be undone on a server that did not answer: tried again until it is
 * done, or has undone itself by an expiry. A server that stays away is asked for
 * one thing at a time, however much is owed to it; once it answers, for all.
 */

import { systemClock } from "../core/clock.ts";

/** Between two tries, at first and at most. */
const FIRST_MS = 10;
const LAST_MS = 200;
/** After so long without an answer a try counts as lost at first, and how often. */
const LOST_MS = 1_000;
const MOST_LOST = 2;

/** One thing to undo. */
interface Debt {
  /** Rejects where there was no answer. */
  attempt(): Promise<void>;
  /** From when on there is nothing to undo any more. */
  readonly until: number;
  /** The latest try, until it is answered. */
  underWay: Promise<void> | undefined;
  /** How often one counted as lost. */
  lost: number;
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
      lost: 0,
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
    const isOwed = () => this.#debts.get(name) === debt;
    // Lost on its way it is sent again; but not for ever, as where a client keeps
    // all that it is given until the server is back.
    const callOff = debt.lost === MOST_LOST ? () => {} : systemClock.setTimer(
      () => {
        if (debt.underWay !== attempt || !isOwed() || this.#isOver(debt)) {
          return;
        }
        debt.lost++;
        this.#settle(name, debt);
      },
      LOST_MS * 2 ** debt.lost,
    );
    const answered = () => {
      callOff();
      debt.unanswered--;
    };
    debt.unanswered++;
    const attempt: Promise<void> = debt.attempt().then(() => {
      answered();
      if (isOwed()) this.#drop(name);
      this.#settleAll();
    }, () => {
      answered();
      if (debt.underWay !== attempt) return;
      debt.underWay = undefined;
      if (!isOwed()) return;
      if (this.#isOver(debt)) return this.#drop(name);
      // Behind the others, which may be asked for sooner.
      this.#debts.delete(name);
      this.#debts.set(name, debt);
      this.#settleLater();
    });
    debt.underWay = attempt;
    debt.answered = Promise.all([debt.answered, attempt]);
  }

  /** Whether it is undone, or nobody is left to ask. */
  #isOver({ until }: Debt): boolean {
    return systemClock.now() >= until || this.#isClosed();
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
      let isAsked = false;
      for (const [name, debt] of [...this.#debts]) {
        if (debt.underWay !== undefined) continue;
        if (this.#isOver(debt)) this.#drop(name);
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
