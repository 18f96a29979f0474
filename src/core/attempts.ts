/**
 * Who tries in passing, before anybody of this process stands in line: each by
 * one attempt, which is looked after so that its caller waits for no longer than
 * its patience, and nobody for a request that was lost.
 */

import { HEARTBEAT_MS, TURN_MS } from "./backend.ts";
import type { Clock } from "./clock.ts";
import type { Keeper } from "./keeper.ts";

/** How long to wait for the first answer when patience is over already. */
export const GRACE_MS = 15;
/** How often to look after attempts that have no answer, at most and at least. */
const TICK_MS = 5;
const TICK_LAST_MS = 50;

/** An attempt, until it is over, or may be passed on as a turn no more. */
export interface Attempt<Follower> {
  readonly key: string;
  /** When patience is over, and the time of grace for an answer. */
  readonly until: number;
  readonly sentAt: number;
  /** When it is late for an answer; told with what is left of patience. */
  readonly lateAt: number;
  readonly onLate: (leftMs: number) => void;
  /** Whether it is, and nobody waits for it any more. */
  isLate: boolean;
  /** Whether it is under way, and patience has no end. */
  isEndless: boolean;
  /** Whether it is under way, and has been for longer than most are. */
  isSlow: boolean;
  /** What came of it, since when, and how many its turn may serve. */
  keeper: Keeper | undefined;
  beganAt: number;
  localTurns: number;
  /** Who came after it, and before its answer. */
  readonly followers: Follower[];
}

/**
 * Whether a question that is long without an answer is to be asked again. Where
 * a later one has been answered it is lost. Else all may be slow, and then
 * thousands that are asked twice make it worse: of these one is repeated, now and
 * then, to see.
 */
export class Doubts {
  readonly #clock: Clock;
  /** When the latest of the questions was sent that have had an answer. */
  #heardOf = -Infinity;
  /** When one was last repeated that may be lost, or merely slow. */
  #probedAt = -Infinity;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** What was sent then has been answered. */
  hear(sentAt: number): void {
    this.#heardOf = Math.max(this.#heardOf, sentAt);
  }

