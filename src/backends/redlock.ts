/**
 * Locks on a majority of several independent servers: the Redlock algorithm
 * (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).
 * What was chosen beyond it, and why, is in `redlock.md`.
 */

import {
  type Backend,
  type Claim,
  clockOf,
  type Entry,
  type Grant,
  GRANTED,
  type Hold,
  type Refusal,
  type Standing,
  type Verdict,
} from "../core/backend.ts";
import { type Clock, within } from "../core/clock.ts";
import { LockBackendError, toFailure } from "../core/errors.ts";
import type { LockEvent } from "../core/events.ts";
import { type Ask, Ears, QuorumWatch } from "./quorum_watch.ts";
import {
  answersIn,
  askAll,
  count,
  failureOf,
  type Heard,
  isFailure,
  majorityOf,
  majorityReaches,
  type Question,
  verdictOf,
} from "./quorum.ts";

/** How a quorum is set up. */
export interface RedlockOptions {
  /**
   * Milliseconds after which a server that has not answered counts as failed;
   * waited for is one only where the others have no majority. Default: a sixth
   * of the lease, and 500 at most.
   */
  serverTimeoutMs?: number | undefined;
  /** Told of every transition of every lock made on this quorum. */
  onEvent?: ((event: LockEvent) => void) | undefined;
}

/**
 * The limit for one server, where nobody said another: longer than a packet
 * that was lost takes to cross an ocean after all, and shorter than anybody
 * minds; and no longer than after which a renewal is tried again anyway.
 */
const LIMIT_MS = 500;
const LIMIT_PART = 1 / 6;
/** For how long to clean up after a hold of which we know no lease. */
const CLEAN_UP_MS = 30_000;

/** What is under way for one owner and key, on whichever server. */
interface Pursuit {
  /** How many answers are still to come. */
  open: number;
  /** Whether what they grant is wanted: no more after a release or a failure. */
  isWanted: boolean;
  /** When the lease is over, by the clock. */
  until: number;
  /** The release that is under way, if one is. */
  freeing: Freeing | undefined;
}

/** A release that is under way while there are claims to be answered. */
interface Freeing {
  /** What each server said of it so far. */
  readonly verdicts: (Verdict | LockBackendError | undefined)[];
  /** Who has granted the claim meanwhile, and is to free it by this. */
  readonly granted: Set<number>;
}

/** Locks on a majority of `members`, whatever these are. */
export class RedlockBackend implements Backend {
  readonly name = "redlock";
  readonly clock: Clock;
  readonly onEvent: ((event: LockEvent) => void) | undefined;
  /** Where all members draw tokens, and can be made to remember a greater one. */
  readonly tryAcquireFenced: Backend["tryAcquireFenced"];
  readonly inspect: Backend["inspect"];
  readonly scan: Backend["scan"];
  readonly forceRelease: Backend["forceRelease"];
  /** Where any member tells of releases. */
  readonly watch: Backend["watch"];
  readonly #members: readonly Backend[];
  readonly #majority: number;
  readonly #limitMs: number | undefined;
  /** By owner and key. Empty while no server owes an answer. */
  readonly #pursuits = new Map<string, Pursuit>();
  /** Where a release that failed as a whole has been done, by the hold. */
  readonly #freed = new WeakMap<Hold, Freeing["verdicts"]>();

