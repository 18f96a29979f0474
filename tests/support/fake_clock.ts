/**
 * A clock that moves only when told to, and tells a busy program, a stopped one
 * and a corrected wall clock apart: the four ways in which time goes wrong.
 */
import { setImmediate } from "node:timers";

import type { Clock } from "../../src/core/clock.ts";

interface Timer {
  readonly at: number;
  readonly callback: () => void;
}

/** A hand-cranked {@linkcode Clock}. */
export class FakeClock implements Clock {
  #now = 0;
  #wall: number;
  // In the order of creation, which is also the order of equal due times.
  readonly #timers = new Set<Timer>();

  /** `wall` is the date at which it starts, in ms. */
  constructor(wall: number = Date.UTC(2030, 0, 1)) {
    this.#wall = wall;
  }

  /** Monotonic ms, from 0. */
  now(): number {
    return this.#now;
  }

  /** The date in ms. */
  wall(): number {
    return this.#wall;
  }

  /** Calls back once, `ms` from now; the result takes it back. */
  setTimer(callback: () => void, ms: number): () => void {
    // As setTimeout does it: what is overdue or no number is due at once.
    const timer = { at: this.#now + (ms > 0 ? ms : 0), callback };
    this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  }

  /** How many timers are neither fired nor taken back. */
  get pending(): number {
    return this.#timers.size;
  }

  /** In how many ms the next timer is due (0 when overdue), if there is one. */
  get nextInMs(): number | undefined {
    const next = this.#next();
    return next && Math.max(0, next.at - this.#now);
  }

  /**
   * Lets `ms` pass: every timer that falls due fires at its own instant, those
   * set on the way included, and what it started runs before the next one.
   */
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    await settle();
    for (
      let timer = this.#next();
      timer && timer.at <= end;
      timer = this.#next()
    ) {
      this.#move(Math.max(0, timer.at - this.#now));
      this.#timers.delete(timer);
      timer.callback();
      await settle();
    }
    // A callback may have stalled the clock past the end by itself.
    this.#move(Math.max(0, end - this.#now));
    await settle();
  }

  /** A blocked event loop: both clocks move on and no timer fires. */
  stall(ms: number): void {
    this.#move(ms);
  }

  /** A suspended machine: only the wall clock goes on. */
  suspend(ms: number): void {
    this.#wall += ms;
  }

  /** Somebody sets the wall clock, `ms` forward or (negative) back. */
  stepWall(ms: number): void {
    this.#wall += ms;
  }

  #move(ms: number): void {
    this.#now += ms;
    this.#wall += ms;
  }

  #next(): Timer | undefined {
    let next: Timer | undefined;
    for (const timer of this.#timers) {
      if (!next || timer.at < next.at) next = timer;
    }
    return next;
  }
}

/**
 * Waits until what can go on without time has gone on. One macrotask empties
 * the whole microtask queue, however long the chain of promises; the second is
 * for code that itself yields once.
 */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 2; turn++) {
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}
