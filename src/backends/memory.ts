/**
 * Locks in the memory of this process, with no server: for tests, for programs
 * of one process, and to try things out.
 *
 * @module
 */

import {
  type Backend,
  type Bursts,
  type Called,
  type Claim,
  type Ears,
  type Entry,
  type FencedWrite,
  type Grant,
  GRANTED,
  type HandOver,
  HEARTBEAT_MS,
  type Hold,
  type Line,
  LINE_SHOWN,
  type NoticeEars,
  type Notices,
  type Place,
  type Refusal,
  type Standing,
  type Turn,
  type Verdict,
  type Wish,
} from "../core/backend.ts";
import { askBurst, type Burst, joinBurst } from "../core/bursts.ts";
import { afterwards, type Clock, systemClock } from "../core/clock.ts";
import type { LockEvent } from "../core/events.ts";
import { checkObserver, checkOptions } from "../core/options.ts";

export type { Backend, Clock, LockEvent };

/** How {@linkcode memory} is set up. */
export interface MemoryOptions {
  /** The clock of the locks and of the "server"; the machine's by default. */
  clock?: Clock | undefined;
  /** Told of every transition of every lock made on this backend. */
  onEvent?: ((event: LockEvent) => void) | undefined;
}

/**
 * A backend without a server. Each call makes a world of its own: locks
 * exclude each other where they were given the same one.
 *
 * @throws {TypeError} An option is bad, or none that there is.
 *
 * @example
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory();
 * const first = await acquireLock(here, "report");
 * const second = await acquireLock(here, "report", { throwOnFail: false });
 * if (second !== null) throw new Error("both hold it");
 * await first.release();
 * ```
 */
export function memory(options: MemoryOptions = {}): Backend {
  const action = "set up a backend";
  checkOptions(action, options, new Set(["clock", "onEvent"]));
  checkObserver(action, options.onEvent);
  return new MemoryBackend(options);
}

/** A key as a server has it written down. */
interface Row {
  readonly owner: string;
  readonly since: number;
  expiresAt: number;
  /** The first of the tokens that were drawn for a turn in line. */
  fencingToken?: number;
}

/** A wish in its line. */
interface Waiting extends Wish {
  readonly ticket: number;
  readonly since: number;
}

/** All who wait are of this process, and all can be called: by name. */
const INBOX = "0";

/** How long a key is kept for who was told of its release: as in scripts.ts. */
const RESERVED_MS = 200;
/** What leads the owner of a key that is kept for a watcher: it is nobody's. */
const KEPT = "next ";

