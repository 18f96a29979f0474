/** `run` and `once`: a command under a lock. */
import { hostname, userInfo } from "node:os";
import { basename } from "node:path";
import process from "node:process";

import {
  acquireLock,
  type DistributedLock,
  inspectLock,
  LockBackendError,
  type LockEvent,
  type LockInfo,
  LockLostError,
  LockNotAcquiredError,
} from "@dreamer/utils/lock";

import { codeOf, type Command, SIGNALS, start } from "./command.ts";
import { EXIT } from "./failure.ts";
import { Reporter, showHolder, showHolderSince } from "./report.ts";
import { connectTo, type Place, type Servers, unavailable } from "./servers.ts";
import { FURTHEST_MS, showDuration } from "./text.ts";

/** What is to be done. */
export interface Errand {
  readonly places: readonly Place[];
  readonly cacert: string | undefined;
  readonly keys: readonly string[];
  readonly command: readonly string[];
  readonly waitMs: number;
  readonly ttlMs: number;
  readonly graceMs: number;
  readonly onLost: "stop" | "ignore";
  readonly label: string | undefined;
  /** The exit code where it is taken. */
  readonly takenCode: number;
  /** Of `once`: for how long it is held at least. */
  readonly keepMs: number | undefined;
  /** Of `once`: also if the command failed. */
  readonly keepFailed: boolean;
  readonly json: boolean;
  readonly verbose: boolean;
}

/** For so long a release is waited for. */
const RELEASE_MS = 2_000;
/** For so long one looks who holds it, to say so. */
const LOOK_LIMIT_MS = 500;
/** Who waits at a terminal sees who holds it as of so long ago. */
const LOOK_MS = 1_000;
/** For so long one waits before that is worth a line. */
const SHOW_AFTER_MS = 150;
/** A clock in doubt is looked at again so soon. */
const DOUBT_MS = 25;

/** Runs the errand: the exit code. */
export async function run(errand: Errand): Promise<number> {
  const reporter = new Reporter(errand);
  const signals = new Signals();
  const waiting = new Waiting(errand, reporter);
  const connecting = connectTo(
    errand.places,
    errand.cacert,
    (event) => waiting.hear(event),
  );
  const servers = await Promise.race([connecting, signals.next()]);
  if (typeof servers === "string") {
    connecting.catch(() => {});
    return codeOf(servers);
  }
  let lock: DistributedLock;
  try {
    waiting.begin(servers);
    lock = await acquire(errand, servers, signals);
  } catch (error) {
    waiting.end();
    // Nobody waits for a server that says nothing, to be told why.
    const ended = await Promise.race([
      refused(error, errand, servers, reporter, waiting),
      signals.next(),
    ]);
    return typeof ended === "string" ? codeOf(ended) : ended;
  }
  waiting.end();
  const { keys } = errand;
  const waitedMs = waiting.ms;
  reporter.mention(
    `${quoted(keys)} is ours` +
      (waitedMs < LOOK_MS ? "" : ` after ${showDuration(waitedMs)}`),
    { event: "acquired", keys, waitedMs, ...tokensOf(lock) },
  );
  const code = await runUnder(lock, errand, signals, reporter);
  // A quorum answers for all once most have; the others are to hear it, too.
  if (errand.places.length > 1) await servers.settle();
  return code;
}

/** Takes the lock, and makes sure of a full lease. */
async function acquire(
  { keys, ttlMs, waitMs, label, command }: Errand,
  { on }: Servers,
  signals: Signals,
): Promise<DistributedLock> {
  const lock = await acquireLock(on, keys, {
    ttl: ttlMs / 1_000,
    waitMs,
    autoExtend: true,
    fencing: true,
    localTurns: 0,
    label: label ?? ownLabel(command),
    signal: signals.waiting,
  });
  try {
    // What comes with a turn in line is short until it is renewed.
    if (lock.remainingMs < ttlMs / 2) await lock.extend();
  } catch (error) {
    await release(lock, LOOK_LIMIT_MS).catch(() => {});
    throw error;
  }
  return lock;
}