  /** A quorum over `members`, all of which go by the clock of the first. */
  constructor(members: readonly Backend[], options: RedlockOptions = {}) {
    this.#members = members;
    this.#majority = majorityOf(members.length);
    this.#limitMs = options.serverTimeoutMs;
    this.clock = clockOf(members[0]);
    this.onEvent = options.onEvent;
    const can = (...names: (keyof Backend)[]) =>
      members.every((member) =>
        names.every((name) => member[name] !== undefined)
      );
    if (can("tryAcquireFenced", "raiseFence")) {
      this.tryAcquireFenced = (claim) =>
        this.#tryAcquireFenced(
          claim,
          (member) => member.tryAcquireFenced!(claim),
        );
    }
    if (members.some(({ notices }) => notices !== undefined)) {
      const ears = new Ears(members);
      this.watch = (key) =>
        new QuorumWatch(key, ears, this.clock, {
          tryAcquire: (claim, ask) => this.#tryAcquire(claim, ask),
          tryAcquireFenced: (claim, ask) => this.#tryAcquireFenced(claim, ask),
        });
    }
    if (can("inspect")) this.inspect = (key) => this.#inspect(key);
    if (can("scan")) this.scan = (pattern) => this.#scan(pattern);
    if (can("forceRelease")) {
      this.forceRelease = (key) => this.#forceRelease(key);
    }
  }

  tryAcquire(claim: Claim): Promise<Grant | Refusal> {
    return this.#tryAcquire(claim, (member) => member.tryAcquire(claim));
  }

  #tryAcquire(claim: Claim, ask: Ask): Promise<Grant | Refusal> {
    return this.#attempt(claim, ask, () => GRANTED);
  }

  /**
   * The greatest of a majority's tokens alone could fall from one hold to the
   * next: A draws 100 and 50, then B, elsewhere, 51 and 40. So it is written
   * back, and counts once a majority remembers it while A is the owner: any
   * other's majority has one of these servers, and draws a greater one there.
   */
  async #tryAcquireFenced(
    claim: Claim,
    ask: Ask,
  ): Promise<Grant | Refusal> {
    const { key, ttlMs } = claim;
    const draws: Promise<Grant | Refusal>[] = [];
    const drawn = await this.#attempt(
      claim,
      (member, index) => draws[index] = ask(member, index),
      (heard) => {
        const tokens = grantsIn(heard).map((grant) => grant.fencingToken!);
        return { granted: true, fencingToken: Math.max(...tokens) };
      },
    );
    if (!drawn.granted) return drawn;
    const token = drawn.fencingToken!;
    const verdict = await this.#askAll("acquire", key, ttlMs, {
      // Also of those who have yet to answer: one of the first may be gone.
      ask: async (member, index): Promise<Verdict> => {
        const draw = await draws[index];
        if (!draw.granted) return "taken";
        if (draw.fencingToken! >= token) return "done";
        return await member.raiseFence!(claim, token);
      },
      decide: (heard) => verdictOf("acquire", key, heard),
    });
    if (verdict === "done") return drawn;
    this.discard(claim);
    if (verdict === "taken") return { granted: false };
    if (isFailure(verdict)) throw verdict;
    const message =
      `Cannot acquire "${key}": it was gone before its token was known to a majority`;
    throw new LockBackendError(key, message);
  }

  /** Asks all for `claim`, and cleans up unless a majority grants it. */
  #attempt(
    claim: Claim,
    ask: Ask,
    grant: (heard: Heard<Grant | Refusal>) => Grant,
  ): Promise<Grant | Refusal> {
    const { key, ttlMs } = claim;
    const members = this.#members;
    const most = members.length - this.#majority;
    const pursuit = this.#pursue(claim, members.length);
    pursuit.isWanted = true;
    pursuit.until = this.clock.now() + ttlMs;
    pursuit.freeing = undefined;
    this.#freed.delete(claim);
    let isCleaned = false;
    const cleanUp = (heard: Heard<Grant | Refusal>) => {
      if (isCleaned) return;
      isCleaned = true;
      pursuit.isWanted = false;
      for (const [index, answer] of heard.entries()) {
        // Who has not answered yet is told as well, and again once they have.
        if (answer === undefined || mayBeThere(answer)) {
          members[index].discard(claim);
        }
      }
    };
    return this.#askAll("acquire", key, ttlMs, {
      ask,
      onAnswer: (answer, index) => {
        this.#arrived(claim, pursuit, answer, index);
      },
      decide: (heard) => {
        let granted = 0;
        let refused = 0;
        let failed = 0;
        for (const answer of heard) {
          if (answer === undefined) continue;
          if (isFailure(answer)) failed++;
          else if (answer.granted) granted++;
          else refused++;
        }
        if (granted >= this.#majority) return grant(heard);
        const open = heard.length - granted - refused - failed;
        if (granted + open < this.#majority) cleanUp(heard);
        // Too few are left that can be asked: nobody knows whether it is taken.
        if (failed > most) throw failureOf("acquire", key, heard);
        // A majority answered, and it is those who said no that we lack.
        const isRefused = refused > most ||
          granted + refused >= this.#majority && isCleaned;
        return isRefused ? this.#refusal(heard) : undefined;
      },
    });
  }

  /** No, and after how long a majority could be free. */
  #refusal(heard: Heard<Grant | Refusal>): Refusal {
    const left = heard.map((answer) =>
      // What was ours is free in a moment; who has not answered may be, too.
      answer === undefined || !isFailure(answer) && answer.granted
        ? 0
        : isFailure(answer)
        ? Infinity
        : answer.retryAfterMs ?? Infinity
    ).sort((a, b) => a - b);
    const retryAfterMs = left[this.#majority - 1];
    return retryAfterMs > 0 && retryAfterMs < Infinity
      ? { granted: false, retryAfterMs }
      : { granted: false };
  }

  /** So many more answers are to come for the owner and key of `hold`. */
  #pursue({ key, owner }: Hold, answers: number): Pursuit {
    const name = owner + key;
    let pursuit = this.#pursuits.get(name);
    if (pursuit === undefined) {
      pursuit = {
        open: 0,
        isWanted: true,
        until: Infinity,
        freeing: undefined,
      };
      this.#pursuits.set(name, pursuit);
    }
    pursuit.open += answers;
    return pursuit;
  }

  /** One of them has come. */
  #settled({ key, owner }: Hold, pursuit: Pursuit): void {
    if (--pursuit.open === 0) this.#pursuits.delete(owner + key);
  }

  /** A claim was answered, maybe when nobody wants it any more. */
  #arrived(
    claim: Claim,
    pursuit: Pursuit,
    answer: Grant | Refusal | LockBackendError,
    index: number,
  ): void {
    const isLate = !pursuit.isWanted || this.clock.now() >= pursuit.until;
    if (isLate && mayBeThere(answer)) {
      const { freeing } = pursuit;
      // As a rule the release comes right behind the claim, and frees it; but a
      // client with several connections, or one that sends again by itself, may
      // have the claim done after it.
      const isBehind = freeing && freeing.verdicts[index] === undefined;
      if (isBehind) freeing.granted.add(index);
      else this.#members[index].discard(claim);
    }
    this.#settled(claim, pursuit);
  }

  /** What is granted for `hold` from now on is to be given back. */
  #giveUp({ key, owner }: Hold, freeing?: Freeing): void {
    const pursuit = this.#pursuits.get(owner + key);
    if (pursuit === undefined) return;
    pursuit.isWanted = false;
    pursuit.freeing = freeing;
  }

  extend(
    claims: readonly Claim[],
    atLeast?: boolean,
  ): Promise<readonly (Verdict | LockBackendError)[]> {
    const members = this.#members;
    const pursuits = claims.map((claim) => this.#pursue(claim, members.length));
    const verdicts: (Verdict | LockBackendError | undefined)[] = claims
      .map(() => undefined);
    const [{ key }] = claims;
    const ttlMs = Math.min(...claims.map((claim) => claim.ttlMs));
    return this.#askAll<
      readonly (Verdict | LockBackendError)[],
      readonly (Verdict | LockBackendError)[]
    >("extend", key, ttlMs, {
      ask: (member) => member.extend(claims, atLeast),
      onAnswer: (answer, index) => {
        for (const [i, claim] of claims.entries()) {
          const isLacking = !isFailure(answer) && answer[i] === "absent";
          if (isLacking && verdicts[i] === "done") {
            this.#reclaim(claim, pursuits[i], index);
          }
          this.#settled(claim, pursuits[i]);
        }
      },
      decide: (heard) => {
        let isDecided = true;
        for (const [i, claim] of claims.entries()) {
          if (verdicts[i] !== undefined) continue;
          const each = heard.map((answer) =>
            answer === undefined || isFailure(answer) ? answer : answer[i]
          );
          const verdict = verdictOf("extend", claim.key, each);
          verdicts[i] = verdict;
          if (verdict === undefined) isDecided = false;
          else if (verdict === "done") {
            pursuits[i].until = this.clock.now() + claim.ttlMs;
            for (const [index, answer] of each.entries()) {
              if (answer !== "absent") continue;
              this.#reclaim(claim, pursuits[i], index);
            }
          } else if (!isFailure(verdict)) pursuits[i].isWanted = false;
        }
        return isDecided
          ? verdicts as (Verdict | LockBackendError)[]
          : undefined;
      },
    });
  }

  /**
   * A server has nothing of what a majority has just confirmed as ours: it was
   * away, or came back empty. It is claimed anew, so that we can do without
   * another; how long the hold is known to last is not changed by that.
   */
  #reclaim(claim: Claim, { isWanted, until }: Pursuit, index: number): void {
    if (!isWanted) return;
    const pursuit = this.#pursue(claim, 1);
    pursuit.until = until;
    const arrived = (answer: Grant | Refusal | LockBackendError) =>
      this.#arrived(claim, pursuit, answer, index);
    this.#members[index].tryAcquire(claim).then(
      arrived,
      () => arrived(new LockBackendError(claim.key, "")),
    );
  }

  isClosed(): boolean {
    return count(this.#members, (member) => member.isClosed?.() ?? false) >
      this.#members.length - this.#majority;
  }

  release(hold: Hold): Promise<Verdict> {
    const { key, owner } = hold;
    const members = this.#members;
    const { ttlMs } = hold as Partial<Claim>;
    const claim = { key, owner, ttlMs: ttlMs ?? CLEAN_UP_MS };
    const before = this.#freed.get(hold);
    const freeing: Freeing = { verdicts: [], granted: new Set() };
    const { verdicts, granted } = freeing;
    this.#giveUp(hold, freeing);
    let isDecided = false;
    return this.#askAll<Verdict, Verdict>("release", key, ttlMs, {
      ask: (member, index) =>
        before?.[index] === "done"
          ? Promise.resolve("done")
          : (member.notices ?? member).release(hold),
      onAnswer: (answer, index) => {
        verdicts[index] = answer;
        const isLeft = isFailure(answer)
          ? isDecided
          // The claim came through, and behind its release.
          : answer !== "done" && granted.has(index);
        if (isLeft) members[index].discard(claim);
      },
      decide: (heard) => {
        const verdict = verdictOf("release", key, heard);
        if (isFailure(verdict)) {
          // Released again, it may be gone where this time it was done.
          this.#freed.set(hold, verdicts);
          throw verdict;
        }
        if (verdict === undefined) return undefined;
        isDecided = true;
        for (const [index, answer] of heard.entries()) {
          if (isFailure(answer)) members[index].discard(claim);
        }
        return verdict;
      },
    });
  }

  discard(claim: Claim): void {
    this.#giveUp(claim);
    for (const member of this.#members) member.discard(claim);
  }

  inquire(hold: Hold): Promise<Standing> {
    const { key } = hold;
    const { ttlMs } = hold as Partial<Claim>;
    return this.#askAll<Standing, Standing>("ask for", key, ttlMs, {
      ask: (member) => member.inquire(hold),
      decide: (heard) => {
        const verdict = verdictOf(
          "ask for",
          key,
          heard.map((answer) =>
            answer === undefined || isFailure(answer) ? answer : answer.verdict
          ),
        );
        if (isFailure(verdict)) throw verdict;
        if (verdict !== "done") return verdict && { verdict, leftMs: 0 };
        const left = answersIn(heard)
          .filter((answer) => answer.verdict === "done")
          .map((answer) => answer.leftMs);
        return { verdict, leftMs: majorityReaches(left, heard.length) };
      },
    });
  }

  /** Who has a majority, if anybody. */
  #inspect(key: string): Promise<Entry> {
    return this.#askAll<Entry, Entry>("inspect", key, undefined, {
      ask: (member) => member.inspect!(key),
      decide: (heard) => {
        const entries = answersIn(heard);
        const tokens = entries.map((entry) => entry.fencingToken ?? 0);
        // What a majority remembers: one that was only drawn may be greater,
        // and who has yet to be told of it has less.
        const fencingToken = majorityReaches(tokens, heard.length) || undefined;
        const isLast = !heard.includes(undefined);
        if (!isLast && new Set(tokens).size > 1) return undefined;
        let most = 0;
        for (const { owner } of entries) {
          if (owner === undefined) continue;
          const theirs = entries.filter((entry) => entry.owner === owner);
          most = Math.max(most, theirs.length);
          if (theirs.length < this.#majority) continue;
          const leftMs = majorityReaches(
            theirs.map((entry) => entry.leftMs ?? Infinity),
            heard.length,
          );
          // By the clock of the middle one: some may be set wrong.
          const held = theirs.flatMap(({ heldMs }) => heldMs ?? [])
            .sort((a, b) => a - b);
          const heldMs = held[held.length >> 1];
          return leftMs < Infinity
            ? { owner, leftMs, heldMs, fencingToken }
            : { owner, heldMs, fencingToken };
        }
        // Whoever has the most could have those that said nothing, too.
        const unknown = heard.length - entries.length;
        if (most + unknown < this.#majority) return { fencingToken };
        if (isLast) throw failureOf("inspect", key, heard);
        return undefined;
      },
    });
  }

  /** Frees it on all; true if any of a majority had something to free. */
  #forceRelease(key: string): Promise<boolean> {
    return this.#askAll<boolean, boolean>("free", key, undefined, {
      ask: (member) => member.forceRelease!(key),
      decide: (heard) => {
        const answers = answersIn(heard);
        if (answers.length >= this.#majority) return answers.includes(true);
        const failed = count(heard, isFailure);
        if (failed > heard.length - this.#majority) {
          throw failureOf("free", key, heard);
        }
        return undefined;
      },
    });
  }

  /**
   * The keys of as many servers as it takes to have one of each majority; one
   * that fails is passed over while there are enough others.
   */
  async *#scan(pattern: string): AsyncGenerator<string> {
    const members = this.#members;
    const enough = members.length - this.#majority + 1;
    const heard: (true | LockBackendError | undefined)[] = members.map(() =>
      undefined
    );
    const limitMs = this.#limitFor(undefined);
    for (const [index, member] of members.entries()) {
      const keys = member.scan!(pattern)[Symbol.asyncIterator]();
      try {
        for (;;) {
          const next = () => keys.next();
          const { done, value } = await within(this.clock, limitMs, next);
          if (done) break;
          yield value;
        }
        heard[index] = true;
      } catch (cause) {
        heard[index] = toFailure("list", pattern, cause);
      } finally {
        // Whoever listens may have had enough; one that hangs never hears of it.
        keys.return?.().catch(() => {});
      }
      if (count(heard, (answer) => answer === true) >= enough) return;
      if (count(heard, isFailure) > members.length - enough) {
        throw failureOf("list", pattern, heard);
      }
    }
  }

  /** How long to wait for a server, about a lease of `ttlMs`. */
  #limitFor(ttlMs: number | undefined): number {
    return this.#limitMs ??
      Math.min((ttlMs ?? Infinity) * LIMIT_PART, LIMIT_MS);
  }

  #askAll<Answer, Result>(
    action: string,
    key: string,
    ttlMs: number | undefined,
    question: Question<Answer, Result>,
  ): Promise<Result> {
    const limitMs = this.#limitFor(ttlMs);
    return askAll(this.#members, this.clock, action, key, limitMs, question);
  }
}

/** Whether a server that says so may have the key as ours. */
function mayBeThere(answer: Grant | Refusal | LockBackendError): boolean {
  return isFailure(answer) ? answer.reply === undefined : answer.granted;
}

function grantsIn(heard: Heard<Grant | Refusal>): Grant[] {
  return answersIn(heard).filter((answer) => answer.granted);
}
