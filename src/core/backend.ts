/** What a lock lives on, seen from the core: one attempt at each thing. */

import { type Clock, systemClock } from "./clock.ts";
import type { LockBackendError } from "./errors.ts";
import type { LockEvent } from "./events.ts";

/** One hold: who has which key. */
export interface Hold {
  /** What is locked. */
  readonly key: string;
  /** The random name of this hold, kept secret from all but the server. */
  readonly owner: string;
}

/** A wish for a key, for `ttlMs` milliseconds unless it is extended. */
export interface Claim extends Hold {
  /** How long the server keeps a silent hold, in whole milliseconds. */
  readonly ttlMs: number;
}

/** The same before it has a name. */
export type Wanted = Omit<Claim, "owner">;

/** Yes: the key is ours from the moment at which it was asked for. */
export interface Grant {
  /** Always true. */
  readonly granted: true;
  /** Greater than any drawn before for this key, where one was asked for. */
  readonly fencingToken?: number | undefined;
}

/** No: somebody else has the key. */
export interface Refusal {
  /** Always false. */
  readonly granted: false;
  /** What is left of the present hold in milliseconds, where it is known. */
  readonly retryAfterMs?: number | undefined;
  /** The place in line, from 1; only of one who stands there. */
  readonly place?: number | undefined;
  /** Which of several keys it is, from 0 in their order. */
  readonly index?: number | undefined;
}

/** The plain grant, of which one is enough. */
export const GRANTED: Grant = { granted: true };

/**
 * What became of a command that only the owner may give: `done`; refused as
 * the key is `taken` by another or `absent`; or `unclear`, where the client
 * may have sent it twice and the second answer hides the first.
 */
export type Verdict = "done" | "taken" | "absent" | "unclear";

/** What a server says of one hold. */
export interface Standing {
  /** `done`: it is ours. */
  readonly verdict: Verdict;
  /** What is left of it in milliseconds. */
  readonly leftMs: number;
}

/** What a server says of one key. */
export interface Entry {
  /** The owner; `undefined` where nobody has it. */
  readonly owner?: string | undefined;
  /** What is left in milliseconds; `undefined` where it has no expiry. */
  readonly leftMs?: number | undefined;
  /** The last fencing token drawn for the key, as long as it is remembered. */
  readonly fencingToken?: number | undefined;
  /** For how long the owner has had it, where that can be known. */
  readonly heldMs?: number | undefined;
  /** How many stand in line for it; `undefined` where there is none to see. */
  readonly waiting?: number | undefined;
  /** The first of them, in their order. */
  readonly line?: readonly Standee[] | undefined;
}

/** One who stands in line, seen from outside. */
export interface Standee {
  /** The name of the hold that it wants. */
  readonly owner: string;
  /** For how long it has stood there. */
  readonly waitedMs: number;
}

/** Of how many who stand in line a look at a key tells. */
export const LINE_SHOWN = 100;

/**
 * The lease in ms that comes with a turn: short, until whoever it is has taken
 * it up, so that one who is gone costs the others no more than this.
 */
export const SHORT_MS = 2_000;

/**
 * How often in ms those who wait ask, should a message have been lost. Less than
 * the short lease of a turn: so everybody knows of it before it can run out.
 */
export const HEARTBEAT_MS = 1_200;

/** For how long one turn in line may be passed on inside a process. */
export const TURN_MS = 10;

/**
 * A place where locks can live. Each method is one attempt: it answers as soon
 * as the server has, and rejects with a `LockBackendError` where it has not.
 *
 * What not every backend can do is an optional member, looked for before
 * anything is sent.
 */
