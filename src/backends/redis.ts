/** Locks on one server that speaks the Redis protocol, through any client. */

import type { Port } from "../clients/port.ts";
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
  type Hearing,
  HEARTBEAT_MS,
  type Hold,
  type Line,
  type NoticeEars,
  type Notices,
  type Place,
  type Refusal,
  type Standing,
  type Turn,
  type Verdict,
  type Wish,
} from "../core/backend.ts";
import { afterwards, systemClock, within } from "../core/clock.ts";
import { isPassing, LockBackendError } from "../core/errors.ts";
import type { LockEvent } from "../core/events.ts";
import { kindOf } from "../core/options.ts";
import { CleanUps } from "./clean_up.ts";
import { Departures, insist, releaseAlone } from "./departures.ts";
import { failing, failure, isAboutSome, mayBeDone } from "./failure.ts";
import { Inbox } from "./inbox.ts";
import {
  ACQUIRE_ALL,
  ACQUIRE_FENCED,
  ASK_BURST,
  END_AT,
  END_SOONER,
  EXTEND,
  EXTEND_BRIEFLY,
  FORCE_RELEASE,
  FORGET,
  HAND_OVER,
  INQUIRE,
  INSPECT,
  JOIN_BURST,
  LINE_MS,
  prepare,
  RAISE_FENCE,
  refusal,
  RELEASE_PLAIN,
  RELEASE_TELLING,
  REMIND,
  RENAME,
  rethrow,
  run,
  runInFull,
  runThen,
  type Script,
  STAND,
  toCall,
  TRY_OR_WATCH,
  type Values,
  WRITE_FENCED,
} from "./scripts.ts";
import { slotOf, tagFor, tagOf } from "./slots.ts";

/** How a Redis backend is set up. */
export interface RedisOptions {
  /** Told of every transition of every lock made on this backend. */
  onEvent?: ((event: LockEvent) => void) | undefined;
}

/** How long to listen on when nobody waits over a quorum any more. */
const IDLE_MS = 1_000;

/**
 * How long after somebody else was called to remind them, unless the lock was
 * passed on again: the call may have got lost.
 */
const REMIND_MS = 150;

/**
 * How often to try whether we can be called, and how many messages of these
 * tests may be missed: a busy process reads them late.
 */
const TEST_MS = 1_000;
const MOST_MISSED = 2;

