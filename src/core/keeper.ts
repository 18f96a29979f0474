/**
 * Keeps watch over one hold: until when it can be known to be ours, judged
 * anew whenever anybody looks, and told by a signal to those who don't.
 *
 * Renewing it in the background will live here too.
 */

import { type Clock, elapsedMs, type Moment } from "./clock.ts";
import { LockLostError, type LossReason } from "./errors.ts";
import { driftMs } from "./options.ts";

/** The watch over one hold, from its grant to its release or loss. */
export class Keeper {
  readonly #clock: Clock;
  readonly #key: string;
  /** When the lease that counts was asked for, and how long it is good from then. */
  #asked: Moment;
  #validMs: number;
  #released = false;
  #loss: LockLostError | undefined;
  #controller: AbortController | undefined;
  #callOff: (() => void) | undefined;

  /** A hold of `key` that was asked for at `asked`, for `ttlMs`. */
  constructor(clock: Clock, key: string, asked: Moment, ttlMs: number) {
    this.#clock = clock;
    this.#key = key;
    this.#asked = asked;
    // From when we asked, not from the answer: a slow reply must not lengthen it.
    this.#validMs = ttlMs - driftMs(ttlMs);
  }

  /** What is left in milliseconds; 0 once released or lost. Judges. */
  get remainingMs(): number {
    if (this.#released || this.#loss !== undefined) return 0;
    const left = this.#leftMs;
    if (left > 0) return left;
    this.lose("expired");
    return 0;
  }

  /** The loss, if there is one by now. Judges. */
  get loss(): LockLostError | undefined {
    return this.remainingMs > 0 ? undefined : this.#loss;
  }

  /** Whether the time of the last lease is up, also of one that was released. */
  get isOver(): boolean {
    return this.#leftMs <= 0;
  }

  get #leftMs(): number {
    return this.#validMs - elapsedMs(this.#clock, this.#asked);
  }

  /**
   * Aborts with the loss. Its timer is set when somebody first looks at it, so
   * that the many who never do pay nothing.
   */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      this.#judgeWhenRead(this.#controller.signal);
      this.#watch();
    }
    if (this.loss !== undefined) this.#abort();
    return this.#controller.signal;
  }

  /**
   * A lease of `ttlMs` is about to be asked for. Should it be the shorter, it
   * counts from now on: the server may have it long before we hear of it.
   */
  expect(asked: Moment, ttlMs: number): void {
    const validMs = ttlMs - driftMs(ttlMs);
    if (validMs < this.remainingMs) this.#count(asked, validMs);
  }

  /** The server has given a lease of `ttlMs`, asked for at `asked`. */
  renewed(asked: Moment, ttlMs: number): void {
    // Judged by the old lease first: a loss that was told can't be taken back.
    if (this.remainingMs > 0) this.#count(asked, ttlMs - driftMs(ttlMs));
  }

  /** It is ours no more, for `reason`; the first reason stands. */
  lose(reason: LossReason, cause?: unknown): void {
    if (this.#released || this.#loss !== undefined) return;
    this.#loss = new LockLostError(this.#key, reason, cause);
    this.#abort();
  }

  /**
   * It is about to be released: nobody counts on it from here on. Should it
   * have been lost by now, lost it stays.
   */
  release(): void {
    if (this.remainingMs === 0) return;
    this.#released = true;
    this.#stopWatching();
  }

  #count(asked: Moment, validMs: number): void {
    this.#asked = asked;
    this.#validMs = validMs;
    if (this.#callOff !== undefined) this.#watch();
  }

  /** Looks again when the lease should be over, as often as it was prolonged. */
  #watch(): void {
    this.#stopWatching();
    const left = this.remainingMs;
    if (left > 0) {
      this.#callOff = this.#clock.setTimer(() => this.#watch(), left);
    }
  }

  #stopWatching(): void {
    this.#callOff?.();
    this.#callOff = undefined;
  }

  #abort(): void {
    this.#stopWatching();
    this.#controller?.abort(this.#loss);
  }

  /**
   * A signal that was handed out is read without passing through us. After a
   * stalled event loop that read may come before any timer, so it judges too.
   */
  #judgeWhenRead(signal: AbortSignal): void {
    const judged = <T>(read: () => T) => () => (this.remainingMs, read());
    const inherited = (name: "aborted" | "reason") => {
      const { get } = Object.getOwnPropertyDescriptor(
        AbortSignal.prototype,
        name,
      )!;
      return judged(get!.bind(signal));
    };
    Object.defineProperties(signal, {
      aborted: { get: inherited("aborted") },
      reason: { get: inherited("reason") },
      throwIfAborted: { value: judged(signal.throwIfAborted.bind(signal)) },
    });
  }
}