  /** Whether what was sent then may be lost, and is to be asked again. */
  mayBeLost(sentAt: number): boolean {
    if (sentAt < this.#heardOf) return true;
    const now = this.#clock.now();
    if (now - this.#probedAt < HEARTBEAT_MS) return false;
    this.#probedAt = now;
    return true;
  }
}

/** The attempts of one process at one backend. */
export class Attempts<Follower> {
  readonly #clock: Clock;
  readonly #doubts: Doubts;
  readonly #goOn: (followers: readonly Follower[]) => void;
  /**
   * By key. What is over stays for a while without one: deleted and added again
   * and again, a map is rebuilt all the time.
   */
  readonly #all = new Map<string, Attempt<Follower> | undefined>();
  #sweepAt = 1_000;
  #ticksAt = Infinity;
  #callOffTick = () => {};
  /** How many are under way of those whose patience has no end. */
  #endless = 0;
  /** And how many of the others have not been over by the last look. */
  #slow = 0;
  #callOffLook = () => {};

  /** @param goOn Has those go on who have waited for another, in their order. */
  constructor(
    clock: Clock,
    doubts: Doubts,
    goOn: (followers: readonly Follower[]) => void,
  ) {
    this.#clock = clock;
    this.#doubts = doubts;
    this.#goOn = goOn;
  }

  /** The latest at `key`, as long as it is of use to anybody who comes now. */
  at(key: string): Attempt<Follower> | undefined {
    const attempt = this.#all.get(key);
    return attempt !== undefined && !this.#isOver(attempt)
      ? attempt
      : undefined;
  }

  /** The same, while it is under way. */
  underWayAt(key: string): Attempt<Follower> | undefined {
    const attempt = this.#all.get(key);
    return attempt?.keeper === undefined ? attempt : undefined;
  }

  /** What became of the latest at `key` is another's affair. */
  forget(key: string): void {
    this.#all.set(key, undefined);
  }

  #isOver({ keeper, beganAt }: Attempt<Follower>): boolean {
    return keeper !== undefined &&
      (keeper.remainingMs === 0 || this.#clock.now() - beganAt >= TURN_MS);
  }

  /** Looks after an attempt at `key` that is about to be sent. */
  watch(
    key: string,
    waitMs: number,
    onLate: (leftMs: number) => void,
  ): Attempt<Follower> {
    const now = this.#clock.now();
    const until = now + waitMs + GRACE_MS;
    const attempt: Attempt<Follower> = {
      key,
      until,
      sentAt: now,
      lateAt: Math.min(until, now + HEARTBEAT_MS),
      onLate,
      isLate: false,
      isEndless: waitMs === Infinity,
      isSlow: false,
      keeper: undefined,
      beganAt: 0,
      localTurns: 0,
      followers: [],
    };
    if (this.#all.size >= this.#sweepAt) this.#sweep();
    this.#all.set(key, attempt);
    const { lateAt } = attempt;
    if (waitMs === Infinity) {
      if (++this.#endless === 1) this.#lookLater();
    } else if (this.#ticksAt === Infinity) this.#tickIn(TICK_MS);
    else if (lateAt < this.#ticksAt) this.#tickIn(lateAt - now);
    return attempt;
  }

  /** It was refused, or failed: how much is left of the patience. */
  unwatch(attempt: Attempt<Follower>): number {
    const { key, until } = attempt;
    this.#isAnswered(attempt);
    if (this.#all.get(key) === attempt) this.#all.set(key, undefined);
    return Math.max(1, until - GRACE_MS - this.#clock.now());
  }

  /** It was granted: a turn, if another of us comes in time. */
  remember(
    attempt: Attempt<Follower>,
    keeper: Keeper,
    localTurns: number,
  ): void {
    this.#isAnswered(attempt);
    attempt.keeper = keeper;
    attempt.beganAt = this.#clock.now();
    attempt.localTurns = localTurns;
  }

  /** It has an answer: those who came after it may go on. */
  follow({ followers }: Attempt<Follower>): void {
    this.#goOn(followers.splice(0));
  }

  #isAnswered(attempt: Attempt<Follower>): void {
    this.#doubts.hear(attempt.sentAt);
    this.#isNoMore(attempt);
  }

  /** It need not be looked after any more. */
  #isNoMore(attempt: Attempt<Follower>): void {
    if (attempt.isEndless) {
      attempt.isEndless = false;
      if (--this.#endless === 0) this.#callOffLook();
    } else if (attempt.isSlow) {
      attempt.isSlow = false;
      // Soon, and not in a while: there may be nobody left to look after.
      if (--this.#slow === 0) this.#tickIn(TICK_MS);
    }
  }

  #sweep(): void {
    for (const [key, attempt] of this.#all) {
      if (attempt === undefined || this.#isOver(attempt)) this.#all.delete(key);
    }
    this.#sweepAt = Math.max(1_000, this.#all.size * 2);
  }

  /** Where patience has no end it is only looked for what was lost. */
  #lookLater(): void {
    this.#callOffLook = this.#clock.setTimer(() => {
      const late: Attempt<Follower>[] = [];
      for (const attempt of this.#all.values()) {
        if (attempt?.isEndless !== true) continue;
        const isLate = attempt.lateAt <= this.#clock.now();
        if (isLate && this.#doubts.mayBeLost(attempt.sentAt)) {
          late.push(attempt);
        }
      }
      this.#lookLater();
      this.#giveUp(late);
    }, HEARTBEAT_MS);
  }

  /** One timer for all, set now and then: most attempts are over before it. */
  #tickIn(ms: number): void {
    this.#callOffTick();
    const inMs = Math.min(Math.max(ms, TICK_MS), TICK_LAST_MS);
    this.#ticksAt = this.#clock.now() + inMs;
    this.#callOffTick = this.#clock.setTimer(() => this.#tick(), inMs);
  }

  #tick(): void {
    this.#ticksAt = Infinity;
    this.#slow = 0;
    const now = this.#clock.now();
    const late: Attempt<Follower>[] = [];
    let next = Infinity;
    for (const attempt of this.#all.values()) {
      if (attempt === undefined || attempt.keeper !== undefined) continue;
      const { until, lateAt, sentAt } = attempt;
      if (until === Infinity) continue;
      const isLate = until <= now ||
        lateAt <= now && this.#doubts.mayBeLost(sentAt);
      attempt.isSlow = !isLate;
      if (isLate) late.push(attempt);
      else {
        this.#slow++;
        next = Math.min(next, until, Math.max(lateAt, now + TICK_LAST_MS));
      }
    }
    // After a stall, what they wait for may have come and not been read yet; or
    // a no, of which it is still to be asked for how long.
    if (late.length > 0) {
      const isStalled = late.some(({ lateAt }) => now - lateAt > GRACE_MS);
      const ms = isStalled ? GRACE_MS : 0;
      this.#clock.setTimer(() => this.#giveUp(late), ms);
    }
    if (next < Infinity) this.#tickIn(next - now);
    else this.#sweep();
  }

  /** Those of the attempts that still have no answer are late. */
  #giveUp(attempts: readonly Attempt<Follower>[]): void {
    for (const attempt of attempts) {
      if (this.underWayAt(attempt.key) !== attempt) continue;
      attempt.isLate = true;
      this.#isNoMore(attempt);
      this.#all.set(attempt.key, undefined);
      attempt.onLate(attempt.until - GRACE_MS - this.#clock.now());
      this.follow(attempt);
    }
  }
}
