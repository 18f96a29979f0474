/** Time as a lock needs it: two clocks to measure with, and one kind of timer. */

import { onAbort } from "./aborts.ts";

/**
 * What the library asks of time. The system's is the default; tests hand in
 * one that they crank themselves.
 */
export interface Clock {
  /** Milliseconds that only grow; from an arbitrary origin. */
  now(): number;
  /** Milliseconds of the wall clock: goes on while a machine sleeps, may jump. */
  wall(): number;
  /**
   * Calls `callback` once, not before `ms` milliseconds from now. It keeps the
   * process alive only where `isAwaited`: for a caller who waits for it.
   *
   * @returns A function that calls it off.
   */
  setTimer(callback: () => void, ms: number, isAwaited?: boolean): () => void;
}

/** The furthest that `setTimeout` can look ahead; beyond, it fires at once. */
const FURTHEST_MS = 2 ** 31 - 1;

/** The clocks and timers of the machine. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  setTimer(callback, ms, isAwaited = false) {
    let timer: ReturnType<typeof setTimeout>;
    const start = (leftMs: number) => {
      timer = leftMs > FURTHEST_MS
        ? setTimeout(() => start(leftMs - FURTHEST_MS), FURTHEST_MS)
        : setTimeout(callback, Math.max(0, Math.ceil(leftMs)));
      // Deno's types speak of a number; all three runtimes give an object.
      if (!isAwaited) (timer as { unref?(): void }).unref?.();
    };
    start(ms);
    return () => clearTimeout(timer);
  },
};

/** One moment, read off both clocks. */
export interface Moment {
  /** The monotonic clock then. */
  readonly now: number;
  /** The wall clock then. */
  readonly wall: number;
}

/** Two clocks that are read one after the other are to be no further apart. */
const TORN_MS = 5;
/** How often to try that. */
const TRIES = 3;

/** This moment; read again if the process lost its turn between the clocks. */
export function moment(clock: Clock): Moment {
  let now = clock.now();
  for (let times = 1;; times++) {
    const wall = clock.wall();
    const then = clock.now();
    if (then - now < TORN_MS || times === TRIES) return { now, wall };
    now = then;
  }
}

/** For how long one look at the machine's clocks does for `asking()`. */
const STALE_MS = 0.2;
let lastAsking: Moment = { now: -Infinity, wall: 0 };

/**
 * This moment, as one from which a lease counts; or one just before it, which
 * only makes the lease end sooner. The two clocks take three looks, and each of
 * them as long as some of what else is done for a lock.
 */
export function asking(clock: Clock): Moment {
  if (clock !== systemClock) return moment(clock);
  const sinceMs = clock.now() - lastAsking.now;
  return sinceMs < STALE_MS ? lastAsking : lastAsking = moment(clock);
}

/**
 * Calls `callback` after `ms` and one more turn of the event loop: after a stall
 * its timers run before it reads the answers that have come meanwhile.
 *
 * @returns A function that calls it off.
 */
export function whenLate(
  clock: Clock,
  callback: () => void,
  ms: number,
  isAwaited?: boolean,
): () => void {
  let callOff = clock.setTimer(
    () => {
      callOff = clock.setTimer(callback, 0, isAwaited);
    },
    ms,
    isAwaited,
  );
  return () => callOff();
}

/**
 * What `attempt` comes to, or an error if that takes longer than `limitMs`; the
 * attempt itself can't be called back.
 */
export function within<T>(
  clock: Clock,
  limitMs: number,
  attempt: () => Promise<T>,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const callOff = clock.setTimer(
      () => reject(new Error(`No answer in ${Math.round(limitMs)} ms`)),
      limitMs,
    );
    attempt().then(resolve, reject).finally(callOff);
  });
}

/** Resolves after `ms`, or rejects with the signal's reason. */
export function pause(
  clock: Clock,
  ms: number,
  signal?: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const callOff = clock.setTimer(
      () => {
        ignore?.();
        resolve();
      },
      Math.max(0, ms),
      true,
    );
    const ignore = signal && onAbort(signal, () => {
      callOff();
      reject(signal.reason);
    });
  });
}

/**
 * Calls `callback` once those have been told who wait for what was settled just
 * now: a few steps of promises later, and in the same turn of the event loop.
 */
export async function afterwards(callback: () => void): Promise<void> {
  for (let step = 0; step < 4; step++) await undefined;
  callback();
}