/** Who we are: `root@web-3 pid 4711: deploy.sh`. */
function ownLabel([program]: readonly string[]): string {
  let user = "";
  try {
    user = `${userInfo().username}@`;
  } catch {
    // A container's user may have no name.
  }
  const label = `${user}${hostname()} pid ${process.pid}: ${basename(program)}`;
  return label.slice(0, 200);
}

/** What comes of it where there is no lock. */
async function refused(
  error: unknown,
  errand: Errand,
  servers: Servers,
  reporter: Reporter,
  waiting: Waiting,
): Promise<number> {
  if (error instanceof Interruption) {
    // Not a ticket of ours may stay in line.
    await servers.settle();
    return codeOf(error.signal);
  }
  if (error instanceof LockNotAcquiredError) {
    const limit = new Promise<undefined>((done) =>
      setTimeout(() => done(undefined), LOOK_LIMIT_MS)
    );
    const info = await Promise.race([lookFor(errand.keys, servers), limit]);
    const isKept = errand.keepMs !== undefined;
    const key = info?.key ?? errand.keys[0];
    const place = error.place ?? placeOf(info);
    const text = `"${key}" is taken: held by ${showHolderSince(info)}` +
      (place === undefined ? "" : `; place in line: ${place}`);
    const { label, heldMs, remainingMs } = info ?? {};
    const happening = {
      ...{ event: "taken", key, label, heldMs, remainingMs, place },
      waitedMs: waiting.ms,
    };
    if (isKept) reporter.mention(text, happening);
    else reporter.say(text, happening);
    // Out of patience, our ticket is on its way out of the line.
    if (errand.waitMs > 0) await servers.settle();
    return errand.takenCode;
  }
  if (error instanceof LockLostError) {
    // Between its grant and the first word of ours.
    const { key, reason, message } = error;
    reporter.say(message, { event: "lost", keys: [key], reason });
    return EXIT.lost;
  }
  if (error instanceof LockBackendError) throw unavailable(servers, error);
  throw error;
}

/** Where one would stand who did not wait. */
function placeOf(info: LockInfo | undefined): number | undefined {
  return info?.waiting === undefined ? undefined : info.waiting + 1;
}

/** The first of the keys that somebody holds. */
async function lookFor(
  keys: readonly string[],
  { on }: Servers,
): Promise<LockInfo | undefined> {
  for (const key of keys) {
    const info = await inspectLock(on, key).catch(() => undefined);
    if (info?.held) return info;
  }
  return undefined;
}

/** Runs the command while we hold the lock: the exit code. */
async function runUnder(
  lock: DistributedLock,
  errand: Errand,
  signals: Signals,
  reporter: Reporter,
): Promise<number> {
  const { keys, graceMs, onLost, keepMs } = errand;
  const begunAt = performance.now();
  const deadlineMs = Date.now() + Math.floor(lock.remainingMs);
  let command: Command;
  try {
    if (signals.first !== undefined) throw new Interruption(signals.first);
    command = await start(
      errand.command,
      environment(lock, deadlineMs),
      onLost === "stop" ? graceMs : undefined,
    );
  } catch (error) {
    await release(lock);
    if (error instanceof Interruption) return codeOf(error.signal);
    throw error;
  }
  signals.passOn((signal) => command.tell(signal));
  let stopped: Promise<void> | undefined;
  let isTold = false;
  const endWatch = watch(lock, onLost === "stop" ? graceMs : 0, (reason) => {
    const leftMs = lock.remainingMs;
    const happening = { event: "lost", keys, reason };
    isTold = true;
    if (onLost === "ignore") {
      return reporter.say(
        `${quoted(keys)} was lost (${reason}); the command goes on`,
        happening,
      );
    }
    reporter.say(
      leftMs > 0
        ? `${quoted(keys)} could not be renewed: stopping the command`
        : `${quoted(keys)} was lost (${reason}): stopping the command`,
      happening,
    );
    // Gone before the server lets others in, if that is still to come.
    stopped = command.stop(leftMs > 0 ? Math.min(leftMs, graceMs) : graceMs);
  });
  const { code, signal } = await command.exited;
  endWatch();
  await stopped;
  command.letGo();
  const tellEnd = () =>
    reporter.mention(
      signal === undefined
        ? `the command ended with ${code}`
        : `the command was ended by ${signal}`,
      { event: "ended", keys, exitCode: code, signal },
    );
  if (stopped !== undefined) {
    tellEnd();
    // Not waited for: nobody knows whether there is a server to ask.
    if (!lock.signal.aborted) await release(lock, 250);
    return EXIT.lost;
  }
  const leftToKeepMs = (keepMs ?? 0) - (performance.now() - begunAt);
  const isToBeKept = leftToKeepMs > 0 && (code === 0 || errand.keepFailed);
  const loss = isToBeKept
    ? await keep(lock, leftToKeepMs)
    : await release(lock);
  if (loss !== undefined && !isTold) {
    const { reason } = loss;
    reporter.say(
      reason === "unreachable" && isToBeKept
        ? `${quoted(keys)} could not be kept: the server can't be asked`
        : `${quoted(keys)} was lost (${reason}) before the command had ended`,
      { event: "lost", keys, reason },
    );
  }
  tellEnd();
  const isFatal = loss !== undefined && (onLost === "stop" || isToBeKept);
  return isFatal ? EXIT.lost : code;
}

