/** Locks on one server that speaks the Redis protocol, through any client. */

import type { Port } from "../clients/port.ts";
import {
  type Backend,
  type Claim,
  type Grant,
  GRANTED,
  type Hold,
  type Refusal,
  type Verdict,
} from "../core/backend.ts";
import { systemClock } from "../core/clock.ts";
import { LockBackendError } from "../core/errors.ts";
import { EXTEND, REFUSED, RELEASE, run } from "./scripts.ts";

/** Between two tries to clean up, at first and at most, in milliseconds. */
const CLEAN_UP_FIRST_MS = 10;
const CLEAN_UP_LAST_MS = 200;

/** Locks on the server behind `port`. */
export class RedisBackend implements Backend {
  readonly name = "redis";
  readonly #port: Port;
  /** Calls off the cleaning up after an owner. Empty but after failures. */
  readonly #cleaning = new Map<string, () => void>();

  constructor(port: Port) {
    this.#port = port;
  }

  async tryAcquire(claim: Claim): Promise<Grant | Refusal> {
    const { key, owner, ttlMs } = claim;
    // An owner that tries again wants to hold what was to be cleaned away.
    if (this.#cleaning.size > 0) this.#cleaning.get(owner)?.();
    const port = this.#port;
    try {
      const reply = ttlMs % 1000 === 0
        ? await port.setIfAbsent(key, owner, "EX", ttlMs / 1000)
        : await port.setIfAbsent(key, owner, "PX", ttlMs);
      if (String(reply) === "OK") return GRANTED;
      if (reply === null || reply === undefined) {
        return await this.#whyRefused(key, owner);
      }
    } catch (cause) {
      const error = failure("acquire", key, cause);
      // No word from the server: it may have the key written down as ours.
      if (error.reply === undefined) this.discard(claim);
      throw error;
    }
    // Not what SET answers, so not a client: nothing was sent, or nobody knows.
    throw new LockBackendError(
      key,
      `Cannot acquire "${key}": the client's answer to SET was neither "OK" nor null`,
    );
  }

  /**
   * A client that resends after a cut meets its own first SET: that is a yes.
   * Asked after a no only, so a yes costs one command.
   */
  async #whyRefused(key: string, owner: string): Promise<Grant | Refusal> {
    const port = this.#port;
    if (port.get !== undefined) {
      const value = await port.get(key);
      return value === owner ? GRANTED : { granted: false };
    }
    const { ours, leftMs } = await run(port, REFUSED, [key], [owner]);
    if (ours) return GRANTED;
    // Gone in the meantime (-2): now. Without an expiry (-1): nobody knows.
    return leftMs === -1
      ? { granted: false }
      : { granted: false, retryAfterMs: Math.max(leftMs, 0) };
  }

  async extend({ key, owner, ttlMs }: Claim): Promise<Verdict> {
    try {
      return await run(this.#port, EXTEND, [key], [owner, String(ttlMs)]);
    } catch (cause) {
      throw failure("extend", key, cause);
    }
  }

  async release({ key, owner }: Hold): Promise<Verdict> {
    const port = this.#port;
    const connection = port.connection?.();
    try {
      const verdict = await run(port, RELEASE, [key], [owner]);
      if (verdict === "done" || connection === port.connection?.()) {
        return verdict;
      }
      // The first sending may have freed it, and this is the second's answer.
      return "unclear";
    } catch (cause) {
      throw failure("release", key, cause);
    }
  }

  discard({ key, owner, ttlMs }: Claim): void {
    const clock = systemClock;
    const port = this.#port;
    // Past this the server has dropped it by itself.
    const until = clock.now() + ttlMs;
    let pauseMs = CLEAN_UP_FIRST_MS;
    let callOff = () => {};
    const finish = () => {
      callOff();
      if (this.#cleaning.get(owner) === finish) this.#cleaning.delete(owner);
    };
    this.#cleaning.get(owner)?.();
    this.#cleaning.set(owner, finish);
    const clean = () =>
      run(port, RELEASE, [key], [owner]).then(finish, () => {
        if (this.#cleaning.get(owner) !== finish) return;
        if (port.isClosed?.() || clock.now() >= until) return finish();
        callOff = clock.setTimer(clean, pauseMs);
        pauseMs = Math.min(pauseMs * 2, CLEAN_UP_LAST_MS);
      });
    clean();
  }
}

/** The server's own error word, if that is what `cause` is: it leads the text. */
function replyOf(cause: unknown): string | undefined {
  if (!(cause instanceof Error) || "errno" in cause) return undefined;
  return /^([A-Z]{2,}[A-Z0-9]*) /.exec(cause.message)?.[1];
}

/** What is told of a client's or server's failure, without repeating its text. */
function failure(
  action: string,
  key: string,
  cause: unknown,
): LockBackendError {
  const reply = replyOf(cause);
  const { code, name } = Object(cause) as { code?: unknown; name?: unknown };
  const hint = typeof code === "string" ? code : name;
  const what = reply !== undefined
    ? `the server answered ${reply}`
    : `no answer from the server${
      typeof hint === "string" && hint !== "Error" ? ` (${hint})` : ""
    }`;
  return new LockBackendError(
    key,
    `Cannot ${action} "${key}": ${what}`,
    cause,
    reply,
  );
}