class MemoryBackend implements Backend {
  readonly name = "memory";
  readonly line: Line & { inbox: string | undefined } = {
    inbox: undefined,
    open: async (ears) => {
      this.#ears = ears;
      // As on a server, whoever waits for this is there before who comes then.
      await undefined;
      this.line.inbox = INBOX;
      return true;
    },
    stand: (wishes, isPassing) =>
      Promise.resolve(wishes.map((wish) => this.#stand(wish, isPassing))),
    handOver: (hold, next) => Promise.resolve(this.#handOver(hold, next)),
    leave: (wish) => {
      const { key, former } = wish;
      this.#leave(wish);
      if (former !== undefined) this.#leave({ key, owner: former });
    },
  };
  readonly notices: Notices = {
    isOpen: true,
    listen: (ears) => {
      const inbox = String(++this.#lastInbox);
      this.#listening.set(inbox, ears);
      return {
        inbox,
        opened: Promise.resolve(),
        close: () => void this.#listening.delete(inbox),
      };
    },
    tryAcquire: (wish, watcher) =>
      Promise.resolve(this.#tryOrWatch(wish, watcher)),
    release: (hold) => this.#release(hold, true),
    forget: (key, watcher) => {
      this.#unwatch(key, watcher);
      if (this.#look(key)?.owner === keptFor(watcher)) this.#tell(key);
    },
  };
  readonly bursts: Bursts = {
    join: (key, waitMs) => {
      const now = this.clock.now();
      return Promise.resolve(joinBurst(this.#burst(key, now), waitMs, now));
    },
    ask: (call) => {
      const now = this.clock.now();
      return Promise.resolve(askBurst(this.#burst(call.key, now), call, now));
    },
  };
  readonly clock: Clock;
  readonly onEvent: ((event: LockEvent) => void) | undefined;
  readonly #bursts = new Map<string, Burst>();
  readonly #rows = new Map<string, Row>();
  /** Who waits for each key, in order. */
  readonly #lines = new Map<string, Waiting[]>();
  /** Who is to be told of a release, by ticket. */
  readonly #watching = new Map<string, Map<string, number>>();
  readonly #listening = new Map<string, NoticeEars>();
  #lastInbox = 0;
  #ears: Ears | undefined;
  #lastTicket = 0;
  /** Swept once there are this many: twice what the last sweep left. */
  #sweepAt = 64;
  /** The greatest token drawn for any key: one number is as good as many. */
  #fence = 0;
  /** The token of what was written under each name: the text nobody can read. */
  readonly #written = new Map<string, { token: number; expiresAt: number }>();

  constructor(options: MemoryOptions) {
    this.clock = options.clock ?? systemClock;
    this.onEvent = options.onEvent;
  }

  /** The live row of `key`; one that has expired is dropped as it is met. */
  #look(key: string): Row | undefined {
    const row = this.#rows.get(key);
    if (row === undefined || row.expiresAt > this.clock.now()) return row;
    this.#rows.delete(key);
    return undefined;
  }

  tryAcquire({ key, owner, ttlMs }: Claim): Promise<Grant | Refusal> {
    const now = this.clock.now();
    const row = this.#look(key);
    if (row === undefined) {
      this.#rows.set(key, { owner, since: now, expiresAt: now + ttlMs });
      this.#sweepIfFull();
    } else if (row.owner !== owner) {
      const retryAfterMs = Math.ceil(row.expiresAt - now);
      return Promise.resolve({ granted: false, retryAfterMs });
    } else row.expiresAt = Math.max(row.expiresAt, now + ttlMs);
    return Promise.resolve(GRANTED);
  }

  async tryAcquireFenced(claim: Claim): Promise<Grant | Refusal> {
    const answer = await this.tryAcquire(claim);
    return answer.granted
      ? { granted: true, fencingToken: this.#drawToken() }
      : answer;
  }

  tryAcquireAll(
    claims: readonly Claim[],
    isFenced: boolean,
  ): Promise<readonly Grant[] | Refusal> {
    const now = this.clock.now();
    for (const [index, { key, owner }] of claims.entries()) {
      const row = this.#look(key);
      if (row === undefined ? this.#lines.has(key) : row.owner !== owner) {
        const retryAfterMs = row && Math.ceil(row.expiresAt - now);
        return Promise.resolve({ granted: false, retryAfterMs, index });
      }
    }
    const grants = claims.map((claim) =>
      isFenced ? this.tryAcquireFenced(claim) : this.tryAcquire(claim)
    );
    return Promise.all(grants) as Promise<readonly Grant[]>;
  }

  /**
   * As a server would: after the last one, and no less than the time in µs. The
   * first of so many in a row.
   */
  #drawToken(count = 1): number {
    const floor = Math.floor(this.clock.wall() * 1000);
    const first = Math.max(this.#fence + 1, floor);
    this.#fence = first + count - 1;
    return first;
  }

  raiseFence(hold: Hold, token: number): Promise<Verdict> {
    const verdict = this.#judge(hold);
    if (verdict === "done") this.#fence = Math.max(this.#fence, token);
    return Promise.resolve(verdict);
  }

  /** Whether `owner` has `key`, in the words of a verdict. */
  #judge({ key, owner }: Hold): Verdict {
    const row = this.#look(key);
    return row === undefined
      ? "absent"
      : row.owner === owner
      ? "done"
      : "taken";
  }

  extend(
    claims: readonly Claim[],
    atLeast?: boolean,
  ): Promise<readonly Verdict[]> {
    return Promise.resolve(claims.map((claim) => {
      const verdict = this.#judge(claim);
      if (verdict === "done") {
        const row = this.#rows.get(claim.key)!;
        const expiresAt = this.clock.now() + claim.ttlMs;
        const isLess = expiresAt < row.expiresAt;
        if (!atLeast || !isLess) row.expiresAt = expiresAt;
        if (!atLeast && isLess) this.#hint(claim);
      }
      return verdict;
    }));
  }

  prolong(hold: Hold, byMs: number): Promise<Standing> {
    const verdict = this.#judge(hold);
    if (verdict !== "done") return Promise.resolve({ verdict, leftMs: 0 });
    const row = this.#rows.get(hold.key)!;
    const leftMs = Math.max(0, row.expiresAt + byMs - this.clock.now());
    if (leftMs > 0) {
      row.expiresAt += byMs;
      if (byMs < 0) this.#hint({ ...hold, ttlMs: leftMs });
    }
    return Promise.resolve({ verdict, leftMs });
  }

  rename(hold: Hold, owner: string): Promise<Verdict> {
    const verdict = this.#judge(hold);
    if (verdict === "done") {
      this.#rows.set(hold.key, { ...this.#rows.get(hold.key)!, owner });
    }
    return Promise.resolve(verdict);
  }

  /** The burst of `key`; those that are over are dropped on the way. */
  #burst(key: string, now: number): Burst {
    for (const [other, { expiresAt }] of this.#bursts) {
      if (expiresAt > now) break;
      this.#bursts.delete(other);
    }
    const burst = this.#bursts.get(key) ?? {
      ...{ last: 0, at: -Infinity, waitMs: 0 },
      ...{ ran: 0, by: 0, ranAt: -Infinity, dueAt: now, expiresAt: Infinity },
    };
    // Behind all others: about in the order in which they end.
    this.#bursts.delete(key);
    this.#bursts.set(key, burst);
    return burst;
  }

  release(hold: Hold): Promise<Verdict> {
    return this.#release(hold, false);
  }

  #release(hold: Hold, isTold: boolean): Promise<Verdict> {
    const { verdict, called } = this.#handOver(hold, undefined);
    // Once it was told of the release.
    if (called !== undefined) void afterwards(() => this.#call(called));
    else if (verdict === "done" && isTold) this.#tell(hold.key);
    return Promise.resolve(verdict);
  }

  /** Takes the key, if it is free or kept for `watcher`, or notes who that is. */
  #tryOrWatch(wish: Wish, watcher?: string): Turn | Place {
    const { key, owner } = wish;
    const at = this.clock.now();
    const row = this.#look(key);
    const isKept = watcher !== undefined && row?.owner === keptFor(watcher);
    if (row === undefined || isKept || row.owner === owner) {
      if (watcher !== undefined) this.#unwatch(key, watcher);
      const turn = this.#give(wish);
      // Sent again it leaves a lease alone that was made longer since.
      const endsAt = row?.owner === owner ? row.expiresAt : 0;
      const given = this.#rows.get(key)!;
      given.expiresAt = Math.max(given.expiresAt, endsAt);
      return turn;
    }
    // For how long it is kept says nothing of the hold that follows.
    const retryAfterMs = row.owner.startsWith(KEPT)
      ? undefined
      : Math.ceil(row.expiresAt - at);
    if (watcher === undefined) return { granted: false, retryAfterMs, at };
    let watching = this.#watching.get(key);
    if (watching === undefined) this.#watching.set(key, watching = new Map());
    const ticket = wish.ticket ?? watching.get(watcher) ?? ++this.#lastTicket;
    watching.set(watcher, ticket);
    let place = 1;
    for (const other of watching.values()) if (other < ticket) place++;
    return { granted: false, retryAfterMs, at, ticket, place };
  }

  #unwatch(key: string, watcher: string): void {
    const watching = this.#watching.get(key);
    watching?.delete(watcher);
    if (watching?.size === 0) this.#watching.delete(key);
  }

  /** Keeps a key that was released for the first who watches it, and tells. */
  #tell(key: string): void {
    this.#rows.delete(key);
    const watching = [...this.#watching.get(key) ?? []]
      .sort(([, one], [, other]) => one - other);
    for (const [watcher] of watching) {
      this.#unwatch(key, watcher);
      const [inbox, name] = watcher.split(" ");
      const ears = this.#listening.get(inbox);
      if (ears === undefined) continue;
      const since = this.clock.now();
      const expiresAt = since + RESERVED_MS;
      this.#rows.set(key, { owner: keptFor(watcher), since, expiresAt });
      void afterwards(() => ears.onNotice(name));
      return;
    }
  }

  /** Takes a wish out of its line, and hands on what it was given. */
  #leave(hold: Hold): void {
    this.#take(hold);
    const { called } = this.#handOver(hold, undefined);
    if (called !== undefined) this.#call(called);
  }

  /** Has the first in line look, where the lease that was given is over before
   * they would ask again. */
  #hint({ key, ttlMs }: Claim): void {
    if (ttlMs >= HEARTBEAT_MS) return;
    const [head] = this.#lines.get(key) ?? [];
    if (head === undefined) return;
    void afterwards(() => this.#ears?.onReminder(head.owner));
  }

  #call({ owner, turn }: Called): void {
    this.#ears?.onTurn(owner, turn);
  }

  /** Has `wish` stand in line, unless it is its turn. */
  #stand(wish: Wish, isPassing = false): Turn | Place {
    const { key, owner } = wish;
    const at = this.clock.now();
    let row = this.#look(key);
    if (wish.former !== undefined) {
      this.#take({ key, owner: wish.former });
      if (row?.owner === wish.former) {
        this.#rows.set(key, row = { ...row, owner });
      }
    }
    if (row?.owner === owner) {
      this.#take(wish);
      return this.#turn(row, row.expiresAt - at, at);
    }
    if (row === undefined) {
      const [head] = this.#lines.get(key) ?? [];
      if (head === undefined || head.owner === owner) {
        this.#take(wish);
        return this.#give(wish);
      }
      this.#call(this.#callNext(key)!);
      row = this.#look(key)!;
    }
    const retryAfterMs = Math.ceil(row.expiresAt - at);
    if (isPassing) return { granted: false, retryAfterMs, at };
    const { ticket, place } = this.#queue(wish);
    return { granted: false, retryAfterMs, at, ticket, place };
  }

  #queue(wish: Wish): { ticket: number; place: number } {
    let line = this.#lines.get(wish.key);
    if (line === undefined) this.#lines.set(wish.key, line = []);
    let index = line.findIndex(({ owner }) => owner === wish.owner);
    if (index < 0) {
      const ticket = wish.ticket ?? ++this.#lastTicket;
      // Who comes back with a ticket stands where it stood.
      index = line.findIndex((other) => other.ticket > ticket);
      if (index < 0) index = line.length;
      line.splice(index, 0, { ...wish, ticket, since: this.clock.now() });
    }
    return { ticket: line[index].ticket!, place: index + 1 };
  }

  /** Takes a wish out of its line. */
  #take({ key, owner }: Hold): void {
    const line = this.#lines.get(key);
    const index = line?.findIndex((wish) => wish.owner === owner) ?? -1;
    if (index < 0) return;
    line!.splice(index, 1);
    if (line!.length === 0) this.#lines.delete(key);
  }