/** What the command is told. */
function environment(
  lock: DistributedLock,
  deadlineMs: number,
): Record<string, string> {
  const { key, keys, fencingToken, fencingTokens } = lock;
  return {
    LOCK_KEY: key,
    LOCK_FENCING_TOKEN: `${fencingToken}`,
    LOCK_DEADLINE_MS: `${deadlineMs}`,
    ...keys.length > 1 && {
      LOCK_FENCING_TOKENS: JSON.stringify(Object.fromEntries(fencingTokens)),
    },
  };
}

function tokensOf({ keys, fencingToken, fencingTokens }: DistributedLock) {
  return keys.length === 1
    ? { fencingToken }
    : { fencingTokens: Object.fromEntries(fencingTokens) };
}

/**
 * Calls `then` once: when the lock is lost, or so long before it would be that
 * the command can be given `graceMs`. The function that it returns ends it.
 */
function watch(
  lock: DistributedLock,
  graceMs: number,
  then: (reason: string) => void,
): () => void {
  let timer: ReturnType<typeof setTimeout>;
  let isOver = false;
  const end = () => {
    isOver = true;
    clearTimeout(timer);
    lock.signal.removeEventListener("abort", look);
  };
  const look = () => {
    if (isOver) return;
    clearTimeout(timer);
    const leftMs = lock.remainingMs;
    if (lock.signal.aborted) {
      const { reason } = lock.signal.reason as LockLostError;
      end();
      return then(reason);
    }
    // Clocks in doubt: the server is being asked, and loss or not comes of it.
    if (leftMs === 0) timer = setTimeout(look, DOUBT_MS);
    else if (leftMs > graceMs) {
      timer = setTimeout(look, Math.min(leftMs - graceMs, FURTHEST_MS));
    } else if (graceMs > 0) {
      end();
      then("unreachable");
    }
  };
  lock.signal.addEventListener("abort", look);
  look();
  return end;
}

/** Frees it, and waits no longer than one should: the loss, if it was lost. */
async function release(
  lock: DistributedLock,
  limitMs: number = RELEASE_MS,
): Promise<LockLostError | undefined> {
  const freed = lock[Symbol.asyncDispose]();
  return await lossOf(freed, limitMs);
}

/** Lets it be for so much longer, and goes: the loss, if it can't be known to. */
async function keep(
  lock: DistributedLock,
  keepMs: number,
): Promise<LockLostError | undefined> {
  let isKept = false;
  const kept = lock.extend(Math.ceil(keepMs) / 1_000).then(() => {
    isKept = true;
    // What stops the renewal, and releases nothing.
    void lock.toJSON();
  });
  const loss = await lossOf(kept, RELEASE_MS);
  if (isKept || loss !== undefined) return loss;
  return new LockLostError(lock.key, "unreachable");
}