/** Locks on the server behind `port`. */
export class RedisBackend implements Backend {
  readonly name = "redis";
  readonly onEvent: ((event: LockEvent) => void) | undefined;
  /** Which keys are in use, where the client can tell. */
  readonly scan: Backend["scan"];
  /** Who waits for each key. */
  line: RedisLine | undefined;
  /** For what may be a double, whose EVAL can do no more than the release. */
  readonly findLine: Backend["findLine"];
  /** Told to those who wait over a quorum, where the server runs scripts. */
  readonly notices: RedisNotices | undefined;
  /** Where the client can send WAIT along. */
  readonly confirm: Backend["confirm"];
  readonly bursts: Bursts = {
    join: (key, waitMs) => {
      const keys = [companion(this.#port, key, "burst")] as const;
      return this.#run("debounce", key, JOIN_BURST, keys, [String(waitMs)]);
    },
    ask: ({ key, number, waitMs, nextMs }) => {
      const keys = [companion(this.#port, key, "burst")] as const;
      const next = nextMs === undefined ? "" : String(Math.ceil(nextMs));
      const args = [number.toFixed(), String(waitMs), next] as const;
      return this.#run("debounce", key, ASK_BURST, keys, args);
    },
  };
  readonly tryAcquireAll: Backend["tryAcquireAll"];
  /** In a Cluster, where one script may touch one slot only. */
  readonly areTogether: Backend["areTogether"];
  /** Whether one script may not touch all keys: one slot only, or as was seen. */
  #areApart: boolean;
  /** Not for a double, as above. */
  readonly #departures: Departures | undefined;
  readonly #port: Port;
  /** What came of looking whether it is one. */
  #found: Promise<Line | undefined> | undefined;
  /** What is cleaned up, by owner and key. Empty but after failures. */
  readonly #cleanUps: CleanUps;
  /** Whether anybody has left a line here. */
  #hasLeft = false;

  constructor(port: Port, options: RedisOptions = {}) {
    this.#port = port;
    this.#areApart = port.isCluster ?? false;
    this.#cleanUps = new CleanUps(() => port.isClosed?.() ?? false);
    this.onEvent = options.onEvent;
    this.scan = port.scan && ((pattern) => this.#scan(pattern));
    this.confirm = port.evalAndWait &&
      ((claims, replicas, ms) => this.#confirm(claims, replicas, ms));
    if (port.get === undefined) {
      this.line = this.#newLine();
      this.notices = new RedisNotices(port, {
        attempt: (claim, ask) => this.#attempt([claim], ask),
        verdictOn: (hold) => this.#verdictOn(hold),
      });
      this.tryAcquireAll = (claims, isFenced) =>
        this.#tryAcquireAll(claims, isFenced);
      this.#departures = new Departures(port);
    } else this.findLine = () => this.#found ??= this.#find();
    if (port.isCluster) {
      const { keyPrefix = "" } = port;
      // By the tag, and not by the slot: not every prefix can be known.
      this.areTogether = ([first, ...others]) => {
        const tag = tagOf(keyPrefix + first);
        return others.every((key) => tagOf(keyPrefix + key) === tag);
      };
    }
  }

  #newLine(): RedisLine {
    return new RedisLine(
      this.#port,
      (hold, leaving) => this.#cleanUp(hold, leaving),
    );
  }

  /** Whether it is a server that runs what it is told to. */
  async #find(): Promise<Line | undefined> {
    try {
      // Never answered, it would keep all who come later from the line.
      const reply = await within(
        systemClock,
        HEARTBEAT_MS,
        () => this.#port.eval("return {KEYS[1], ARGV[1]}", ["k"], ["a"]),
      );
      const isServer = Array.isArray(reply) && String(reply) === "k,a";
      if (isServer) this.line = this.#newLine();
    } catch {
      // As a double may, for a script that it does not know.
      this.#found = undefined;
    }
    return this.line;
  }

  /** Runs `script`; what fails is told as having kept us from `action`. */
  #run<
    Keys extends readonly string[],
    Args extends readonly string[],
    Result,
  >(
    action: string,
    key: string,
    script: Script<Keys, Args, Result>,
    keys: Values<Keys>,
    args: Values<Args>,
  ): Promise<Result> {
    return run(this.#port, script, keys, args).catch(failing(action, key));
  }

  tryAcquire(
    claim: Claim,
    onRefused?: () => void,
  ): Promise<Grant | Refusal> {
    return this.tryAcquireThen(claim, (answer) => answer, onRefused);
  }

  // By then() rather than await, as in run(): it is done for every lock.
  tryAcquireThen<T>(
    claim: Claim,
    then: (answer: Grant | Refusal) => T,
    onRefused?: () => void,
  ): Promise<T> {
    const { key, owner, ttlMs } = claim;
    const port = this.#port;
    // An owner that tries again wants to hold what was to be cleaned away.
    if (!this.#cleanUps.isEmpty) {
      const cleaned = this.#cleanUps.callOff(owner + key);
      if (cleaned !== undefined) {
        return cleaned.then(() => this.tryAcquireThen(claim, then, onRefused));
      }
    }
    this.#departures?.before(key);
    const connection = port.connection?.();
    const failed = (cause: unknown): never => {
      throw this.#acquireFailure([claim], cause, connection);
    };
    let reply: Promise<unknown>;
    try {
      reply = ttlMs % 1000 === 0
        ? port.setIfAbsent(key, owner, "EX", ttlMs / 1000)
        : port.setIfAbsent(key, owner, "PX", ttlMs);
    } catch (cause) {
      // Somebody's wrapper may throw where a client rejects.
      return Promise.reject(this.#acquireFailure([claim], cause, connection));
    }
    return reply.then((reply) => {
      // As text: a client may be told to give bytes.
      if (reply === "OK" || String(reply) === "OK") return then(GRANTED);
      if (reply === null || reply === undefined) {
        onRefused?.();
        return this.#whyRefused(claim).catch(failed).then(then);
      }
      return this.#notAReply(claim, reply);
    }, failed);
  }

  #notAReply(claim: Claim, reply: unknown): never {
    const { key } = claim;
    // QUEUED, within somebody's MULTI, or no answer of Redis at all: it may
    // yet be written.
    this.discard(claim);
    throw new LockBackendError(
      key,
      `Cannot acquire "${key}": the client's answer to SET was ${
        kindOf(reply)
      }, and neither "OK" nor null`,
    );
  }

  tryAcquireFenced(claim: Claim): Promise<Grant | Refusal> {
    const { key, owner, ttlMs } = claim;
    const keys = beside(this.#port, key, "fence");
    const args = [owner, String(ttlMs)] as const;
    return this.#attempt(
      [claim],
      () => run(this.#port, ACQUIRE_FENCED, keys, args),
    );
  }

  async #attempt<T>(
    claims: readonly Claim[],
    ask: () => Promise<T>,
  ): Promise<T> {
    for (const { key, owner } of claims) {
      if (!this.#cleanUps.isEmpty) await this.#cleanUps.callOff(owner + key);
    }
    for (const { key } of claims) this.#departures?.before(key);
    const connection = this.#port.connection?.();
    try {
      return await ask();
    } catch (cause) {
      throw this.#acquireFailure(claims, cause, connection);
    }
  }

  raiseFence({ key, owner }: Hold, token: number): Promise<Verdict> {
    const keys = beside(this.#port, key, "fence");
    return this.#run("fence", key, RAISE_FENCE, keys, [owner, String(token)]);
  }

  #tryAcquireAll(
    claims: readonly Claim[],
    isFenced: boolean,
  ): Promise<readonly Grant[] | Refusal> {
    const tokens = isFenced ? 1 : 0;
    const keys = claims.flatMap(({ key }) => keysOf(this.#port, key));
    const args = claims.map((claim) => memberOf({ ...claim, tokens }));
    return this.#attempt(
      claims,
      () => run(this.#port, ACQUIRE_ALL, keys, args),
    );
  }

  #acquireFailure(
    claims: readonly Claim[],
    cause: unknown,
    connection: unknown,
  ): LockBackendError {
    const error = failure("acquire", claims[0].key, cause);
    // It may have the keys written down as ours.
    if (mayBeDone(this.#port, error, connection)) {
      for (const claim of claims) this.discard(claim);
    }
    return error;
  }

  /**
   * A client that resends after a cut meets its own first SET: that is a yes.
   * Asked after a no only, so a yes costs one command.
   */
  async #whyRefused(claim: Claim): Promise<Grant | Refusal> {
    const { key, owner } = claim;
    const port = this.#port;
    if (port.get !== undefined) {
      if (await port.get(key) !== owner) return { granted: false };
      // A double may take any script for the release.
      if (await this.findLine!() === undefined) return GRANTED;
    } else {
      const { verdict, leftMs } = await run(port, INQUIRE, [key], [owner]);
      if (verdict !== "done") return refusal(leftMs);
    }
    // It may be that of an attempt before this one, and half over.
    const [extended] = await this.extend([claim], true);
    if (typeof extended !== "string") throw extended.cause ?? extended;
    return extended === "done" ? GRANTED : { granted: false };
  }

  async extend(
    claims: readonly Claim[],
    atLeast?: boolean,
  ): Promise<readonly (Verdict | LockBackendError)[]> {
    if (claims.length > 1 && this.#areApart) {
      const each = claims.map((claim) => this.extend([claim], atLeast));
      return (await Promise.all(each)).flat();
    }
    const [claim] = claims;
    const isBrief = claim.ttlMs < HEARTBEAT_MS && claims.length === 1 &&
      !atLeast && this.line !== undefined;
    // A slot of a Cluster that is being moved takes scripts of one key only.
    if (isBrief && !this.#port.isCluster) {
      const { key, owner, ttlMs } = claim;
      const keys = beside(this.#port, key, "line");
      const args = [owner, String(ttlMs)] as const;
      const answer = await this.#run("extend", key, EXTEND_BRIEFLY, keys, args)
        .catch((error: LockBackendError) => error);
      // With no right to the line, one may have one to the key.
      if (typeof answer === "string" || !isAboutSome(answer)) return [answer];
    }
    try {
      const verdicts = await run(
        this.#port,
        EXTEND,
        claims.map(({ key }) => key),
        [
          ...claims.flatMap(({ owner, ttlMs }) => [owner, String(ttlMs)]),
          ...atLeast ? ["1"] : [],
        ],
      );
      if (isBrief && this.#port.isCluster) {
        this.line?.remind([claim.key], [claim.owner]);
      }
      return verdicts;
    } catch (cause) {
      const errors = claims.map(({ key }) => failure("extend", key, cause));
      if (claims.length === 1 || !isAboutSome(errors[0])) return errors;
      this.#areApart = true;
      return await this.extend(claims, atLeast);
    }
  }

  async #confirm(
    claims: readonly Claim[],
    replicas: number,
    ms: number,
  ): Promise<number | Exclude<Verdict, "done">> {
    if (claims.length > 1 && this.#port.isCluster) {
      let fewest = Infinity;
      for (const claim of claims) {
        const answer = await this.#confirm([claim], replicas, ms);
        if (typeof answer !== "number") return answer;
        fewest = Math.min(fewest, answer);
      }
      return fewest;
    }
    const { lua, decode } = EXTEND;
    try {
      const [extended, confirmed] = await this.#port.evalAndWait!(
        lua,
        claims.map(({ key }) => key),
        claims.flatMap(({ owner, ttlMs }) => [owner, String(ttlMs)]),
        replicas,
        // 0 would be without end.
        Math.max(1, Math.floor(ms)),
      );
      for (const verdict of decode(extended)) {
        if (verdict !== "done") return verdict;
      }
      return Number(confirmed);
    } catch (cause) {
      const error = failure("replicate", claims[0].key, cause);
      // A chain is not redirected: a command by itself is, and all after it.
      if (isPassing(error)) await this.extend(claims);
      throw error;
    }
  }

  async prolong({ key, owner }: Hold, byMs: number): Promise<Standing> {
    const endAt = (at: string, seen: string) =>
      this.#run("extend", key, END_AT, [key], [owner, at, seen]);
    const now = await endAt("", "");
    const leftMs = Math.max(0, now.leftMs + byMs);
    if (now.verdict !== "done" || leftMs === 0 || leftMs === Infinity) {
      return { verdict: now.verdict, leftMs };
    }
    const at = Math.round(now.endsAt + byMs).toFixed();
    const seen = now.endsAt.toFixed();
    const isSooner = byMs < 0 && this.line !== undefined;
    if (isSooner && !this.#port.isCluster) {
      const keys = beside(this.#port, key, "line");
      const args = [owner, at, seen] as const;
      try {
        return await this.#run("extend", key, END_SOONER, keys, args);
      } catch (error) {
        // As for extend(): one may have a right to the key alone.
        if (!isAboutSome(error as LockBackendError)) throw error;
      }
    }
    const standing = await endAt(at, seen);
    if (isSooner) this.line?.remind([key], [owner]);
    return standing;
  }

  rename({ key, owner }: Hold, name: string): Promise<Verdict> {
    return this.#run("acquire", key, RENAME, [key], [owner, name]);
  }

  release(hold: Hold): Promise<Verdict> {
    return this.releaseThen(hold, false, (verdict) => verdict, rethrow);
  }

  // By then() rather than await, as above.
  releaseThen<T>(
    hold: Hold,
    isFirst: boolean,
    then: (verdict: Verdict) => T,
    fail: (error: unknown) => never,
  ): Promise<T> {
    const verdictOn = this.#verdictOn(hold);
    return this.#release<T>(hold, isFirst, (answer) => {
      const verdict = verdictOn(answer);
      return typeof verdict === "string"
        ? then(verdict)
        : verdict.then(then, fail);
    }, (cause) => {
      const failed = failing("release", hold.key);
      const again = () => this.#release(hold, false, verdictOn, failed);
      return insist(failure("release", hold.key, cause), again)
        .catch((error) => releaseAlone(this.#port, hold, error))
        .then(then, fail);
    });
  }

  #release<T>(
    { key, owner }: Hold,
    isFirst: boolean,
    then: (verdict: Verdict | "wanted") => T | Promise<T>,
    fail: (cause: unknown) => T | Promise<T>,
  ): Promise<T> {
    const line = companion(this.#port, key, "line");
    return this.#departures === undefined
      ? runThen(
        this.#port,
        RELEASE_PLAIN,
        [key],
        [owner, line, key],
        then,
        fail,
      )
      : this.#departures.add(key, line, owner, isFirst, then, fail);
  }

  flush(): void {
    this.#departures?.flush();
  }

  isClosed(): boolean {
    return this.#port.isClosed?.() ?? false;
  }

  /** What an answer to a release that is about to be sent comes to. */
  #verdictOn(
    hold: Hold,
  ): (verdict: Verdict | "wanted") => Verdict | Promise<Verdict> {
    const port = this.#port;
    const connection = port.connection?.();
    return (verdict) => {
      if (verdict === "wanted") return this.#handOver(hold);
      return verdict === "done" || connection === port.connection?.()
        ? verdict
        // The first sending may have freed it: this answers the second.
        : "unclear";
    };
  }

  /** Somebody stands in line for what was acquired without. */
  async #handOver(hold: Hold): Promise<Verdict> {
    const { verdict, called } = await handOver(this.#port, hold, this.line)
      .catch((error) => {
        this.line?.lookAround();
        throw error;
      });
    // An answer that named one of ours may have been lost.
    if (verdict !== "done") this.line?.lookAround();
    // Once it was told of the release.
    if (called !== undefined) {
      void afterwards(() => this.line?.call(called));
    }
    return verdict;
  }

  inquire({ key, owner }: Hold): Promise<Standing> {
    return this.#run("ask for", key, INQUIRE, [key], [owner]);
  }

  inspect(key: string): Promise<Entry> {
    return this.#run("inspect", key, INSPECT, keysOf(this.#port, key), []);
  }

  forceRelease(key: string): Promise<boolean> {
    const watch = companion(this.#port, key, "watch");
    const keys = [...keysOf(this.#port, key), watch] as const;
    return this.#run("free", key, FORCE_RELEASE, keys, []);
  }

  writeFenced(write: FencedWrite): Promise<boolean> {
    const { key, value, fencingToken, ttlMs } = write;
    const keys = beside(this.#port, key, "seen");
    const args = [value, String(fencingToken), String(ttlMs ?? "")] as const;
    return this.#run("write", key, WRITE_FENCED, keys, args);
  }

  async *#scan(pattern: string): AsyncGenerator<string> {
    try {
      for await (const keys of this.#port.scan!(pattern)) {
        for (const key of keys) if (!isCompanion(key)) yield key;
      }
    } catch (cause) {
      throw failure("list", pattern, cause);
    }
  }

  discard(claim: Claim): void {
    this.#cleanUp(claim, "");
  }

  /** Frees the key, and takes `leaving` out of its line, until that is known. */
  #cleanUp(claim: Claim, leaving: string): void {
    const { key, owner, ttlMs } = claim;
    const port = this.#port;
    // Past this the server has dropped it by itself; a line that others stand
    // in stays, so that the wish has to be taken out of it.
    const forMs = leaving === "" ? ttlMs : ttlMs + LINE_MS;
    // Several keys may have one owner.
    this.#cleanUps.add(owner + key, forMs, async () => {
      if (leaving === "") {
        const verdict = await this.#release(claim, false, (it) => it, rethrow);
        if (verdict !== "wanted") return;
      }
      const args = [owner, "", "", leaving] as const;
      const keys = keysOf(port, key);
      // At first in full: the client may be closed in the same moment, and could
      // not be told then that the server has not seen it.
      const send = this.#hasLeft ? run : runInFull;
      this.#hasLeft = true;
      const { calledOut } = await send(port, HAND_OVER, keys, args);
      if (calledOut !== undefined) this.line?.remindLater(key, calledOut);
    });
  }
}

/** The lines before the keys of the server behind `port`. */
class RedisLine implements Line {
  readonly #port: Port;
  readonly #cleanUp: (hold: Claim, leaving: string) => void;
  readonly #inbox: Inbox;
  /** Who was called of other processes, for which key, and when. */
  readonly #calledOut = new Map<string, { owner: string; at: number }>();
  #isReminding = false;
  #ears: Ears | undefined;
  /** How many messages of a test were sent to us, and not heard. */
  #missed = 0;
  #testedAt = -Infinity;
  /** As of the backend: whether each key is to be asked for alone. */
  #areApart: boolean;

  constructor(port: Port, cleanUp: (hold: Claim, leaving: string) => void) {
    this.#port = port;
    this.#areApart = port.isCluster ?? false;
    this.#cleanUp = cleanUp;
    this.#inbox = new Inbox(port);
  }

  get inbox(): string | undefined {
    return this.#inbox.name;
  }

  open(ears: Ears): Promise<boolean> {
    this.#ears = ears;
    this.#missed = 0;
    const opened = this.#inbox.open({
      onMessage: (message) => this.#hear(message),
      onGap: () => ears.onGap(),
      onDeaf: (reason) => ears.onDeaf(reason),
      onClosed: () => ears.onClosed(),
    });
    // Who leaves may be about to close the client: that is to come after.
    return prepare(HAND_OVER).then(() => opened);
  }

  close(): void {
    this.#ears = undefined;
    this.#inbox.close();
  }

  get isOpen(): boolean {
    return this.#inbox.isOpen;
  }

  isClosed(): boolean {
    return this.#port.isClosed?.() ?? false;
  }

  #hear(message: string): void {
    const call = toCall(message);
    if (call === undefined) return;
    if (call === "test") this.#missed = 0;
    else if ("ended" in call) this.#ears?.onEnd(call.ended);
    else if ("reminded" in call) this.#ears?.onReminder(call.reminded);
    else if ("owner" in call) this.call(call);
  }

  async stand(
    wishes: readonly Wish[],
    isInPassing: boolean = false,
  ): Promise<readonly (Turn | Place | LockBackendError)[]> {
    if (this.#areApart && wishes.some(isOther)) {
      return await this.#standApart(wishes, isInPassing);
    }
    const connection = this.#port.connection?.();
    const keys: string[] = [];
    // Whoever waits for long tries now and then whether it can be called: a
    // connection that nobody speaks on may be dead, and neither end know it.
    const { inbox } = this;
    const now = systemClock.now();
    const isTest = now - this.#testedAt >= TEST_MS &&
      wishes.some(({ ticket }) => ticket !== undefined);
    if (isTest) this.#testedAt = now;
    const args = [isInPassing ? "1" : "", isTest && inbox || ""];
    for (const wish of wishes) {
      keys.push(...keysOf(this.#port, wish.key));
      const { ticket = "", former } = wish;
      const place = former === undefined ? `${ticket}` : `${ticket} ${former}`;
      args.push(memberOf(wish), place);
    }
    try {
      const { answers, heard } = await run(this.#port, STAND, keys, args);
      if (heard !== undefined && inbox === this.inbox) this.#test(heard);
      return answers.map((answer, i) =>
        answer instanceof Error
          ? failure("wait for", wishes[i].key, answer)
          : answer
      );
    } catch (cause) {
      const error = failure("wait for", wishes[0].key, cause);
      // Beside one of the keys there may be something that is no line.
      const isNoLine = error.reply === "WRONGTYPE";
      if (wishes.some(isOther) && (isNoLine || isAboutSome(error))) {
        this.#areApart ||= !isNoLine;
        return await this.#standApart(wishes, isInPassing);
      }
      return wishes.map((wish) => {
        const error = failure("wait for", wish.key, cause);
        // By this name it will not be asked for again.
        if (isInPassing && mayBeDone(this.#port, error, connection)) {
          this.leave(wish);
        }
        return error;
      });
    }
  }

  /** The same by a command for each key. */
  async #standApart(
    wishes: readonly Wish[],
    isInPassing: boolean,
  ): Promise<readonly (Turn | Place | LockBackendError)[]> {
    const groups = new Map<string, Wish[]>();
    for (const wish of wishes) {
      const group = groups.get(wish.key);
      if (group === undefined) groups.set(wish.key, [wish]);
      else group.push(wish);
    }
    const answers = new Map<Wish, Turn | Place | LockBackendError>();
    await Promise.all([...groups.values()].map(async (group) => {
      const all = await this.stand(group, isInPassing);
      for (const [i, wish] of group.entries()) answers.set(wish, all[i]);
    }));
    return wishes.map((wish) => answers.get(wish)!);
  }

  /** So many have heard a message to us, as far as the server knows. */
  #test(heard: number): void {
    // We may not PUBLISH: others may.
    if (heard < 0) return;
    const isGone = heard === 0 && !this.#port.isCluster;
    if (++this.#missed <= MOST_MISSED && !isGone) return;
    this.#missed = 0;
    this.#inbox.again();
  }

  handOver(hold: Hold, next: Wish | undefined): Promise<HandOver> {
    return handOver(this.#port, hold, this, next);
  }

  /** Has all of this process ask, of whom one may have the turn by now. */
  lookAround(): void {
    this.#ears?.onGap();
  }

  /** Tells one of this process whose turn it is. */
  call({ owner, turn }: Called): void {
    this.#ears?.onTurn(owner, turn);
  }

  leave(wish: Wish): void {
    this.#cleanUp(wish, memberOf(wish));
    const { former } = wish;
    if (former !== undefined) {
      this.leave({ ...wish, owner: former, former: undefined });
    }
  }

  /** Reminds whoever was called, should that be needed; and who is next of a
   * lease that will be over soon. */
  remindLater(key: string, owner: string): void {
    // In the order of their times.
    this.#calledOut.delete(key);
    this.#calledOut.set(key, { owner, at: systemClock.now() });
    if (!this.#isReminding) this.#remindIn(REMIND_MS);
  }

  /** One timer for all: a busy line calls somebody out thousands of times a
   * second, and each time there is nobody left to remind of the time before. */
  #remindIn(ms: number): void {
    this.#isReminding = true;
    systemClock.setTimer(() => {
      this.#isReminding = false;
      if (this.isClosed()) return this.#calledOut.clear();
      const now = systemClock.now();
      const keys: string[] = [];
      const owners: string[] = [];
      for (const [key, { owner, at }] of this.#calledOut) {
        if (at + REMIND_MS > now) {
          this.#remindIn(at + REMIND_MS - now);
          break;
        }
        this.#calledOut.delete(key);
        keys.push(key);
        owners.push(owner);
      }
      this.remind(keys, owners);
    }, ms);
  }

  /** Has those look who hold the `keys`, and who is first in line for each know
   * of an end that is near, if that can be done. */
  remind(keys: readonly string[], owners: readonly string[]): void {
    if (keys.length > 1 && this.#port.isCluster) {
      // One script may touch one slot only.
      keys.forEach((key, i) => this.remind([key], [owners[i]]));
    } else if (keys.length > 0) {
      const all = keys.flatMap((key) => beside(this.#port, key, "line"));
      // Who waits asks by itself, only later.
      run(this.#port, REMIND, all, owners).catch(() => {});
    }
  }
}

/** What the notices of a backend leave to it. */
interface Helper {
  /** Asks for the claim; what failed is cleaned up after. */
  attempt<T>(claim: Claim, ask: () => Promise<T>): Promise<T>;
  /** What an answer to a release that is about to be sent comes to. */
  verdictOn(
    hold: Hold,
  ): (verdict: Verdict | "wanted") => Verdict | Promise<Verdict>;
}

/**
 * Word of releases to those who wait over a quorum: by one connection for all
 * of a process.
 */
class RedisNotices implements Notices {
  readonly #port: Port;
  readonly #backend: Helper;
  readonly #inbox: Inbox;
  readonly #all = new Set<NoticeEars>();
  #opened: Promise<unknown> = Promise.resolve();
  #callOffIdle = () => {};

  constructor(port: Port, backend: Helper) {
    this.#port = port;
    this.#backend = backend;
    this.#inbox = new Inbox(port);
  }

  get isOpen(): boolean {
    return this.#inbox.name !== undefined;
  }

  listen(ears: NoticeEars): Hearing {
    const inbox = this.#inbox;
    const all = this.#all;
    all.add(ears);
    this.#callOffIdle();
    if (!inbox.isOpen) {
      this.#opened = inbox.open({
        onMessage(message) {
          const call = toCall(message);
          if (typeof call !== "object" || !("free" in call)) return;
          for (const { onNotice } of all) onNotice(call.free);
        },
        onGap() {
          for (const { onGap } of all) onGap();
        },
        onDeaf() {},
        onClosed: () => this.#callOffIdle(),
      });
    }
    return {
      get inbox() {
        return inbox.name;
      },
      opened: this.#opened,
      close: () => {
        all.delete(ears);
        if (all.size > 0) return;
        this.#callOffIdle();
        this.#callOffIdle = systemClock.setTimer(() => inbox.close(), IDLE_MS);
      },
    };
  }

  tryAcquire(wish: Wish, watcher: string = ""): Promise<Grant | Place> {
    const { key, owner, ttlMs, tokens, ticket } = wish;
    const fence = companion(this.#port, key, "fence");
    const keys = [key, fence, companion(this.#port, key, "watch")] as const;
    const amounts = [String(ttlMs), String(tokens)] as const;
    const args = [owner, ...amounts, watcher, String(ticket ?? "")] as const;
    return this.#backend.attempt(
      wish,
      () => run(this.#port, TRY_OR_WATCH, keys, args),
    );
  }

  release(hold: Hold): Promise<Verdict> {
    const { key, owner } = hold;
    const line = companion(this.#port, key, "line");
    return runThen(
      this.#port,
      RELEASE_TELLING,
      [key, line, companion(this.#port, key, "watch")],
      [owner],
      this.#backend.verdictOn(hold),
      failing("release", key),
    );
  }

  forget(key: string, watcher: string): void {
    const keys = beside(this.#port, key, "watch");
    // Should that fail, it is forgotten with the next release, or in a while.
    run(this.#port, FORGET, keys, [watcher]).catch(() => {});
  }
}

/** Gives the key back for the next in line, and has `next` stand behind them. */
function handOver(
  port: Port,
  hold: Hold,
  line: RedisLine | undefined,
  next?: Wish,
): Promise<HandOver> {
  const { key, owner } = hold;
  const connection = port.connection?.();
  const wanted = next === undefined ? "" : memberOf(next);
  const args = [owner, line?.inbox ?? "", wanted, ""] as const;
  const attempt = (fail: (cause: unknown) => HandOver | Promise<HandOver>) =>
    runThen(port, HAND_OVER, keysOf(port, key), args, (answer): HandOver => {
      const { verdict, called, calledOut = ofBrief(called) } = answer;
      if (calledOut !== undefined) line?.remindLater(key, calledOut);
      if (verdict !== "done" && connection !== port.connection?.()) {
        // The first sending may have freed it: this answers the second.
        return { verdict: "unclear" };
      }
      return called !== undefined && called.owner === next?.owner
        ? { verdict, next: called.turn }
        : answer;
    }, fail);
  return attempt((cause) =>
    insist(
      failure("release", key, cause),
      () => attempt(failing("release", key)),
    ).catch(async (error) => ({
      verdict: await releaseAlone(port, hold, error),
    }))
  );
}

/** The owner of a turn that may be over before they ask again who wait. */
function ofBrief(called: Called | undefined): string | undefined {
  return called && called.turn.leftMs < HEARTBEAT_MS ? called.owner : undefined;
}

/** Whether it is for another key than the first of them. */
function isOther({ key }: Wish, _: number, all: readonly Wish[]): boolean {
  return key !== all[0].key;
}

/** A wish as it stands in line: see `handOver` in scripts.ts. */
function memberOf({ ttlMs, tokens, owner }: Wish): string {
  return `${ttlMs} ${tokens} ${owner}`;
}

/** The keys of a lock, its line and its fence. */
function keysOf(port: Port, key: string): [string, string, string] {
  return [key, companion(port, key, "line"), companion(port, key, "fence")];
}

/** A key and what is kept beside it. */
function beside(port: Port, key: string, what: Companion): [string, string] {
  return [key, companion(port, key, what)];
}

/**
 * What is kept beside a key: who stands in line, who is to be told of a release,
 * the last token drawn, the newest seen, the calls of a burst.
 */
type Companion = "line" | "watch" | "fence" | "seen" | "burst";

/**
 * A key beside `key`, in the slot of a Cluster where that is, and beside no other
 * key. Without a closing brace the key becomes a hash tag as a whole; else it
 * stands behind one, its own or, where it has none, one for its slot. Named like
 * the key, that of `{a}` would be that of `a`.
 */
function companion(
  { keyPrefix }: Port,
  key: string,
  what: Companion,
): string {
  if (keyPrefix) {
    // What the client puts before both counts as well, unless it has a tag.
    const whole = keyPrefix + key;
    if (tagOf(whole) === whole) {
      return `{${tagFor(slotOf(whole))}}:${key}:${what}`;
    }
  }
  if (!key.includes("}")) return `{${key}}:${what}`;
  const own = tagOf(key);
  return `{${own === key ? tagFor(slotOf(key)) : own}}:${key}:${what}`;
}

/** Whether `key` is one of those. */
function isCompanion(key: string): boolean {
  return /\{[^}]+\}.*:(line|watch|fence|seen)$/s.test(key);
}
