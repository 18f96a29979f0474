/**
 * Keeps watch over one hold: until when it can be known to be ours, judged
 * anew whenever anybody looks; renews it where that is wanted; and aborts its
 * signal once it is lost.
 *
 * Two clocks measure the lease. Where both agree, the larger count stands.
 * Where they differ by more than drift explains, somebody set the wall clock
 * or the machine slept, and we cannot tell which: the lock then counts as not
 * held, and the server is asked. Two clocks can be fooled together only by a
 * machine that sleeps and whose wall clock is set back by just as much.
 */

import {
  type Backend,
  type Claim,
  clockOf,
  type Standing,
  type Verdict,
} from "./backend.ts";
import { type Clock, type Moment, moment, within } from "./clock.ts";
import {
  isPassing,
  isSilence,
  LockBackendError,
  LockLostError,
  type LossReason,
  toFailure,
} from "./errors.ts";
import { type LockEvent, tell } from "./events.ts";
import { labelOf } from "./keys.ts";
import { driftMs, validMs } from "./options.ts";
import type { LocalTurn } from "./party.ts";
import { extendAll, renewalOf, type Renewed } from "./renewal.ts";

/** On what terms a lock is acquired and kept. */
export interface Terms {
  /** Whether to renew it in the background. */
  readonly autoExtend: boolean;
  /** After how many milliseconds it ends, however often it was renewed. */
  readonly maxHoldMs: number;
  /** Whether to draw a fencing token. */
  readonly fencing: boolean;
  /** How differently clocks may run, if not by one percent. */
  readonly driftFactor?: number | undefined;
  /** Gives up acquiring: rejects with its reason, and nothing stays behind. */
  readonly signal?: AbortSignal | undefined;
}

/** Two clocks that are read one after the other differ by this much at least. */
const UNSURE_MS = 20;

/** How soon to ask again which of two clocks is right, at first. */
const DOUBT_FIRST_MS = 50;

/** A lease: when it was asked for, and for how long. */
export interface Lease {
  /** When it was asked for; it counts from then. */
  readonly asked: Moment;
  /** For how long, in milliseconds. */
  readonly ms: number;
  /**
   * Whether it is the short one that comes with a turn in line, so that one who
   * never takes it up costs the others little: to be made a full one soon.
   */
  readonly isShort: boolean;
}

/** The watch over one hold, from its grant to its release or loss. */
export class Keeper {
  /** Where it lives. */
  readonly backend: Backend;
  /** What was granted. */
  readonly claim: Claim;
  /** The fencing token, if one was drawn. */
  readonly fencingToken: number | undefined;
  /** How it is to be kept. */
  terms: Terms;
  /** The turn in line that it is part of, if it came by one. */
  turn: LocalTurn | undefined;
  readonly #clock: Clock;
  /** When the hold began. */
  #since: Moment;
  /** The lease that counts: when it was asked for, and for how long. */
  #asked: Moment;
  #ttlMs: number;
  #isShort: boolean;
  #isReleased = false;
  #loss: LockLostError | undefined;
  /** The server is being asked which of two clocks is right. */
  #isInDoubt = false;
  /** Why the last extension was not answered: not yet, or by an error. */
  #unanswered: LockBackendError | "pending" | undefined;
  /** Settles once none of the renewals in the background is under way. */
  #renewing: Promise<void> | undefined;
  /** Settles once no extension is under way. */
  #underWay: Promise<unknown> | undefined;
  /** How many extensions by hand are, and when the last was sent. */
  #byHand = 0;
  #sentByHand: Moment | undefined;
  /** The shortest lease that one without an answer may still make of any. */
  #mostMs = Infinity;
  #controller: AbortController | undefined;
  #callOff: (() => void) | undefined;
  /** What looks again which of two clocks is right. */
  #callOffDoubt: (() => void) | undefined;
  /** Its place among those that are renewed: kept for it by renewal.ts. */
  renewed: Renewed | undefined;

