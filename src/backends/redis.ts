/** Locks on one server that speaks the Redis protocol, through any client. */

import type { Port } from "../clients/port.ts";
import {
  type Backend,
  type Claim,
  type Entry,
  type FencedWrite,
  type Grant,
  GRANTED,
  type Hold,
  type Refusal,
  type Standing,
  type Verdict,
} from "../core/backend.ts";
import { systemClock } from "../core/clock.ts";
import { LockBackendError } from "../core/errors.ts";
import type { LockEvent } from "../core/events.ts";
import {
  ACQUIRE_FENCED,
  EXTEND,
  FORCE_RELEASE,
  INQUIRE,
  INSPECT,
  refusal,
  RELEASE,
  run,
  WRITE_FENCED,
} from "./scripts.ts";

/** How a Redis backend is set up. */
export interface RedisOptions {
  /** Told of every transition of every lock made on this backend. */
  onEvent?: (event: LockEvent) => void;
}

/** Between two tries to clean up, at first and at most, in milliseconds. */
const CLEAN_UP_FIRST_MS = 10;
const CLEAN_UP_LAST_MS = 200;

/** Locks on the server behind `port`. */
export class RedisBackend implements Backend {
  readonly name = "redis";
  readonly onEvent: ((event: LockEvent) => void) | undefined;
  /** Which keys are in use, where the client can tell. */
  readonly scan: Backend["scan"];
  readonly #port: Port;
  /** Calls off the cleaning up after an owner. Empty but after failures. */
  readonly #cleaning = new Map<string, () => void>();

  constructor(port: Port, options: RedisOptions = {}) {
    this.#port = port;
    this.onEvent = options.onEvent;
    this.scan = port.scan && ((pattern) => this.#scan(pattern));
  }

  async tryAcquire(claim: Claim): Promise<Grant | Refusal> {
    const { key, owner, ttlMs } = claim;
    const port = this.#port;
    // An owner that tries again wants to hold what was to be cleaned away.
    if (this.#cleaning.size > 0) this.#cleaning.get(owner)?.();
    try {
      const reply = ttlMs % 1000 === 0
        ? await port.setIfAbsent(key, owner, "EX", ttlMs / 1000)
        : await port.setIfAbsent(key, owner, "PX", ttlMs);
      if (String(reply) === "OK") return GRANTED;
      if (reply === null || reply === undefined) {
        return await this.#whyRefused(key, owner);
      }
    } catch (cause) {
      throw this.#acquireFailure(claim, cause);
    }
    // QUEUED, within somebody's MULTI, or no answer of Redis at all: it may
    // yet be written.
    this.discard(claim);
    throw new LockBackendError(
      key,
      `Cannot acquire "${key}": the client's answer to SET was neither "OK" nor null`,
    );
  }

  async tryAcquireFenced(claim: Claim): Promise<Grant | Refusal> {
    const { key, owner, ttlMs } = claim;
    if (this.#cleaning.size > 0) this.#cleaning.get(owner)?.();
    try {
      return await run(
        this.#port,
        ACQUIRE_FENCED,
        [key, companion(key, "fence")],
        [owner, String(ttlMs)],
      );
    } catch (cause) {
      throw this.#acquireFailure(claim, cause);
    }
  }

  #acquireFailure(claim: Claim, cause: unknown): LockBackendError {
    const error = failure("acquire", claim.key, cause);
    // No word from the server: it may have the key written down as ours.
    if (error.reply === undefined) this.discard(claim);
    return error;
  }

  /**
   * A client that resends after a cut meets its own first SET: that is a yes.
   * Asked after a no only, so a yes costs one command.
   */
  async #whyRefused(key: string, owner: string): Promise<Grant | Refusal> {
    const port = this.#port;
    if (port.get !== undefined) {
      return await port.get(key) === owner ? GRANTED : { granted: false };
    }
    const { verdict, leftMs } = await run(port, INQUIRE, [key], [owner]);
    return verdict === "done" ? GRANTED : refusal(leftMs);
  }

  async extend(
    claims: readonly Claim[],
  ): Promise<readonly (Verdict | LockBackendError)[]> {
    if (claims.length > 1 && this.#port.isCluster) {
      // One script may touch one slot only.
      const each = claims.map((claim) => this.extend([claim]));
      return (await Promise.all(each)).flat();
    }
    try {
      return await run(
        this.#port,
        EXTEND,
        claims.map(({ key }) => key),
        claims.flatMap(({ owner, ttlMs }) => [owner, String(ttlMs)]),
      );
    } catch (cause) {
      return claims.map(({ key }) => failure("extend", key, cause));
    }
  }

  // By then() rather than await, as in run(): it is done for every lock.
  release({ key, owner }: Hold): Promise<Verdict> {
    const port = this.#port;
    const connection = port.connection?.();
    return run(port, RELEASE, [key], [owner]).then(
      (verdict) =>
        verdict === "done" || connection === port.connection?.()
          ? verdict
          // The first sending may have freed it: this answers the second.
          : "unclear",
      (cause) => {
        throw failure("release", key, cause);
      },
    );
  }

  async inquire({ key, owner }: Hold): Promise<Standing> {
    try {
      return await run(this.#port, INQUIRE, [key], [owner]);
    } catch (cause) {
      throw failure("ask for", key, cause);
    }
  }

  async inspect(key: string): Promise<Entry> {
    try {
      const keys = [key, companion(key, "fence")] as const;
      return await run(this.#port, INSPECT, keys, []);
    } catch (cause) {
      throw failure("inspect", key, cause);
    }
  }

  async forceRelease(key: string): Promise<boolean> {
    try {
      return await run(this.#port, FORCE_RELEASE, [key], []);
    } catch (cause) {
      throw failure("free", key, cause);
    }
  }

  async writeFenced(write: FencedWrite): Promise<boolean> {
    const { key, value, fencingToken, ttlMs } = write;
    try {
      return await run(
        this.#port,
        WRITE_FENCED,
        [key, companion(key, "seen")],
        [value, String(fencingToken), String(ttlMs ?? "")],
      );
    } catch (cause) {
      throw failure("write", key, cause);
    }
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

/** What is kept beside a key: the last token drawn, the newest one seen. */
type Companion = "fence" | "seen";

/**
 * A key beside `key`, in the slot of a Cluster where that is: by the hash tag
 * that it has, or as a whole where it has none.
 */
function companion(key: string, what: Companion): string {
  return /\{[^}]+\}/.test(key) ? `${key}:${what}` : `{${key}}:${what}`;
}

/** Whether `key` is one of those. */
function isCompanion(key: string): boolean {
  return /\{[^}]+\}.*:(fence|seen)$/s.test(key);
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
  const { code, name, constructor } = Object(cause) as Partial<Error> & {
    code?: unknown;
  };
  // node-redis gives its errors classes, but no names.
  const hint = typeof code === "string"
    ? code
    : name === "Error"
    ? constructor?.name
    : name;
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