  /** Makes the owner of a wish that of the key. */
  #give(wish: Wish): Turn {
    const { key, owner, ttlMs, tokens } = wish;
    const at = this.clock.now();
    const row: Row = { owner, since: at, expiresAt: at + ttlMs };
    if (tokens > 0) row.fencingToken = this.#drawToken(tokens);
    this.#rows.set(key, row);
    this.#sweepIfFull();
    this.#hint(wish);
    return this.#turn(row, ttlMs, at);
  }

  #turn({ fencingToken }: Row, leftMs: number, at: number): Turn {
    const turn = { granted: true as const, leftMs, at };
    return fencingToken === undefined ? turn : { ...turn, fencingToken };
  }

  /** Gives a key that nobody has to the first in line: who is to be called. */
  #callNext(key: string): Called | undefined {
    const [head] = this.#lines.get(key) ?? [];
    if (head === undefined) return undefined;
    this.#take(head);
    return { owner: head.owner, turn: this.#give(head) };
  }

  #handOver(hold: Hold, next: Wish | undefined): HandOver {
    const verdict = this.#judge(hold);
    if (verdict !== "done") return { verdict };
    this.#rows.delete(hold.key);
    if (next !== undefined) this.#queue(next);
    const called = this.#callNext(hold.key);
    if (next === undefined) return { verdict, called };
    if (called?.owner === next.owner) return { verdict, next: called.turn };
    return { verdict, next: this.#stand(next), called };
  }

  discard(claim: Claim): void {
    void this.release(claim);
  }

  inquire(hold: Hold): Promise<Standing> {
    const verdict = this.#judge(hold);
    const row = this.#rows.get(hold.key);
    const leftMs = row === undefined ? 0 : row.expiresAt - this.clock.now();
    return Promise.resolve({ verdict, leftMs });
  }

  inspect(key: string): Promise<Entry> {
    const row = this.#look(key);
    const now = this.clock.now();
    const line = this.#lines.get(key) ?? [];
    const seen = {
      fencingToken: this.#fence || undefined,
      waiting: line.length,
      line: line.slice(0, LINE_SHOWN)
        .map(({ owner, since }) => ({ owner, waitedMs: now - since })),
    };
    return Promise.resolve(
      row === undefined ? seen : {
        ...seen,
        owner: row.owner,
        leftMs: row.expiresAt - now,
        heldMs: now - row.since,
      },
    );
  }

  forceRelease(key: string): Promise<boolean> {
    const row = this.#look(key);
    if (row === undefined) return Promise.resolve(false);
    const { called } = this.#handOver({ key, owner: row.owner }, undefined);
    this.#ears?.onEnd(row.owner);
    if (called !== undefined) this.#call(called);
    else this.#tell(key);
    return Promise.resolve(true);
  }

  async *scan(pattern: string): AsyncGenerator<string> {
    const matches = glob(pattern);
    for (const key of [...this.#rows.keys()]) {
      if (matches.test(key) && this.#look(key) !== undefined) yield key;
    }
  }

  writeFenced(write: FencedWrite): Promise<boolean> {
    const { key, fencingToken, ttlMs = Infinity } = write;
    const now = this.clock.now();
    const last = this.#written.get(key);
    const isLate = last !== undefined && last.expiresAt > now &&
      fencingToken < last.token;
    if (!isLate) {
      this.#written.set(key, { token: fencingToken, expiresAt: now + ttlMs });
      this.#sweepIfFull();
    }
    return Promise.resolve(!isLate);
  }

  /** Drops what expired and was not asked for again: a timer would outlive it. */
  #sweepIfFull(): void {
    if (this.#rows.size + this.#written.size < this.#sweepAt) return;
    for (const key of this.#rows.keys()) this.#look(key);
    for (const [key, { expiresAt }] of this.#written) {
      if (expiresAt <= this.clock.now()) this.#written.delete(key);
    }
    const left = this.#rows.size + this.#written.size;
    this.#sweepAt = Math.max(64, left * 2);
  }
}

function keptFor(watcher: string): string {
  return KEPT + watcher;
}

/** A glob pattern as Redis reads it: `*`, `?`, `[a-z]`, `[^a]`, `\\` to escape. */
function glob(pattern: string): RegExp {
  const source = pattern.replace(
    /\\(.)|\[(\^?)((?:\\.|[^\]])*)\]|[*?]|[\s\S]/g,
    (all, escaped, not, members) =>
      escaped !== undefined
        ? quote(escaped)
        : members !== undefined
        ? `[${not}${members.replace(/\\(.)|(.)-(.)|[\s\S]/gs, oneOfClass)}]`
        : all === "*"
        ? ".*"
        : all === "?"
        ? "."
        : quote(all),
  );
  return new RegExp(`^${source}$`, "s");
}

/** What is between brackets, for a regular expression: a range may be reversed. */
function oneOfClass(
  all: string,
  escaped?: string,
  from?: string,
  to?: string,
): string {
  if (from === undefined || to === undefined) return quote(escaped ?? all);
  return [from, to].sort().map(quote).join("-");
}

function quote(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");
}
