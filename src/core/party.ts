/**
 * A party: those of one process who wait for one key, with one place in its line.
 * A turn of it serves several, one after the other, without a word to the server:
 * lock cohorting (Dice, Marathe, Shavit: "Lock cohorting: a general technique for
 * designing NUMA locks", 2012). It ends after so many, or 10 ms, and the party
 * stands behind all others again.
 */

import {
  type Hold,
  SHORT_MS,
  TURN_MS,
  type Verdict,
  type Wish,
} from "./backend.ts";
import type { Moment } from "./clock.ts";
import type { LockBackendError } from "./errors.ts";
import type { Keeper, Lease } from "./keeper.ts";
import type { Room } from "./room.ts";
import type { Waiter } from "./wait.ts";

/** Those of one process who wait for one key, with one place in its line. */
export class Party {
  readonly key: string;
  readonly label: string | undefined;
  readonly isFenced: boolean;
  /** Whether others may join it. */
  readonly isShared: boolean;
  readonly waiters: Waiter[] = [];
  /** What stands in line for it, or is about to. */
  wish: Wish | undefined;
  /** Whether it will be called when its turn comes, or has to ask. */
  isCalled = false;
  /** Whether the server is being asked about the wish. */
  isAsked = false;
  /** Whether what is under way may be answered as of before it was called. */
  isStale = false;
  /** How many questions in a row have had no answer so far, and when the last was
   * sent. */
  unanswered = 0;
  sentAt = 0;
  /** When it was said, before it stood in line, that somebody else has the key. */
  refusedAt = -Infinity;
  /** When it was asked for first: no turn of it began before. */
  since: Moment | undefined;
  /** When its turn began, and by whom it is held; or has been, until lost. */
  turn: LocalTurn | undefined;
  /** The last word of the server: when it was asked for, and its clock then. */
  asked: Moment | undefined;
  at = 0;
  place: number | undefined;
  /** How often it was told the same place as before. */
  stillThere = 0;
  /** When the present hold ends, as far as is known. */
  freeAt: number | undefined;
  /** When to ask again. */
  askAt = Infinity;
  /** How often in a row it was in line no more, and had not been called. */
  passedOver = 0;
  /** As of which gap it can't be called, though others may be. */
  deafAt = -1;
  /** Whether its last turn was over when it heard of it. */
  wasLate = false;
  /** Why it could not be asked of late. */
  failure: LockBackendError | undefined;
  callOff: (() => void) | undefined;

  constructor(key: string, { label, terms, localTurns }: Waiter) {
    this.key = key;
    this.label = label;
    this.isFenced = terms.fencing;
    this.isShared = localTurns > 0;
  }
}

/** One turn in line, while it is passed on inside the process. */
export class LocalTurn {
  readonly #room: Room;
  readonly party: Party;
  readonly beganAt: number;
  /** The first of its fencing tokens. */
  readonly #token: number | undefined;
  /** How many it may serve, and how many it has. */
  most: number;
  served = 0;

  constructor(
    room: Room,
    party: Party,
    beganAt: number,
    most: number,
    token: number | undefined,
  ) {
    this.#room = room;
    this.party = party;
    this.beganAt = beganAt;
    this.most = most;
    this.#token = token;
  }

  /** The fencing token of the next whom it serves: one higher each time. */
  nextToken(): number | undefined {
    const nth = this.served++;
    return this.#token === undefined ? undefined : this.#token + nth;
  }

  /** Whether another of us waits for it. */
  get isFollowed(): boolean {
    return this.party.waiters.length > 0;
  }

  /** The lease of `keeper`, if what is left of it can go to another of us. */
  toPassOn(keeper: Keeper): Lease | undefined {
    const { waiters, wish, turn } = this.party;
    if (turn !== this || waiters.length === 0 || wish !== undefined) return;
    const { localTurns, ttlMs } = waiters[0];
    if (this.served >= Math.min(this.most, localTurns)) return;
    const { lease } = keeper;
    // A longer lease than it wants would cost the others more if it crashed.
    if (lease === undefined || lease.ms > ttlMs) return;
    // Nor is one of use to it that is shorter than what a turn would bring.
    if (lease.ms < Math.min(ttlMs, SHORT_MS)) return;
    if (keeper.mayBeCut) return;
    const now = this.#room.now();
    const isInTime = now - this.beganAt < TURN_MS &&
      now - lease.asked.now < lease.ms / 2;
    return isInTime ? lease : undefined;
  }

  /** Seats the next of us after `keeper`; the server need not know. */
  pass(keeper: Keeper, lease: Lease): void {
    this.#room.seat(this, keeper.claim.owner, lease, keeper);
  }

  /** The hold of `owner` goes on elsewhere, or by another name: it is passed on
   * no more. */
  drop(owner: string): void {
    this.#room.drop(this, owner);
  }

  /**
   * Gives the key back, for the next in line, and stands there again. What
   * became of it is heard before the next one learns that it has the key.
   */
  end<T>(
    hold: Hold,
    then: (verdict: Verdict) => T,
    fail: (error: unknown) => never,
  ): Promise<T> {
    return this.#room.end(this, hold, then, fail);
  }
}