export interface Backend {
  /** What it is, for messages: `redis`, `memory`. */
  readonly name: string;
  /** The clock by which its holds are judged; the machine's by default. */
  readonly clock?: Clock | undefined;
  /** Told of every transition of every lock made on this backend. */
  readonly onEvent?: ((event: LockEvent) => void) | undefined;
  /**
   * Takes the key unless somebody has it; granted again to its own owner.
   *
   * @param onRefused Called as soon as it is known that there is a hold, if the
   * answer has to wait for more: whose it is, and for how long.
   */
  tryAcquire(claim: Claim, onRefused?: () => void): Promise<Grant | Refusal>;
  /**
   * The same, and `then` with what came of it, by one promise for both: where
   * thousands are asked for at a time, each layer of promises shows.
   */
  tryAcquireThen?:
    | (<T>(
      claim: Claim,
      then: (answer: Grant | Refusal) => T,
      onRefused?: () => void,
    ) => Promise<T>)
    | undefined;
  /** The same, and draws a fencing token in the same round trip. */
  tryAcquireFenced?:
    | ((claim: Claim) => Promise<Grant | Refusal>)
    | undefined;
  /**
   * Makes the fence of the key at least `token`, if the key is still ours: for
   * a quorum, whose members have to remember one token.
   */
  raiseFence?:
    | ((hold: Hold, token: number) => Promise<Verdict>)
    | undefined;
  /**
   * Takes all of several keys at once, or none, for one owner; drawing a
   * fencing token for each if `isFenced`. Leaves keys alone for which others
   * stand in line. Answers for each in turn, or with one refusal.
   */
  tryAcquireAll?:
    | ((
      claims: readonly Claim[],
      isFenced: boolean,
    ) => Promise<readonly Grant[] | Refusal>)
    | undefined;
  /** Whether it can do that with these keys; absent where it can with any. */
  areTogether?: ((keys: readonly string[]) => boolean) | undefined;
  /**
   * Makes each hold last its `ttlMs` from now if it is still ours, with as few
   * commands as will do: all holds of a client are renewed together. Answers
   * for each with a verdict, or with the error that kept it from one.
   *
   * @param atLeast Leaves alone what lasts longer. It may come late, after the
   * hold has moved to another process and was extended there.
   */
  extend(
    claims: readonly Claim[],
    atLeast?: boolean,
  ): Promise<readonly (Verdict | LockBackendError)[]>;
  /**
   * Makes each hold last its `ttlMs` from now if it is still ours, and asks how
   * many replicas have that: all that the server did before, they have as well.
   * Answers as soon as they are `replicas`, or after `ms`: on a connection that
   * others use as well, they wait along.
   *
   * @returns How many there are, or what has become of a hold that isn't ours.
   */
  confirm?:
    | ((
      claims: readonly Claim[],
      replicas: number,
      ms: number,
    ) => Promise<number | Exclude<Verdict, "done">>)
    | undefined;
  /**
   * Adds `byMs` to what is left of the hold, or takes it off, by the server's
   * clock; safe to send twice. How it stands then; where nothing would be left
   * it does nothing, and that is 0.
   */
  prolong?:
    | ((hold: Hold, byMs: number) => Promise<Standing>)
    | undefined;
  /** Makes the hold that of another owner, for as long as it would last. */
  rename?:
    | ((hold: Hold, owner: string) => Promise<Verdict>)
    | undefined;
  /**
   * Frees the key, if it is still ours; who stands in line for it is next. Those
   * of one moment may go in one command: no attempt to acquire it that
   * comes after that overtakes it.
   */
  release(hold: Hold): Promise<Verdict>;
  /**
   * The same, and `then` or `fail`: see `tryAcquireThen()`.
   *
   * @param isFirst Whether others will follow in this moment, and then `flush()`.
   */
  releaseThen?:
    | (<T>(
      hold: Hold,
      isFirst: boolean,
      then: (verdict: Verdict) => T,
      fail: (error: unknown) => never,
    ) => Promise<T>)
    | undefined;
  /** Sends the releases that it has gathered: behind the last of several. */
  flush?: (() => void) | undefined;
  /**
   * Frees the key in the background, for a hold of which nobody knows whether
   * it came about: tried again until it is known to be gone or has expired.
   */
  discard(claim: Claim): void;
  /** Whether there is nobody to ask any more: its client was closed for good. */
  isClosed?: (() => boolean) | undefined;
  /** The lines before its keys; without it, who waits asks again and again. */
  readonly line?: Line | undefined;
  /** Finds out whether there are lines, where that is not plain to see. */
  findLine?: (() => Promise<Line | undefined>) | undefined;
  /** How it tells of releases, to those who wait over a quorum. */
  readonly notices?: Notices | undefined;
  /** Where there is no line: watches a key for one who waits for it. */
  watch?: ((key: string) => Watch) | undefined;
  /** Calls that come in bursts, of which one is to run. */
  readonly bursts?: Bursts | undefined;
  /** How a hold stands, without changing it. */
  inquire(hold: Hold): Promise<Standing>;
  /** Who has a key, whoever it is. */
  inspect?: ((key: string) => Promise<Entry>) | undefined;
  /** The keys that match a glob pattern, each at least once. */
  scan?: ((pattern: string) => AsyncIterable<string>) | undefined;
  /** Frees a key whoever has it: whether anybody had. */
  forceRelease?: ((key: string) => Promise<boolean>) | undefined;
  /**
   * Writes `value` unless a greater token has been seen for `key`: whether it
   * did. For a resource that is kept on the same server.
   */
  writeFenced?: ((write: FencedWrite) => Promise<boolean>) | undefined;
}