  /**
   * A hold of `claim`, asked for at `asked`; so much of it was left then.
   *
   * @param before Whose hold goes on as this one, and is renewed no more.
   */
  constructor(
    backend: Backend,
    claim: Claim,
    asked: Moment,
    terms: Terms,
    fencingToken?: number,
    leftMs: number = claim.ttlMs,
    isShort: boolean = false,
    before?: Keeper,
  ) {
    this.backend = backend;
    this.#clock = clockOf(backend);
    this.claim = claim;
    this.terms = terms;
    this.fencingToken = fencingToken;
    this.#since = asked;
    this.#asked = asked;
    // Without an expiry it is ours for longer than can be counted.
    this.#ttlMs = leftMs < Infinity ? leftMs : Number.MAX_SAFE_INTEGER;
    this.#isShort = isShort;
    if (before?.renewed !== undefined && this.#isRenewed) {
      renewalOf(backend).replace(before.renewed, this, this.dueAt);
    } else this.#plan();
  }

  /**
   * Looks again when the lease should be over, as often as it was prolonged: for
   * who is to be told of a loss as it happens, if anybody. An observer has to
   * be told of the hold by now.
   */
  watch(): void {
    if (!this.#isWatched) return;
    this.#callOff?.();
    this.#callOff = undefined;
    const left = this.remainingMs;
    if (left > 0) {
      this.#callOff = this.#clock.setTimer(() => this.watch(), left);
    }
  }

  /** What is left in milliseconds; 0 once released or lost. Judges. */
  get remainingMs(): number {
    if (this.#isEnded) return 0;
    let now = this.#clock.now();
    // From when we asked, not from the answer: a slow reply must not lengthen it.
    let passedMs = now - this.#asked.now;
    let passedByWallMs = this.#clock.wall() - this.#asked.wall;
    if (Math.abs(passedByWallMs - passedMs) > this.#unsureMs) {
      // Unless the process lost its turn between the two.
      const { now: again, wall } = moment(this.#clock);
      now = again;
      passedMs = now - this.#asked.now;
      passedByWallMs = wall - this.#asked.wall;
    }
    const leftMs = this.#validMs - Math.max(passedMs, passedByWallMs);
    const leftToHoldMs = this.terms.maxHoldMs - (now - this.#since.now);
    // The monotonic clock never runs ahead: what is over by it is over.
    const isOver = passedMs >= this.#validMs;
    // Looked at late, both may be over: what came first is the reason.
    if (leftToHoldMs <= 0 && !(isOver && this.needsRenewal)) {
      this.lose("max-hold");
    } else if (isOver) this.#runOut();
    else if (this.#isInDoubt) return 0;
    else if (Math.abs(passedByWallMs - passedMs) > this.#unsureMs) {
      void this.#settleDoubt();
    } else if (leftMs > 0) return Math.min(leftMs, leftToHoldMs);
    else this.#runOut();
    return 0;
  }

  /** The loss, if there is one by now. Judges. */
  get loss(): LockLostError | undefined {
    return this.remainingMs > 0 ? undefined : this.#loss;
  }

  /** Whether it counts as not held only until the server has been asked. */
  get isInDoubt(): boolean {
    return this.#isInDoubt;
  }

  /** Milliseconds since the hold began. */
  get heldMs(): number {
    return this.#clock.now() - this.#since.now;
  }

  /** Whether the time of the last lease is up, also of one that was released. */
  get isOver(): boolean {
    return this.#clock.now() - this.#asked.now >= this.#validMs;
  }

  /** From now on it is kept on these terms: renewed, or not any more. */
  keepOn(terms: Terms): void {
    this.terms = terms;
    if (!this.#isRenewed) renewalOf(this.backend).drop(this);
    else if (this.remainingMs > 0) this.#plan();
  }

  /** The hold begins now, on these terms: what was before was waiting. */
  begin(terms: Terms): void {
    this.#since = moment(this.#clock);
    this.keepOn(terms);
    this.watch();
  }

  /** The lease that counts, while it is held. Judges. */
  get lease(): Lease | undefined {
    if (this.remainingMs === 0) return undefined;
    return { asked: this.#asked, ms: this.#ttlMs, isShort: this.#isShort };
  }

  /** How long the present lease is, all in all. */
  get leaseMs(): number {
    return this.#ttlMs;
  }

  /** When two thirds of a full lease will be left, or of this if it is less. */
  get dueAt(): number {
    const spareMs = this.#ttlMs - this.claim.ttlMs * 2 / 3;
    return this.#asked.now + Math.max(spareMs, this.#ttlMs / 3);
  }

  /** Whether the lease ends before it may be held no longer. */
  get needsRenewal(): boolean {
    const leaseMs = this.#asked.now + this.#validMs - this.#since.now;
    return leaseMs < this.terms.maxHoldMs;
  }

  /** Whether there is an extension in the background to come. */
  get #isRenewed(): boolean {
    return this.terms.autoExtend || this.#isShort;
  }

  /** Whether it is being extended by hand: then renewal keeps out of the way. */
  get isBeingExtended(): boolean {
    return this.#byHand > 0;
  }

  /** Whether what was extended by hand may yet cut short any later lease. */
  get mayBeCut(): boolean {
    return this.isBeingExtended || this.#mostMs < Infinity;
  }

  /** A renewal in the background is under way: extensions by hand wait for it. */
  isBeingRenewed(extension: Promise<unknown>): void {
    const all = Promise.all([this.#renewing, extension])
      .then(() => {}, () => {});
    this.#renewing = all;
    void all.then(() => {
      if (this.#renewing === all) this.#renewing = undefined;
    });
    this.isUnderWay(extension);
  }

  /** An extension is under way; others wait for it, or on the way to the server
   * one to less could pass one to more, and be the last that it does. */
  isUnderWay(extension: Promise<unknown>): void {
    const all = Promise.all([this.#underWay, extension]).catch(() => {});
    this.#underWay = all;
    void all.then(() => {
      if (this.#underWay === all) this.#underWay = undefined;
    });
  }

  /**
   * Aborts with the loss. Its timer is set when somebody first looks at it, so
   * that the many who never do pay nothing.
   */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      judgeWhenRead(this.#controller.signal, () => void this.remainingMs);
      this.watch();
    }
    if (this.loss !== undefined) this.#controller.abort(this.#loss);
    return this.#controller.signal;
  }

  /**
   * Extends by hand, once what is under way has been answered.
   *
   * @throws {LockLostError} It was lost before there was an answer.
   * @throws {LockBackendError} The server could not be asked.
   */
  async extend(ttlMs: number): Promise<void> {
    await this.#byHandOnce(async (letGo) => {
      const leaseMs = this.#ttlMs;
      const asked = this.asks(ttlMs);
      this.#sentByHand = asked;
      const claim = { ...this.claim, ttlMs };
      const mostMs = this.#mostMs;
      // Never answered it must not keep the renewal out; it may be done yet.
      const callOff = this.#clock.setTimer(() => {
        this.#mostMs = Math.min(this.#mostMs, ttlMs);
        letGo();
      }, Math.min(leaseMs, ttlMs) / 3);
      const [answer] = await extendAll(this.backend, [claim]);
      callOff();
      this.#mostMs = mostMs;
      // It may be done yet, at any time from now on.
      if (isSilence(answer)) this.#mostMs = Math.min(this.#mostMs, ttlMs);
      this.answered(answer, asked, ttlMs);
      return answer;
    });
  }

  /** Does `extend` once what is under way has been answered, if it is held. */
  async #byHandOnce(
    extend: (
      letGo: () => void,
    ) => Promise<Verdict | LockBackendError | undefined>,
  ): Promise<void> {
    const before = this.#underWay;
    let isAhead = true;
    let isLate = false;
    const letGo = () => {
      if (isAhead) this.#byHand--;
      isAhead = false;
    };
    this.#byHand++;
    const turn = (async () => {
      // What is under way may never be answered: then the renewal goes on.
      const callOff = before && this.#clock.setTimer(letGo, this.#ttlMs / 3);
      try {
        await before;
        while (this.#renewing !== undefined) await this.#renewing;
        // From here on it is this one that is under way, until it is answered.
        callOff?.();
        if (!isAhead) this.#byHand++;
        isAhead = true;
        return isLate || this.remainingMs === 0
          ? undefined
          : await extend(letGo);
      } finally {
        callOff?.();
        letGo();
      }
    })();
    this.isUnderWay(turn);
    const { key } = this.claim;
    // A server that says nothing is waited for until the loss, and no longer.
    const limitMs = this.remainingMs;
    const answer = await within(this.#clock, limitMs, () => turn)
      .catch((cause) => {
        isLate = true;
        const text = `Cannot extend "${key}": ${cause.message}`;
        return new LockBackendError(key, text);
      });
    if (this.loss !== undefined) throw this.loss;
    if (answer instanceof Error) throw answer;
  }

  /**
   * Adds `byMs` to what is left, or takes it off, and changes nothing else.
   *
   * @returns Whether anything would be left; if not, nothing was done.
   * @throws {LockLostError} It was lost before there was an answer.
   * @throws {LockBackendError} The server could not be asked.
   */
  async prolong(byMs: number): Promise<boolean> {
    // What is added to is the lease that was wished for.
    if (this.#isShort) await this.extend(this.claim.ttlMs);
    let isLeft = true;
    await this.#byHandOnce(async () => {
      const ttlMs = this.#ttlMs + byMs;
      const passedMs = this.#clock.now() - this.#asked.now;
      if (passedMs >= validMs(ttlMs, this.terms)) {
        isLeft = false;
        return undefined;
      }
      const asked = moment(this.#clock);
      this.#unanswered ??= "pending";
      // The server may have the shorter one long before we hear of it.
      if (byMs < 0) this.#count(this.#asked, ttlMs);
      this.#sentByHand = asked;
      const answer = await this.#askToProlong(byMs);
      if (answer instanceof LockBackendError) {
        this.answered(answer, asked, ttlMs);
        return answer;
      }
      const { verdict, leftMs } = answer;
      isLeft = verdict !== "done" || leftMs > 0;
      const knownMs = Math.min(leftMs, Number.MAX_SAFE_INTEGER);
      if (isLeft) this.answered(verdict, asked, knownMs);
      return verdict;
    });
    return isLeft;
  }

  async #askToProlong(byMs: number): Promise<Standing | LockBackendError> {
    try {
      if (this.backend.prolong !== undefined) {
        return await this.backend.prolong(this.claim, byMs);
      }
      // By our own clock, which is a moment behind the server's.
      const passedMs = this.#clock.now() - this.#asked.now;
      const leftMs = this.#ttlMs + Math.max(0, byMs) - passedMs;
      const claim = { ...this.claim, ttlMs: Math.max(1, Math.round(leftMs)) };
      const [verdict] = await extendAll(this.backend, [claim]);
      return verdict instanceof LockBackendError
        ? verdict
        : { verdict, leftMs: claim.ttlMs };
    } catch (cause) {
      return toFailure("extend", this.claim.key, cause);
    }
  }

  /**
   * A lease of `ttlMs` is asked for now. Should it be the shorter, it counts
   * from now on: the server may have it long before we hear of it.
   */
  asks(ttlMs: number): Moment {
    const asked = moment(this.#clock);
    this.#unanswered ??= "pending";
    const isLess = validMs(ttlMs, this.terms) < this.remainingMs;
    if (isLess) this.#count(asked, ttlMs);
    return asked;
  }

  /** What was said to a lease of `ttlMs` that was asked for at `asked`. */
  answered(
    answer: Verdict | LockBackendError,
    asked: Moment,
    ttlMs: number,
  ): void {
    // Judged by the old lease first: a loss that was told can't be taken back.
    if (this.remainingMs === 0 && !this.#isInDoubt) return;
    // Over for good while in doubt: no answer may bring it back to be renewed.
    if (this.#isEnded) return;
    const tookMs = this.#clock.now() - asked.now;
    if (answer instanceof LockBackendError) {
      this.#unanswered = answer;
      this.tell({ type: "extend-failed", tookMs, error: answer });
    } else if (answer !== "done") {
      this.lose(answer === "taken" ? "taken" : "deleted");
    } else {
      this.#unanswered = undefined;
      this.#isShort = false;
      // An older lease says nothing of a shorter one that was sent after it.
      const countsFrom = Math.max(
        this.#asked.now,
        this.#sentByHand?.now ?? -Infinity,
      );
      if (asked.now >= countsFrom) this.#count(asked, ttlMs);
      if (!this.#isRenewed) renewalOf(this.backend).drop(this);
      this.tell({ type: "extended", tookMs, ttlMs });
    }
  }

  /** It is ours no more, for `reason`; the first reason stands. */
  lose(reason: LossReason, cause?: unknown): void {
    if (this.#isEnded) return;
    const { key } = this.claim;
    const error = this.#loss = new LockLostError(key, reason, cause);
    this.#stop();
    this.#controller?.abort(error);
    this.tell({ type: "lost", heldMs: this.heldMs, reason, error });
  }

  /** The release met with no hold of ours: it was lost before, and is told so. */
  wasLost(reason: LossReason, heldMs: number): LockLostError {
    const error = new LockLostError(this.claim.key, reason);
    this.tell({ type: "lost", heldMs, reason, error });
    return error;
  }

  /**
   * It is about to be released: nobody counts on it from here on. Whoever
   * watches is told if it has been lost by now; for all others two clocks need
   * not be read, as the answer to the release will say it.
   *
   * @param isFollowed Whether another of this process is to have it soon.
   */
  release(isFollowed: boolean = false): void {
    if (this.#loss !== undefined) return;
    if (this.#isWatched && this.loss !== undefined) return;
    this.#isReleased = true;
    this.#stop(isFollowed);
  }

  /** The same where the hold goes on as that of the next in its turn. */
  passOn(lease: Lease): void {
    this.#isReleased = true;
    this.turn!.pass(this, lease);
    this.#stop();
  }

  /** Tells the observer, if there is one, of what became of this hold. */
  tell(event: Untold<LockEvent>): void {
    if (this.backend.onEvent === undefined) return;
    const { key, owner } = this.claim;
    tell(this.backend, { ...event, key, label: labelOf(owner) } as LockEvent);
  }

  /** How long the lease can be known to last, from when it was asked for. */
  get #validMs(): number {
    return validMs(this.#ttlMs, this.terms);
  }

  /** By how much two clocks may differ before one is disbelieved. */
  get #unsureMs(): number {
    return Math.max(driftMs(this.#ttlMs, this.terms.driftFactor), UNSURE_MS);
  }

  /** Whether somebody is to be told of a loss as it happens. */
  get #isWatched(): boolean {
    return this.#controller !== undefined ||
      this.backend.onEvent !== undefined;
  }

  #count(asked: Moment, ttlMs: number): void {
    this.#asked = asked;
    this.#ttlMs = Math.min(ttlMs, this.#mostMs);
    this.#isInDoubt = false;
    this.watch();
    this.#plan();
  }

  #plan(): void {
    if (this.#isRenewed) renewalOf(this.backend).plan(this, this.dueAt);
  }

  #runOut(): void {
    const why = this.#unanswered;
    if (why === undefined) this.lose("expired");
    else this.lose("unreachable", why === "pending" ? undefined : why);
  }

  /** Asks the server, and goes on from what is left, or declares the loss. */
  async #settleDoubt(): Promise<void> {
    this.#isInDoubt = true;
    let asked = moment(this.#clock);
    let standing: Standing;
    try {
      // No longer than is left in the best case: a loss must be told.
      const limitMs = this.#validMs - (asked.now - this.#asked.now);
      standing = await within(this.#clock, limitMs, async () => {
        for (let pauseMs = DOUBT_FIRST_MS;; pauseMs *= 2) {
          // Overtaken by us, an extension to less could still come after.
          await this.#underWay;
          asked = moment(this.#clock);
          try {
            return await this.backend.inquire(this.claim);
          } catch (cause) {
            const mayComeBack = isSilence(cause) || isPassing(cause);
            if (!mayComeBack || this.#isEnded) throw cause;
          }
          // A machine that was asleep may have no network yet.
          await new Promise<void>((go) => {
            this.#callOffDoubt = this.#clock.setTimer(go, pauseMs);
          });
        }
      });
    } catch (cause) {
      if (this.#isInDoubt) this.lose("unreachable", cause);
      return;
    }
    // A renewal may have been the first to get an answer.
    if (!this.#isInDoubt || this.#isReleased) return;
    const { verdict, leftMs } = standing;
    if (verdict === "taken") this.lose("taken");
    else if (verdict === "absent") this.lose("expired");
    else this.#count(asked, Math.min(leftMs, Number.MAX_SAFE_INTEGER));
  }

  /** Whether nobody counts on it any more. */
  get #isEnded(): boolean {
    return this.#isReleased || this.#loss !== undefined;
  }

  #stop(isFollowed = false): void {
    this.#callOff?.();
    this.#callOff = undefined;
    this.#callOffDoubt?.();
    if (this.renewed === undefined) return;
    renewalOf(this.backend).drop(this, isFollowed);
  }
}

/**
 * A signal that was handed out is read without passing through its maker. After
 * a stalled event loop that read may come before any timer, so it judges too.
 */
export function judgeWhenRead(signal: AbortSignal, judge: () => void): void {
  const judged = <T>(read: () => T) => () => (judge(), read());
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

/** An event without what all of one lock's have in common. */
type Untold<Event> = Event extends LockEvent ? Omit<Event, "key" | "label">
  : never;