async function lossOf(
  end: Promise<unknown>,
  limitMs: number,
): Promise<LockLostError | undefined> {
  const limit = new Promise((done) => setTimeout(done, limitMs));
  try {
    await Promise.race([end, limit]);
  } catch (error) {
    if (error instanceof LockLostError) return error;
    // A server that is away: the lease ends by itself.
    if (!(error instanceof LockBackendError)) throw error;
  }
  return undefined;
}

function quoted(keys: readonly string[]): string {
  return keys.map((key) => `"${key}"`).join(", ");
}

/** Somebody wants us to stop. */
class Interruption extends Error {
  readonly signal: string;

  constructor(signal: string) {
    super(signal);
    this.signal = signal;
  }
}

/** What signals do: end the waiting, and later go to the command. */
class Signals {
  readonly #controller = new AbortController();
  #pass: ((signal: NodeJS.Signals) => void) | undefined;
  #tell: (signal: NodeJS.Signals) => void = () => {};
  /** The first that came before there was anybody to pass it on to. */
  first: NodeJS.Signals | undefined;

  constructor() {
    for (const signal of SIGNALS) {
      process.on(signal, () => {
        if (this.#pass !== undefined) return this.#pass(signal);
        this.#tell(signal);
        this.first ??= signal;
        this.#controller.abort(new Interruption(signal));
      });
    }
  }

  /** Resolves with the next that comes before there is a command. */
  next(): Promise<NodeJS.Signals> {
    return new Promise((resolve) => this.#tell = resolve);
  }

  /** Aborts when there is no use in waiting any more. */
  get waiting(): AbortSignal {
    return this.#controller.signal;
  }

  passOn(pass: (signal: NodeJS.Signals) => void): void {
    this.#pass = pass;
    if (this.first !== undefined) pass(this.first);
  }
}

/** The time until it is our turn, and what is told of it meanwhile. */
class Waiting {
  readonly #keys: readonly string[];
  readonly #isPatient: boolean;
  readonly #reporter: Reporter;
  #begunAt = performance.now();
  #endedAt: number | undefined;
  #place: number | undefined;
  #key: string | undefined;
  #info: LockInfo | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor({ keys, waitMs }: Errand, reporter: Reporter) {
    this.#keys = keys;
    this.#isPatient = waitMs > 0;
    this.#reporter = reporter;
  }

  /** For how long so far, in whole milliseconds. */
  get ms(): number {
    return Math.round((this.#endedAt ?? performance.now()) - this.#begunAt);
  }

  begin(servers: Servers): void {
    this.#begunAt = performance.now();
    if (!this.#isPatient || !this.#reporter.isLive) return;
    const look = async () => {
      this.#info = await lookFor(this.#keys, servers);
      if (this.#endedAt !== undefined) return;
      this.#reporter.live(() => this.#line());
      this.#timer = setTimeout(look, LOOK_MS);
    };
    this.#timer = setTimeout(look, SHOW_AFTER_MS);
  }

  end(): void {
    this.#endedAt ??= performance.now();
    clearTimeout(this.#timer);
    this.#reporter.endLine();
  }

  /** What the lock's observer is told. */
  hear(event: LockEvent): void {
    if (event.type !== "waiting" || this.#endedAt !== undefined) return;
    const { key, place } = event;
    this.#place = place;
    this.#key = key;
    if (this.#reporter.isLive) return;
    this.#reporter.mention(
      `waiting for "${key}", place ${place}`,
      { event: "waiting", key, place },
    );
  }

  #line(): string {
    const key = this.#info?.key ?? this.#key ?? this.#keys[0];
    const place = this.#place === undefined ? "" : ` · place ${this.#place}`;
    return `lock-cli: "${key}" held by ${showHolder(this.#info)}${place}` +
      ` · waiting ${showDuration(Math.floor(this.ms / 1_000) * 1_000)}`;
  }
}