/** A wish that can stand in line. */
export interface Wish extends Claim {
  /** How many fencing tokens in a row are to be drawn for it; 0 for none. */
  readonly tokens: number;
  /** The ticket that it was given, for a server that has forgotten it. */
  readonly ticket?: number | undefined;
  /** An owner that stood there on the same terms, or was given the key since:
   * what it has is for this one. */
  readonly former?: string | undefined;
}

/** It is our turn. */
export interface Turn extends Grant {
  /** Of the first of the tokens in a row. */
  readonly fencingToken?: number | undefined;
  /** What is left of the lease, in milliseconds, as of `at`. */
  readonly leftMs: number;
  /** The server's clock then, in milliseconds. */
  readonly at: number;
}

/** Somebody else's turn, and where we stand. */
export interface Place extends Refusal {
  /** What the wish is known by in its line; `undefined` if it is in none. */
  readonly ticket?: number | undefined;
  /** The server's clock then, in milliseconds. */
  readonly at: number;
  /**
   * Whether the present hold is that of somebody who knows of no line, and will
   * not call us: then one has to ask.
   */
  readonly isForeign?: boolean | undefined;
  /** Whether the wish was in the line no more, and had a ticket for it. */
  readonly isAnew?: boolean | undefined;
}

/** What a line has to say to those who stand in it, unasked. */
export interface Ears {
  /** It is the turn of the wish of `owner`. */
  onTurn(owner: string, turn: Turn): void;
  /** The hold of `owner` was ended by force. */
  onEnd(owner: string): void;
  /** It may have been the turn of the wish of `owner` for a while: ask for it. */
  onReminder(owner: string): void;
  /** Messages may have been missed: ask for all that is waited for. */
  onGap(): void;
  /** Nobody can call us, for the reason given: ask again and again. */
  onDeaf(reason: unknown): void;
  /** Whoever owns the connection has closed it for good. */
  onClosed(): void;
}

/** Whose turn it is. */
export interface Called {
  /** The owner of the wish. */
  readonly owner: string;
  /** What it has. */
  readonly turn: Turn;
}

/** What became of a release, and of the wish that was sent along. */
export interface HandOver {
  /** What became of the release. */
  readonly verdict: Verdict;
  /** Where the wish stands, or that it is its turn; only if `done`. */
  readonly next?: Turn | Place | undefined;
  /** Who is next, if that is one of ours, whom nobody else calls. */
  readonly called?: Called | undefined;
}

/** The lines before the keys of one backend: who waits is served in order. */
export interface Line {
  /**
   * What an owner is to end with, before its label, so that it can be called;
   * `undefined` while nobody listens.
   */
  readonly inbox: string | undefined;
  /** Whether it listens, or tries to; absent where there is nothing to close. */
  readonly isOpen?: boolean | undefined;
  /**
   * Listens from now on, so that grants can be pushed.
   *
   * @returns Whether they will be; if not, one has to ask for them, at least
   * until `onGap` is called.
   */
  open(ears: Ears): Promise<boolean>;
  /** Listens no more; absent where there is nothing to close. */
  close?(): void;
  /** Whether whoever owns the connection has closed it for good. */
  isClosed?(): boolean;
  /**
   * Takes the key for each wish whose turn it is, and puts the others in line;
   * or, where `isInPassing`, leaves them out of it. Safe to repeat: a wish keeps
   * its place, and one that was granted meanwhile is granted again.
   */
  stand(
    wishes: readonly Wish[],
    isInPassing?: boolean,
  ): Promise<readonly (Turn | Place | LockBackendError)[]>;
  /** Frees the key for the next in line, and has `next` stand behind them. */
  handOver(hold: Hold, next: Wish | undefined): Promise<HandOver>;
  /**
   * Takes the wish out of the line, in the background; if its turn has come
   * meanwhile, it is handed on.
   */
  leave(wish: Wish): void;
}

