/** How one who waits over a quorum hears of a release: for `redlock.ts`. */

import type {
  Backend,
  Claim,
  Grant,
  Hearing,
  Place,
  Refusal,
  Watch,
} from "../core/backend.ts";
import type { Clock } from "../core/clock.ts";
import { count, majorityOf } from "./quorum.ts";

/** What is asked of each server for a claim. */
export type Ask = (member: Backend, index: number) => Promise<Grant | Refusal>;

/** An attempt at a quorum, with or without fencing tokens. */
export interface Attempts {
  tryAcquire(claim: Claim, ask: Ask): Promise<Grant | Refusal>;
  tryAcquireFenced(claim: Claim, ask: Ask): Promise<Grant | Refusal>;
}

/**
 * How long to wait for a second server to say so after the first: the release
 * is on its way to all of them.
 */
const TOGETHER_MS = 5;
/** Who may have missed something tries within so long: not all at once. */
const SPREAD_MS = 10;

/** Of all watches that there ever were here: their names differ by it. */
let serial = 0;

/** The open ears of one quorum: an inbox at each server that has some. */
export class Ears {
  readonly members: readonly Backend[];
  readonly #watches = new Map<string, QuorumWatch>();
  #hearings: readonly (Hearing | undefined)[] = [];

  constructor(members: readonly Backend[]) {
    this.members = members;
  }

  /** Listens for `watch`; resolves once a majority can call, or all who can. */
  open(watch: QuorumWatch): Promise<unknown> {
    if (this.#watches.size === 0) {
      this.#hearings = this.members.map(({ notices }, index) =>
        notices?.listen({
          onNotice: (name) => this.#watches.get(name)?.onNotice(index),
          onGap: () => {
            for (const watch of this.#watches.values()) watch.onGap();
          },
        })
      );
    }
    this.#watches.set(watch.name, watch);
    const opening = this.#hearings.flatMap((it) => it ? [it.opened] : []);
    const most = majorityOf(this.members.length);
    let left = Math.min(most, opening.length);
    return new Promise<void>((resolve) => {
      for (const opened of opening) {
        opened.then(() => {
          if (--left <= 0) resolve();
        });
      }
    });
  }

  /** How many have to call: a majority, or all who can. */
  get enough(): number {
    const most = majorityOf(this.members.length);
    return Math.min(
      most,
      count(this.#hearings, (it) => it?.inbox !== undefined),
    );
  }

  /** By what `watch` is known to that server. */
  nameAt(index: number, { name }: QuorumWatch): string | undefined {
    const inbox = this.#hearings[index]?.inbox;
    return inbox === undefined ? undefined : `${inbox} ${name}`;
  }

  /** Listens for it no more. */
  close({ name }: QuorumWatch): void {
    this.#watches.delete(name);
    if (this.#watches.size > 0) return;
    for (const hearing of this.#hearings) hearing?.close();
    this.#hearings = [];
  }
}

/** That a server has noted a watch, by what name and where. */
interface Noted {
  readonly by: string;
  readonly answer: Place;
}

/**
 * One who waits for a key of a quorum. Each server notes it, and tells the first
 * whom it has noted of a release; mostly they tell the same one, and it tries
 * once a majority has.
 */
export class QuorumWatch implements Watch {
  readonly name: string = (serial++).toString(36);
  onCall: () => void = () => {};
  readonly #key: string;
  readonly #ears: Ears;
  readonly #clock: Clock;
  readonly #attempts: Attempts;
  /** By what name each server has noted it, and where; as far as is known. */
  readonly #noted = new Map<number, Noted>();
  /**
   * The smallest ticket that a server gave it, and by which it is noted at all
   * of them from then on: so they agree who is first.
   */
  #ticket: number | undefined;
  /** Who said since the last try that the key was released. */
  readonly #told = new Set<number>();
  /** Whether some server would have granted the last try. */
  #isSplit = false;
  #isOpen = false;
  #isClosed = false;
  #callOff: (() => void) | undefined;

  constructor(key: string, ears: Ears, clock: Clock, attempts: Attempts) {
    this.#key = key;
    this.#ears = ears;
    this.#clock = clock;
    this.#attempts = attempts;
  }

  get isHeard(): boolean {
    const { members } = this.#ears;
    return count(members, ({ notices }) => notices?.isOpen ?? false) >=
      majorityOf(members.length);
  }

  open(): Promise<unknown> {
    this.#isOpen = true;
    return this.#ears.open(this);
  }

  get place(): number | undefined {
    const all = [...this.#noted.values()].map(({ answer }) => answer);
    // Nobody tells of the end of a vote that was split, or of a stranger's hold.
    const isCalled = all.length >= majorityOf(this.#ears.members.length) &&
      !this.#isSplit && !all.some(({ isForeign }) => isForeign);
    return isCalled ? Math.min(...all.map(({ place }) => place!)) : undefined;
  }

  tryAcquire(claim: Claim, isFenced: boolean): Promise<Grant | Refusal> {
    this.#told.clear();
    this.#callOff?.();
    this.#callOff = undefined;
    this.#isSplit = false;
    const tokens = isFenced ? 1 : 0;
    const ask: Ask = (member, index) => {
      const { notices } = member;
      if (notices === undefined) {
        return isFenced
          ? member.tryAcquireFenced!(claim)
          : member.tryAcquire(claim);
      }
      const by = this.#ears.nameAt(index, this);
      const wish = { ...claim, tokens, ticket: this.#ticket };
      const before = this.#noted.get(index);
      this.#noted.delete(index);
      return notices.tryAcquire(wish, by).then((answer) => {
        if (answer.granted) this.#isSplit = true;
        else if (by !== undefined) this.#note(index, { by, answer });
        return answer;
      }, (error) => {
        if (before !== undefined) this.#note(index, before);
        throw error;
      });
    };
    return isFenced
      ? this.#attempts.tryAcquireFenced(claim, ask)
      : this.#attempts.tryAcquire(claim, ask);
  }

  #note(index: number, noted: Noted): void {
    const { ticket = Infinity } = noted.answer;
    this.#ticket = Math.min(this.#ticket ?? Infinity, ticket);
    if (this.#isClosed) this.#forget(index, noted.by);
    else this.#noted.set(index, noted);
  }

  /** A server says that the key was released, and that it is kept for this. */
  onNotice(index: number): void {
    this.#told.add(index);
    if (this.#told.size >= this.#ears.enough) this.#call();
    else {
      this.#callOff ??= this.#clock.setTimer(() => this.#call(), TOGETHER_MS);
    }
  }

  /** A server may have said so, and was not heard. */
  onGap(): void {
    const inMs = Math.random() * SPREAD_MS;
    this.#callOff ??= this.#clock.setTimer(() => this.#call(), inMs);
  }

  #call(): void {
    this.#callOff?.();
    this.#callOff = undefined;
    this.onCall();
  }

  close(): void {
    this.#isClosed = true;
    this.#callOff?.();
    this.#callOff = undefined;
    if (this.#isOpen) this.#ears.close(this);
    for (const [index, { by }] of this.#noted) this.#forget(index, by);
  }

  #forget(index: number, by: string): void {
    this.#ears.members[index].notices?.forget(this.#key, by);
  }
}
