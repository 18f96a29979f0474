/**
 * How locks are given back: all those of one moment together, by as few commands
 * as will do. A program with hundreds of locks releases many at a time, and most
 * of what each costs is the command, for the client as for the server.
 *
 * A moment is what is left of this turn of the event loop's microtasks: nothing
 * waits any longer. Only who has just released many is made to wait for that,
 * and then not with the first: to be gathered alone would cost, and whoever
 * releases some locks and then, in the same breath, closes the client, means them
 * to go before that.
 */

import type { Port } from "../clients/port.ts";
import type { Hold, Verdict } from "../core/backend.ts";
import { pause, systemClock } from "../core/clock.ts";
import { isPassing, type LockBackendError } from "../core/errors.ts";
import { failing, failure, isAboutSome } from "./failure.ts";
import {
  prepare,
  RELEASE,
  RELEASE_ALL,
  RELEASE_ALONE,
  run,
  runThen,
} from "./scripts.ts";

/** How many go into one command: a script holds everybody else up. */
const MOST_AT_ONCE = 100;

/** For how long to try again to release, where the server isn't ready for it. */
const RELEASE_MS = 1_000;
/** Between two tries, at first and at most. */
const PAUSE_FIRST_MS = 10;
const PAUSE_LAST_MS = 200;

/** For how long a moment with many has the next ones gathered. */
const BUSY_MS = 20;

const settled = Promise.resolve();

/** A release that is about to be sent. */
interface Departure {
  readonly key: string;
  readonly line: string;
  readonly owner: string;
  then(verdict: Verdict | "wanted"): void;
  fail(cause: unknown): void;
}

/** The releases of one moment. */
export class Departures {
  readonly #port: Port;
  /** By key, in order. */
  #gathered = new Map<string, Departure>();
  #isGathering = false;
  /** How many there are in this moment. */
  #count = 0;
  /** When there were many. */
  #busyAt = -Infinity;
  /** Whether each has to go by itself. */
  #areApart: boolean;

  constructor(port: Port) {
    this.#port = port;
    this.#areApart = port.isCluster ?? false;
    // Or the first release would have to wait for that.
    void prepare(RELEASE);
    void prepare(RELEASE_ALL);
  }

  /**
   * Releases the lock `key` of `owner` unless somebody stands in `line`, and
   * then `then` or `fail`.
   *
   * @param isFirst Whether more will come in this moment, and then `flush()`.
   */
  add<T>(
    key: string,
    line: string,
    owner: string,
    isFirst: boolean,
    then: (verdict: Verdict | "wanted") => T | Promise<T>,
    fail: (cause: unknown) => T | Promise<T>,
  ): Promise<T> {
    const isAlone = ++this.#count === 1 && !isFirst;
    if (this.#count === 1) {
      void settled.then(this.#leave);
      this.#isGathering = this.#busyAt > 0 &&
        systemClock.now() - this.#busyAt < BUSY_MS;
    }
    this.#isGathering ||= isFirst;
    if (isAlone || !this.#isGathering) {
      return runThen(this.#port, RELEASE, [key, line], [owner], then, fail);
    }
    this.before(key);
    return new Promise((resolve: (verdict: Verdict | "wanted") => void, fail) =>
      this.#gathered.set(key, { key, line, owner, then: resolve, fail })
    ).then(then, fail);
  }

  /** What is sent next is about `key`: a release of it has to go before that. */
  before(key: string): void {
    if (this.#gathered.size > 0 && this.#gathered.has(key)) this.#send();
  }

  readonly #leave = (): void => {
    if (this.#count > 1) this.#busyAt = systemClock.now();
    this.#count = 0;
    this.flush();
  };

  /** Sends what has been gathered so far, and gathers no more in this moment. */
  flush(): void {
    this.#isGathering = false;
    if (this.#gathered.size > 0) this.#send();
  }

  #send(): void {
    const all = [...this.#gathered.values()];
    this.#gathered = new Map();
    const most = this.#areApart ? 1 : MOST_AT_ONCE;
    for (let i = 0; i < all.length; i += most) {
      void this.#sendTogether(all.slice(i, i + most));
    }
  }

  async #sendTogether(all: readonly Departure[]): Promise<void> {
    if (all.length === 1) return this.#sendAlone(all[0]);
    const locks = all.map(({ key }) => key);
    const lines = all.map(({ line }) => line);
    const owners = all.map(({ owner }) => owner);
    try {
      const keys = [...locks, ...lines];
      const verdicts = await run(this.#port, RELEASE_ALL, keys, owners);
      for (const [i, one] of all.entries()) {
        const verdict = verdicts[i];
        if (verdict === "no lock") void this.#sendAlone(one);
        else one.then(verdict);
      }
    } catch (cause) {
      const error = failure("release", all[0].key, cause);
      const { reply } = error;
      if (reply === undefined || isPassing(error)) {
        for (const { fail } of all) fail(cause);
        return;
      }
      // It is about one of them, such as a key that we have no right to; or about
      // all, as with a Cluster behind a client that does not look like one.
      this.#areApart ||= isAboutSome(error);
      for (const one of all) void this.#sendAlone(one);
    }
  }

  async #sendAlone({ key, line, owner, then, fail }: Departure): Promise<void> {
    try {
      then(await run(this.#port, RELEASE, [key, line], [owner]));
    } catch (cause) {
      fail(cause);
    }
  }
}

/** Releases after `error` as long as the server isn't ready for it: for a while,
 * as somebody waits for the answer. */
export async function insist<T>(
  error: LockBackendError,
  release: () => Promise<T>,
): Promise<T> {
  const until = systemClock.now() + RELEASE_MS;
  let pauseMs = PAUSE_FIRST_MS;
  while (isPassing(error) && systemClock.now() < until) {
    await pause(systemClock, pauseMs);
    pauseMs = Math.min(pauseMs * 2, PAUSE_LAST_MS);
    try {
      return await release();
    } catch (again) {
      error = again as LockBackendError;
    }
  }
  throw error;
}

/**
 * A slot of a Cluster that is between two masters refuses scripts of several
 * keys, and where somebody has left it so, for good. Then the lock is freed
 * without a look at its line: who stands there asks, as after any failure.
 *
 * @throws {LockBackendError} `error`, where it is about anything else.
 */
export async function releaseAlone(
  port: Port,
  { key, owner }: Hold,
  error: LockBackendError,
): Promise<Verdict> {
  // ioredis tells what it has met last on its way between the two.
  if (!/^(TRYAGAIN|MOVED|ASK)$/.test(error.reply ?? "")) throw error;
  const release = () =>
    run(port, RELEASE_ALONE, [key], [owner]).catch(failing("release", key));
  // Not every client finds its way at once while the slot is handed over.
  return await release().catch((error) => insist(error, release));
}