/**
 * Word of releases. A notice is no turn: whoever hears it may try, and for a
 * moment nobody else can on that server.
 */
export interface Notices {
  /** Whether somebody listens already, or can at no cost. */
  readonly isOpen: boolean;
  /** Listens, until what comes back is closed. */
  listen(ears: NoticeEars): Hearing;
  /**
   * Takes the key for the wish, or notes that `watcher` is to be told of its
   * release: an inbox, a space, and a name. Noted again, it keeps its ticket.
   */
  tryAcquire(wish: Wish, watcher?: string): Promise<Grant | Place>;
  /** As `release()` of the backend, and tells the first who is noted. */
  release(hold: Hold): Promise<Verdict>;
  /** In the background: `watcher` is to be told no more. */
  forget(key: string, watcher: string): void;
}

/** Who hears notices. */
export interface NoticeEars {
  /** The key that the watcher of this name waits for was released. */
  onNotice(name: string): void;
  /** Heard from now on; before, some may have been missed. */
  onGap(): void;
}

/** An open ear. */
export interface Hearing {
  /** By what it is called; `undefined` while nothing can be heard. */
  readonly inbox: string | undefined;
  /** Resolves once it can be heard, or will not be for a while. */
  readonly opened: Promise<unknown>;
  /** Hears no more. */
  close(): void;
}

/** One who waits for a key without a line, and is told that it may be free. */
export interface Watch {
  /** Called when it is worth a try. */
  onCall: () => void;
  /**
   * Where it stands among those who are called, from 1, as of the last try;
   * `undefined` where nobody would call, and one has to ask.
   */
  readonly place: number | undefined;
  /** Whether it could be called by a majority at once: for others are. */
  readonly isHeard: boolean;
  /** Resolves once it can be called, or will not be for a while. */
  open(): Promise<unknown>;
  /** Makes one attempt, and is told of the release where that is refused. */
  tryAcquire(claim: Claim, isFenced: boolean): Promise<Grant | Refusal>;
  /** Is called no more. */
  close(): void;
}

/** A call of a burst, whose wait is over. */
export interface BurstCall {
  /** By which calls belong together. */
  readonly key: string;
  /** Its number, as it was given. */
  readonly number: number;
  /** For how many milliseconds it waits. */
  readonly waitMs: number;
  /** In how many milliseconds a later one of this process asks, if any does. */
  readonly nextMs?: number | undefined;
}

/**
 * What a call is to do: it is the one to `run`; it is `done`, as another ran or
 * will; or to ask again, in so many milliseconds.
 */
export type BurstWord = "run" | "done" | number;

/**
 * Bursts of calls, across processes. The last call of a burst runs; in one that
 * does not end, one call a wait; and never two within one wait.
 */
export interface Bursts {
  /** Has a call join the burst of `key`: its number, greater than all before. */
  join(key: string, waitMs: number): Promise<number>;
  /** What a call is to do now. Told twice, it is told the same. */
  ask(call: BurstCall): Promise<BurstWord>;
}

/** A write that is refused if it comes from a holder of the past. */
export interface FencedWrite {
  /** Where to write. */
  readonly key: string;
  /** What to write. */
  readonly value: string;
  /** The writer's fencing token. */
  readonly fencingToken: number;
  /** How long to keep value and token, in milliseconds; for good if not given. */
  readonly ttlMs?: number | undefined;
}

/** The clock by which holds on `backend` are judged. */
export function clockOf(backend: Backend): Clock {
  return backend.clock ?? systemClock;
}

/** Whether `value` is a {@linkcode Backend}, by its shape. */
export function isBackend(value: object): value is Backend {
  const backend = value as Partial<Backend>;
  return typeof backend.tryAcquire === "function" &&
    typeof backend.extend === "function" &&
    typeof backend.release === "function" &&
    typeof backend.discard === "function" &&
    typeof backend.inquire === "function";
}
