/**
 * The waiting room of a process: who waits for a key here stands in line there
 * as one party, and is seated when the party's turn comes.
 */

import { Attempts, Doubts, GRACE_MS } from "./attempts.ts";
import {
  type Backend,
  type Claim,
  clockOf,
  HEARTBEAT_MS,
  type Hold,
  type Line,
  type Place,
  type Refusal,
  type Turn,
  TURN_MS,
  type Verdict,
  type Wish,
} from "./backend.ts";
import { asking, type Clock, type Moment, within } from "./clock.ts";
import {
  isPassing,
  LockBackendError,
  outlasted,
  toFailure,
  unanswered,
} from "./errors.ts";
import { tell } from "./events.ts";
import { Keeper, type Lease } from "./keeper.ts";
import { drawOwner, labelOf } from "./keys.ts";
import { validMs } from "./options.ts";
import { LocalTurn, Party } from "./party.ts";
import { renewalOf } from "./renewal.ts";
import type { Waiter } from "./wait.ts";

/**
 * From when on those who are left stand in line again, while one of them has the
 * turn. A little later than that: most holds that outlast the turn are over soon,
 * and then the release has the party stand there, without a command more.
 */
const STAND_MS = 15;
/** Where something is to be asked anyway, so much else that is due soon, too: with
 * half a period all come together by and by, where one command has room. */
const TOGETHER_MS = HEARTBEAT_MS / 2;
const TOGETHER_OF_MANY_MS = HEARTBEAT_MS / 4;
/** How soon after the end of somebody's lease to ask. */
const AFTER_MS = 4;
/** How soon after a failure to ask again. */
const RETRY_MS = 100;
/** How long to listen on when nobody waits any more. */
const IDLE_MS = 1_000;
/** How many wishes go into one command: a script holds everybody else up. */
const MOST_AT_ONCE = 250;
/**
 * How many fencing tokens a turn draws at most, and so serves: drawn by the
 * thousand, they would run ahead of the clock that they are to be no less than.
 */
const MOST_TOKENS = 100;
/** How often, where whoever has the key may go without a word. */
const FOREIGN_MS = 150;
/**
 * Where nobody can call us, the first in line asks this often, at most; and the
 * less often the longer it stands there, as far as a turn is still heard of in a
 * quarter of a second. Each question may be a request that is paid for.
 */
const POLL_FIRST_MS = 25;
const POLL_GROWTH = 1.3;
const POLL_HEAD_MS = 120;
const POLL_LAST_MS = 1_000;
/** And by and by so often, while there is no answer: each may stay open. */
const SILENCE_MS = 30_000;
/** For how long it is known that a hold goes on elsewhere. */
const GONE_MS = 300_000;
/** How often to try whether we can be called again. */
const LISTEN_AGAIN_MS = 5_000;
/** How often in a row one is passed over before one asks instead. */
const MOST_PASSED_OVER = 2;

/** What no patience will change: the server's word on our rights, or the key. */
const FINAL = new Set(["NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE", "ERR"]);

const settled = Promise.resolve();

/** The room of each backend at which somebody has waited. */
const rooms = new WeakMap<Backend, Room>();

/** The room of `backend`, before whose keys there are lines. */
export function roomOf(backend: Backend, line: Line): Room {
  let room = rooms.get(backend);
  if (room === undefined) rooms.set(backend, room = new Room(backend, line));
  return room;
}

/** The waiting room before the keys of one backend. */
export class Room {
  readonly #backend: Backend;
  readonly #line: Line;
  readonly #clock: Clock;
  /** The parties that others may join, by key. */
  readonly #parties = new Map<string, Party[]>();
  /** The parties in line, by the owner of their wish. */
  readonly #standing = new Map<string, Party>();
  /** Who holds a key by a turn, by owner: to be told if it is ended by force. */
  readonly #seated = new Map<string, Keeper>();
  /** Whose hold goes on elsewhere, by owner, and until when that is known: what
   * was asked before may be answered long after the lease that we know of. */
  readonly #gone = new Map<string, number>();
  #sweepAt = 64;
  readonly #doubts: Doubts;
  /** Of those who try in passing. */
  readonly attempts: Attempts<Party>;
  /** Who waits at each key for one of us who stands in line soon, or has it. */
  readonly #passing = new Map<
    string,
    { readonly first: Party; readonly followers: Party[]; isAnswered: boolean }
  >();
  #opening: Promise<void> | undefined;
  /** Nobody can call us: one has to ask again and again. */
  #isDeaf = false;
  /** Whether that was told, and when to try again whether it is still so. */
  #isDeafTold = false;
  #listenAgainAt = 0;
  /** How often messages may have been missed. */
  #gaps = 0;
  /** Who is to be asked for as soon as this moment is over. */
  #coming: Party[] = [];
  #wakesAt = Infinity;
  #callOffWake = () => {};
  #usedAt = 0;
  #callOffIdle = () => {};

  constructor(backend: Backend, line: Line) {
    this.#backend = backend;
    this.#line = line;
    this.#clock = clockOf(backend);
    this.#doubts = new Doubts(this.#clock);
    this.attempts = new Attempts(
      this.#clock,
      this.#doubts,
      (followers) => this.#goOnAll(followers),
    );
  }

  /** Milliseconds by the clock of the backend. */
  now(): number {
    return this.#clock.now();
  }

  /** Whether nobody here waits for `key`, nor is about to, nor is called. */
  isQuietAt(key: string): boolean {
    if (this.#line.inbox !== undefined || this.#isDeaf) return false;
    return this.#opening === undefined && !this.#passing.has(key) &&
      this.attempts.at(key) === undefined;
  }

  /** Those who have waited for another of us, in their order. */
  #goOnAll(followers: readonly Party[]): void {
    for (const party of followers) {
      if (party.waiters.length > 0 && party.wish === undefined) {
        this.#goOn(party, false);
      }
    }
  }

  /** Makes a turn of what `party` could go on with. */
  #adopt(party: Party): void {
    const tried = this.attempts.at(party.key);
    if (tried?.keeper === undefined) return;
    const { keeper, beganAt, localTurns } = tried;
    // Its one token is for one holder.
    if (party.isFenced || keeper.terms.fencing || !party.isShared) return;
    if (labelOf(keeper.claim.owner) !== party.label) return;
    const turn = new LocalTurn(this, party, beganAt, localTurns, undefined);
    turn.served = 1;
    keeper.turn = party.turn = turn;
    this.#seated.set(keeper.claim.owner, keeper);
    this.attempts.forget(party.key);
  }

  /**
   * Lets `waiter` wait for `key`: before all who came after it, if it `isAhead`
   * as one who has tried in passing; and has met a `refusal`, maybe.
   */
  enter(
    key: string,
    waiter: Waiter,
    refusal?: Refusal,
    isAhead: boolean = false,
  ): void {
    const party = this.#partyOf(key, waiter);
    if (isAhead) party.waiters.unshift(waiter);
    else party.waiters.push(waiter);
    if (refusal !== undefined) {
      party.refusedAt = this.#clock.now();
      const { retryAfterMs } = refusal;
      if (retryAfterMs !== undefined) {
        party.freeAt ??= this.#clock.now() + retryAfterMs;
      }
    }
    waiter.begin(this.#clock, () => this.#depart(party, waiter));
    if (waiter.isOver || party.wish !== undefined) return;
    const tried = this.attempts.underWayAt(key);
    if (tried !== undefined) tried.followers.push(party);
    else this.#goOn(party, refusal !== undefined);
  }

  /** Waits for a turn that can be passed on, or stands in line. */
  #goOn(party: Party, isRefused: boolean): void {
    if (party.turn === undefined) this.#adopt(party);
    const { turn } = party;
    if (turn !== undefined && this.now() - turn.beganAt < STAND_MS) {
      this.#awaitEnd(party, turn);
    } else this.#begin(party, isRefused);
  }

  /** The party that `waiter` belongs to: of one, where order is strict. */
  #partyOf(key: string, waiter: Waiter): Party {
    if (waiter.localTurns === 0) return new Party(key, waiter);
    let parties = this.#parties.get(key);
    if (parties === undefined) this.#parties.set(key, parties = []);
    // What a turn brings along must do for each whom it serves.
    let party = parties.find(({ label, isFenced }) =>
      label === waiter.label && isFenced === waiter.terms.fencing
    );
    if (party === undefined) parties.push(party = new Party(key, waiter));
    return party;
  }

  /** Has the party stand in line. */
  #begin(party: Party, isRefused = false): void {
    // It may be possible by now.
    const idleMs = this.#clock.now() - this.#usedAt;
    if (this.#isDeaf && this.#standing.size === 0 && idleMs > IDLE_MS) {
      this.#hangUp();
    }
    if (this.#line.inbox !== undefined || this.#isDeaf) this.#standAnew(party);
    else void this.#tryInPassing(party, isRefused);
  }

  /**
   * Before anybody listens: as long as nobody else wants the key, nobody need.
   * Listens before it stands in line, or the call could come too early.
   *
   * One of us at a time: of two who try, the first could be refused, the lock
   * be freed, and the second have it before the first.
   */
  async #tryInPassing(party: Party, isRefused: boolean): Promise<void> {
    const { key } = party;
    const ahead = this.#passing.get(key);
    if (ahead !== undefined) return void ahead.followers.push(party);
    const followers: Party[] = [];
    const passing = { first: party, followers, isAnswered: isRefused };
    this.#passing.set(key, passing);
    const wish = this.#draw(party);
    let isLost = false;
    if (!isRefused) {
      const standing = this.#stand([party], true);
      await within(this.#clock, HEARTBEAT_MS, () => standing).catch(() => {
        isLost = true;
      });
      passing.isAnswered = !isLost && party.failure === undefined;
    }
    if (party.wish === wish && (isLost || !party.isAsked)) {
      await this.#open();
      if (party.wish === wish) {
        // It may have been granted, and only the answer be lost.
        if (isLost) this.#line.leave(wish);
        this.#standAnew(party);
      }
    }
    if (this.#passing.get(key) === passing) this.#letPass(party);
  }

  /** Those who wait for `party` to stand in line, or to have it, go on. */
  #letPass({ key }: Party): void {
    const passing = this.#passing.get(key);
    this.#passing.delete(key);
    if (passing !== undefined) this.#goOnAll(passing.followers);
  }

  /** A new wish, for what the first of the party wants; or by another name. */
  #draw(party: Party, former?: Wish): Wish {
    if (party.wish !== undefined) this.#standing.delete(party.wish.owner);
    const [{ ttlMs, localTurns }] = party.waiters;
    const inbox = this.#inboxOf(party);
    const owner = drawOwner(party.label, inbox, party.isFenced);
    const tokens = party.isFenced
      ? Math.min(Math.max(1, localTurns), MOST_TOKENS)
      : 0;
    // All fields, always: objects of several shapes cost a fifth of the rate.
    const wish: Wish = {
      key: party.key,
      owner,
      ttlMs: former?.ttlMs ?? ttlMs,
      tokens: former?.tokens ?? tokens,
      ticket: former?.ticket,
      former: former?.owner,
    };
    party.wish = wish;
    party.since = undefined;
    party.isCalled = inbox !== undefined;
    party.isAsked = false;
    party.isStale = false;
    party.askAt = Infinity;
    this.#usedAt = this.#clock.now();
    this.#standing.set(owner, party);
    return wish;
  }

  /** Has the party stand in line by a new name, where `former` stood if it did. */
  #standAnew(party: Party, former?: Wish): void {
    this.#draw(party, former);
    this.#askSoon(party);
  }

  /** By what it is called, if it can be. */
  #inboxOf({ deafAt }: Party): string | undefined {
    return deafAt === this.#gaps ? undefined : this.#line.inbox;
  }

  /** Asks along with all who come in the same moment: thousands may. */
  #askSoon(party: Party): void {
    if (this.#coming.push(party) > 1) return;
    // Cheaper than queueMicrotask(), which Node wraps.
    void settled.then(() => {
      const all = this.#coming;
      this.#coming = [];
      this.#ask(
        all.filter(({ wish, isAsked }) => wish !== undefined && !isAsked),
      );
    });
  }

  #ask(parties: readonly Party[]): void {
    for (let i = 0; i < parties.length; i += MOST_AT_ONCE) {
      void this.#stand(parties.slice(i, i + MOST_AT_ONCE));
    }
  }

  /** Asks for the wishes of `parties`, and hears what the server says. */
  async #stand(
    parties: readonly Party[],
    isInPassing = false,
  ): Promise<void> {
    const asked = asking(this.#clock);
    const wishes = parties.map((party) => {
      party.isAsked = true;
      party.isStale = false;
      party.since ??= asked;
      if (!isInPassing) this.#isSent(party, asked);
      return party.wish!;
    });
    let answers: Awaited<ReturnType<Line["stand"]>>;
    try {
      answers = await this.#line.stand(wishes, isInPassing);
    } catch (cause) {
      answers = wishes.map(({ key }) => toFailure("wait for", key, cause));
    }
    for (const [i, party] of parties.entries()) {
      this.#hear(party, wishes[i], answers[i], asked, isInPassing);
    }
  }

  /** By requests of their own, as over HTTP or by a pool, one can be lost and
   * others not: without an answer it is sent again. */
  #isSent(party: Party, { now }: Moment): void {
    party.sentAt = now;
    const pauseMs = HEARTBEAT_MS * 2 ** party.unanswered++;
    this.#askAt(party, now + Math.min(pauseMs, SILENCE_MS));
  }

  /** What the server says of a wish that was asked for at `asked`. */
  #hear(
    party: Party,
    wish: Wish,
    answer: Turn | Place | LockBackendError,
    asked: Moment,
    isInPassing = false,
  ): void {
    if (party.wish?.owner !== wish.owner) {
      const mayBeThere = answer instanceof Error || answer.granted ||
        answer.ticket !== undefined;
      if (mayBeThere) this.#withdraw(wish);
      return;
    }
    party.isAsked = false;
    party.unanswered = 0;
    this.#doubts.hear(asked.now);
    if (answer instanceof Error) {
      // The next step is on its way: it will be met with, or get over it.
      if (isInPassing && isPassing(answer)) party.failure = answer;
      else this.#fail(party, wish, answer);
      return;
    }
    party.failure = undefined;
    if (answer.granted) return this.#takeTurn(party, answer, asked);
    const now = this.#clock.now();
    const { ticket, place, retryAfterMs, at } = answer;
    party.asked = asked;
    party.at = at;
    const hasMoved = place !== party.place;
    party.stillThere = hasMoved ? 0 : party.stillThere + 1;
    party.place = place;
    const isPassedOver = answer.isAnew === true && party.isCalled;
    party.passedOver = isPassedOver ? party.passedOver + 1 : 0;
    // Called by a name that is not heard, it would be for ever.
    if (party.passedOver >= MOST_PASSED_OVER) party.deafAt = this.#gaps;
    party.freeAt = retryAfterMs === undefined ? undefined : now + retryAfterMs;
    // In passing: the next step is on its way.
    if (ticket === undefined) return;
    if (party.wish.ticket !== ticket || party.wish.former !== undefined) {
      party.wish = { ...wish, ticket, former: undefined };
    }
    if (hasMoved && place !== undefined && this.#backend.onEvent) {
      const { key, label, wish } = party;
      tell(this.#backend, { type: "waiting", key, label, place, retryAfterMs });
      // Whoever was told may have called it off.
      if (party.wish !== wish) return;
    }
    if (party.isCalled !== (this.#inboxOf(party) !== undefined)) {
      // By a name by which it can be called, or by one that nobody tries to call:
      // whichever is right by now.
      return this.#standAnew(party, party.wish);
    }
    if (party.isStale) return this.#askSoon(party);
    const pauseMs = this.#pauseMs(party, retryAfterMs);
    // The more there is to be asked for, the less often.
    const foreignMs = FOREIGN_MS * Math.max(1, this.#standing.size / 250);
    this.#askAt(
      party,
      now + (answer.isForeign ? Math.min(pauseMs, foreignMs) : pauseMs),
    );
  }

  /** How long to wait for a call before asking again. */
  #pauseMs(party: Party, freeInMs = Infinity): number {
    const { isCalled, place = 1, stillThere } = party;
    const meanMs = place > 1
      ? Math.min(POLL_FIRST_MS * place, POLL_LAST_MS)
      : Math.min(POLL_FIRST_MS * POLL_GROWTH ** stillThere, POLL_HEAD_MS);
    // Around a mean, or all would ask at the same time for ever.
    const pauseMs = isCalled ? HEARTBEAT_MS : meanMs * (0.5 + Math.random());
    return Math.min(pauseMs, freeInMs + AFTER_MS);
  }

  #fail(party: Party, wish: Wish, error: LockBackendError): void {
    party.failure = error;
    const isLost = error.reply === undefined
      ? this.#line.isClosed?.() ?? false
      : FINAL.has(error.reply);
    // Not in line yet, it is an attempt like any other, and fails like one.
    if ((wish.ticket !== undefined || isPassing(error)) && !isLost) {
      this.#askAt(party, this.#clock.now() + RETRY_MS);
      return;
    }
    for (const waiter of party.waiters.splice(0)) waiter.fail(error);
    this.#quit(party, wish);
  }

  /** The turn of the party has come, by a lease that counts from `asked`. */
  #takeTurn(party: Party, turn: Turn, asked: Moment): void {
    const wish = party.wish!;
    this.#forget(party);
    const now = this.#clock.now();
    const { leftMs } = turn;
    const first: Waiter | undefined = party.waiters[0];
    const tookMs = now - asked.now;
    if (first === undefined || tookMs >= validMs(leftMs, first.terms)) {
      // Heard too late to know it for ours, or wanted no more.
      this.#line.leave(wish);
      if (first === undefined) this.#close(party);
      else this.#beginAgain(party, tookMs);
      return;
    }
    party.wasLate = false;
    const most = party.isFenced ? wish.tokens : Infinity;
    party.turn = new LocalTurn(this, party, now, most, turn.fencingToken);
    this.seat(party.turn, wish.owner, { asked, ms: leftMs, isShort: false });
  }

  /**
   * Has a party stand in line anew whose turn was over as it heard of it, after
   * so many ms. Where that is the rule, for a lease that is shorter than the way
   * to the server and back, it takes its time.
   */
  #beginAgain(party: Party, tookMs: number): void {
    const wasLate = party.wasLate;
    party.wasLate = true;
    if (!wasLate) return this.#begin(party);
    this.#draw(party);
    party.failure = outlasted("wait for", party.key, tookMs);
    this.#askAt(party, this.#clock.now() + RETRY_MS);
  }

  /** Gives the turn, and what is left of its lease, to the first who waits. */
  seat(
    turn: LocalTurn,
    owner: string,
    lease: Lease,
    before?: Keeper,
  ): void {
    const { party } = turn;
    const waiter = party.waiters.shift()!;
    const { ttlMs, terms, localTurns } = waiter;
    turn.most = Math.min(turn.most, localTurns);
    const claim: Claim = { key: party.key, owner, ttlMs };
    const keeper = new Keeper(
      this.#backend,
      claim,
      lease.asked,
      terms,
      turn.nextToken(),
      Math.min(lease.ms, ttlMs),
      // Or asked for by one who wanted it for less, or more, and has left.
      lease.isShort || lease.ms !== ttlMs,
      before,
    );
    keeper.turn = turn;
    this.#seated.set(owner, keeper);
    if (this.#seated.size >= this.#sweepAt) this.#sweep();
    if (party.waiters.length > 0) this.#awaitEnd(party, turn);
    // Asked for by one who has left, it would keep the others out for longer
    // than this one wants should it crash; and a renewal shortens nothing.
    if (lease.ms > ttlMs) keeper.extend(ttlMs).catch(() => {});
    waiter.seat(keeper);
  }

  /** Once the turn can be passed on no more, who is left stands in line. */
  #awaitEnd(party: Party, turn: LocalTurn): void {
    // They will be called from there.
    if (this.#line.inbox === undefined && !this.#isDeaf) void this.#open();
    if (party.callOff !== undefined) return;
    const leftMs = turn.beganAt + STAND_MS - this.#clock.now();
    party.callOff = this.#clock.setTimer(
      () => {
        party.callOff = undefined;
        if (party.waiters.length === 0 || party.wish !== undefined) return;
        if (party.turn === turn || party.turn === undefined) {
          this.#begin(party);
        } else this.#awaitEnd(party, party.turn);
      },
      Math.max(0, leftMs),
      true,
    );
  }

  /**
   * Ends a turn, and not the hold: who is left of us stands in line. The owner
   * stays known for a while: an answer that comes late must not give back what
   * another process goes on with.
   */
  drop(turn: LocalTurn, owner: string): void {
    const { party } = turn;
    if (this.#seated.delete(owner)) {
      this.#gone.set(owner, this.#clock.now() + GONE_MS);
    }
    if (this.#gone.size >= this.#sweepAt) this.#sweep();
    if (party.turn !== turn) return;
    party.turn = undefined;
    if (party.waiters.length === 0) this.#close(party);
    else if (party.wish === undefined) this.#begin(party);
  }

  /** Ends a turn: the key goes to the next in line, and the party behind. */
  end<T>(
    turn: LocalTurn,
    hold: Hold,
    then: (verdict: Verdict) => T,
    fail: (error: unknown) => never,
  ): Promise<T> {
    const { party } = turn;
    this.#seated.delete(hold.owner);
    // One that was lost before may have been followed by another.
    const isLatest = party.turn === turn;
    if (isLatest) party.turn = undefined;
    const canStand = this.#line.inbox !== undefined || this.#isDeaf;
    const isWanted = isLatest && party.waiters.length > 0 &&
      party.wish === undefined;
    const next = isWanted && canStand ? this.#draw(party) : undefined;
    const asked = asking(this.#clock);
    if (next !== undefined) {
      party.isAsked = true;
      party.since = asked;
      this.#isSent(party, asked);
    } else if (isWanted) this.#begin(party);
    this.#close(party);
    return this.#line.handOver(hold, next).then((answer) => {
      const { verdict, called } = answer;
      try {
        return then(verdict);
      } finally {
        if (verdict !== "done") this.#askOf(hold.key);
        if (next !== undefined) {
          if (answer.next !== undefined) {
            this.#hear(party, next, answer.next, asked);
          } else this.#askFor(party, next);
        }
        if (called !== undefined) this.#onTurn(called.owner, called.turn);
      }
    }, (error) => {
      this.#askOf(hold.key);
      if (next !== undefined) this.#askFor(party, next);
      return fail(error);
    });
  }

  /** Asks for all who wait for `key`: the answer to a release may have named
   * one of them, and been lost. */
  #askOf(key: string): void {
    this.#askAll((party) => party.key === key);
  }

  #askAll(isMeant: (party: Party) => boolean): void {
    const due: Party[] = [];
    for (const party of this.#standing.values()) {
      if (!isMeant(party)) continue;
      // The answer that is under way may be older than what we are told.
      if (party.isAsked) party.isStale = true;
      // Who is about to stand in line does so by itself, and once.
      else if (party.wish?.ticket !== undefined) due.push(party);
    }
    this.#ask(due);
  }

  /** Asks for a wish of which it is not known whether it stands in line. */
  #askFor(party: Party, wish: Wish): void {
    if (party.wish?.owner === wish.owner) this.#ask([party]);
    else this.#withdraw(wish);
  }

  /**
   * Takes back a wish that nobody wants any more: it may have reached the
   * server after the word that it was withdrawn. One that is no more because
   * its turn came before the answer to it is somebody's hold.
   */
  #withdraw(wish: Wish): void {
    const { owner } = wish;
    if (this.#seated.has(owner) || this.#gone.has(owner)) return;
    this.#line.leave(wish);
  }

  /** Lets a waiter go, who has waited long enough or was told to. */
  #depart(party: Party, waiter: Waiter, isLastCall = false): void {
    const at = party.waiters.indexOf(waiter);
    if (at < 0) return;
    const isLate = !waiter.isOver;
    if (isLate && !isLastCall && this.#isUnanswered(party)) {
      // Its first answer may be on its way: little patience is not none.
      waiter.wait(
        this.#clock,
        GRACE_MS,
        () => this.#depart(party, waiter, !waiter.isUnhurried),
      );
      return;
    }
    party.waiters.splice(at, 1);
    if (isLate) this.#turnAway(party, waiter);
    if (party.waiters.length > 0) return;
    this.#quit(party, party.wish);
  }

  /** Has a party that nobody is left of go: it stands in nobody's way. */
  #quit(party: Party, wish: Wish | undefined): void {
    this.#forget(party);
    // While it is being asked for, the answer will show whether to leave; but
    // one that never comes must not keep the others waiting.
    if (wish !== undefined) this.#line.leave(wish);
    this.#close(party);
    // Its answer may never come.
    if (this.#passing.get(party.key)?.first === party) this.#letPass(party);
  }

  /** Tells one whose patience is over what came of it. */
  #turnAway(party: Party, waiter: Waiter): void {
    const { key, failure, freeAt, place } = party;
    if (failure !== undefined) waiter.fail(failure);
    else if (this.#isUnanswered(party)) {
      // Nobody knows whether it is taken.
      waiter.fail(unanswered(key, waiter.wholeMs));
    } else {
      const retryAfterMs = freeAt &&
        Math.max(0, Math.ceil(freeAt - this.#clock.now()));
      waiter.refuse({ granted: false, retryAfterMs, place });
    }
  }

  /** Whether nobody has said yet that the key is taken, nor that it failed. */
  #isUnanswered(
    { key, asked, isAsked, turn, refusedAt, failure }: Party,
  ): boolean {
    if (this.#clock.now() - refusedAt < HEARTBEAT_MS) return false;
    const isTrying = this.attempts.underWayAt(key) !== undefined;
    return asked === undefined && turn === undefined &&
      failure === undefined &&
      (isAsked || isTrying || this.#passing.get(key)?.isAnswered === false);
  }

  /** The wish of `party` is no more. */
  #forget(party: Party): void {
    if (party.wish === undefined) return;
    this.#standing.delete(party.wish.owner);
    party.wish = undefined;
    party.isAsked = false;
    party.refusedAt = -Infinity;
    party.asked = undefined;
    party.place = undefined;
    party.freeAt = undefined;
    party.failure = undefined;
    // Of who waits on, the next turn will need the timer again.
    if (party.waiters.length <= 1) this.#tidy();
  }

  /** No timers for whom nobody waits. */
  #tidy(): void {
    if (this.#standing.size > 0) return;
    this.#wakeAt(Infinity);
    renewalOf(this.#backend).tidy();
  }

  /** Drops a party that nobody is left of. */
  #close(party: Party): void {
    if (party.waiters.length > 0) return;
    this.#tidy();
    party.callOff?.();
    party.callOff = undefined;
    if (party.turn !== undefined || !party.isShared) return;
    const parties = this.#parties.get(party.key);
    const at = parties?.indexOf(party) ?? -1;
    if (at < 0) return;
    if (parties!.length === 1) this.#parties.delete(party.key);
    else parties!.splice(at, 1);
  }

  /** Drops what was held by a turn and lost, and never released. */
  #sweep(): void {
    for (const parties of [...this.#parties.values()]) {
      for (const party of [...parties]) {
        const { turn } = party;
        if (turn === undefined || party.waiters.length > 0) continue;
        if (this.#clock.now() - turn.beganAt < TURN_MS) continue;
        // Another who comes now stands in line, whoever holds it.
        party.turn = undefined;
        this.#close(party);
      }
    }
    for (const [owner, keeper] of this.#seated) {
      if (keeper.isOver) this.#seated.delete(owner);
    }
    for (const [owner, until] of this.#gone) {
      if (this.#clock.now() >= until) this.#gone.delete(owner);
    }
    this.#sweepAt = Math.max(64, this.#seated.size * 2, this.#gone.size * 2);
  }

  /** Listens, or finds that it can't. */
  #open(): Promise<void> {
    this.#usedAt = this.#clock.now();
    if (this.#opening !== undefined) return this.#opening;
    this.#listenAgainAt = this.#usedAt + LISTEN_AGAIN_MS;
    const opening = this.#line.open({
      onTurn: (owner, turn) => this.#onTurn(owner, turn),
      onEnd: (owner) => this.#onEnd(owner),
      onReminder: (owner) => this.#askAll(({ wish }) => wish?.owner === owner),
      onGap: () => this.#onGap(),
      onDeaf: (reason) => this.#onDeaf(reason),
      onClosed: () => this.#onClosed(),
    }).then((canHear) => {
      // Closed meanwhile, there is nothing to be closed any more.
      if (this.#opening !== opening) return;
      if (!canHear && this.#line.inbox === undefined) this.#isDeaf = true;
      else if (this.#isDeaf) this.#onGap();
      if (this.#line.isOpen) this.#closeWhenIdle(IDLE_MS);
    });
    return this.#opening = opening;
  }

  #closeWhenIdle(inMs: number): void {
    this.#callOffIdle();
    this.#callOffIdle = this.#clock.setTimer(() => {
      const idleMs = this.#clock.now() - this.#usedAt;
      this.#sweep();
      // Who holds a key by a turn is told, too, if it is ended by force.
      if (this.#standing.size + this.#seated.size > 0) {
        return this.#closeWhenIdle(IDLE_MS);
      }
      if (idleMs < IDLE_MS) return this.#closeWhenIdle(IDLE_MS - idleMs);
      this.#hangUp();
    }, inMs);
  }

  #hangUp(): void {
    this.#callOffIdle();
    this.#opening = undefined;
    this.#isDeaf = this.#isDeafTold = false;
    this.#line.close?.();
  }

  /** Nobody who still waits can be served any more. */
  #onClosed(): void {
    this.#hangUp();
    // What is asked now may have no answer, ever.
    for (const party of [...this.#standing.values()]) {
      const { key, wish } = party;
      const text = `Cannot wait for "${key}": the client was closed`;
      this.#fail(party, wish!, new LockBackendError(key, text));
    }
  }

  /** We were called: the server's clock says since when the lease counts. */
  #onTurn(owner: string, turn: Turn): void {
    const party = this.#standing.get(owner);
    if (party === undefined) return;
    const { asked, since, at } = party;
    this.#usedAt = this.#clock.now();
    const known = asked ?? since;
    if (known === undefined) return;
    // The server said `at` after we had asked, so by our clocks the lease
    // began no sooner than this; less what clocks may differ in speed. Called
    // before any answer we only know that it came after we asked for it first.
    const passedMs = asked === undefined ? 0 : Math.max(0, turn.at - at) * 0.99;
    const now = Math.min(known.now + passedMs, this.#usedAt);
    const wall = known.wall + (now - known.now);
    if (this.#usedAt - now > turn.leftMs / 2) {
      // That answer was long under way, as during a failover: by this bound
      // little is left, or nothing. Asked again, the server tells how much.
      return void this.#stand([party]);
    }
    this.#takeTurn(party, turn, { now, wall });
  }

  #onEnd(owner: string): void {
    const keeper = this.#seated.get(owner);
    this.#seated.delete(owner);
    keeper?.lose("deleted");
  }

  #onGap(): void {
    this.#gaps++;
    // It may be the first time that we can be called.
    if (this.#line.inbox !== undefined) this.#isDeaf = this.#isDeafTold = false;
    this.#askAll(() => true);
  }

  #onDeaf(reason: unknown): void {
    this.#isDeaf = true;
    const parties = this.#isDeafTold ? [] : [...this.#standing.values()];
    this.#isDeafTold = true;
    for (const { key, label } of parties) {
      tell(this.#backend, { type: "push-failed", key, label, error: reason });
    }
    this.#askAll(({ isCalled }) => isCalled);
  }

  #askAt(party: Party, at: number): void {
    party.askAt = at;
    if (at < this.#wakesAt) this.#wakeAt(at);
  }

  #wakeAt(at: number): void {
    if (at === this.#wakesAt) return;
    this.#callOffWake();
    this.#wakesAt = at;
    this.#callOffWake = at === Infinity ? () => {} : this.#clock.setTimer(
      () => this.#round(),
      Math.max(0, at - this.#clock.now()),
      true,
    );
  }

  /** Asks for all that is due, along with what soon will be. */
  #round(): void {
    const now = this.#clock.now();
    this.#wakesAt = Infinity;
    const isDeafForNow = this.#isDeaf && this.#line.isOpen === false;
    if (isDeafForNow && now >= this.#listenAgainAt) {
      this.#opening = undefined;
      void this.#open();
    }
    const togetherMs = this.#standing.size > MOST_AT_ONCE
      ? TOGETHER_OF_MANY_MS
      : TOGETHER_MS;
    const due: Party[] = [];
    let next = Infinity;
    for (const party of this.#standing.values()) {
      // A question that has no answer is asked again in time.
      if (party.isAsked) {
        if (party.askAt <= now && !this.#doubts.mayBeLost(party.sentAt)) {
          party.askAt = now + HEARTBEAT_MS;
        }
        if (party.askAt > now) {
          next = Math.min(next, party.askAt);
          continue;
        }
      }
      const aheadMs = party.isCalled ? togetherMs : POLL_FIRST_MS / 5;
      // A lease that is about to end is asked for when it has.
      const isDue = party.askAt <= now ||
        party.askAt <= now + aheadMs &&
          (party.freeAt === undefined || party.askAt < party.freeAt);
      if (isDue) due.push(party);
      else next = Math.min(next, party.askAt);
    }
    this.#wakeAt(next);
    this.#ask(due);
  }
}
