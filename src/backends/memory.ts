/**
 * Locks in the memory of this process, with no server: for tests, for programs
 * of one process, and to try things out.
 *
 * @module
 */

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
import { type Clock, systemClock } from "../core/clock.ts";
import type { LockEvent } from "../core/events.ts";

export type { Backend, Clock, LockEvent };

/** How {@linkcode memory} is set up. */
export interface MemoryOptions {
  /** The clock of the locks and of the "server"; the machine's by default. */
  clock?: Clock;
  /** Told of every transition of every lock made on this backend. */
  onEvent?: (event: LockEvent) => void;
}

/**
 * A backend without a server. Each call makes a world of its own: locks
 * exclude each other where they were given the same one.
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
  return new MemoryBackend(options);
}

/** A key as a server has it written down. */
interface Row {
  readonly owner: string;
  expiresAt: number;
}

class MemoryBackend implements Backend {
  readonly name = "memory";
  readonly clock: Clock;
  readonly onEvent: ((event: LockEvent) => void) | undefined;
  readonly #rows = new Map<string, Row>();
  /** Swept once there are this many: twice what the last sweep left. */
  #sweepAt = 64;
  /** The greatest token drawn for any key: one number is as good as many. */
  #fence = 0;
  readonly #written = new Map<string, FencedWrite & { expiresAt: number }>();

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
      this.#rows.set(key, { owner, expiresAt: now + ttlMs });
      if (this.#rows.size >= this.#sweepAt) this.#sweep();
    } else if (row.owner !== owner) {
      const retryAfterMs = Math.ceil(row.expiresAt - now);
      return Promise.resolve({ granted: false, retryAfterMs });
    }
    return Promise.resolve(GRANTED);
  }

  async tryAcquireFenced(claim: Claim): Promise<Grant | Refusal> {
    const answer = await this.tryAcquire(claim);
    return answer.granted
      ? { granted: true, fencingToken: this.#drawToken() }
      : answer;
  }

  /** As a server would: after the last one, and no less than the time in µs. */
  #drawToken(): number {
    const floor = Math.floor(this.clock.wall() * 1000);
    return this.#fence = Math.max(this.#fence + 1, floor);
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

  extend(claims: readonly Claim[]): Promise<readonly Verdict[]> {
    return Promise.resolve(claims.map((claim) => {
      const verdict = this.#judge(claim);
      if (verdict === "done") {
        const expiresAt = this.clock.now() + claim.ttlMs;
        this.#rows.get(claim.key)!.expiresAt = expiresAt;
      }
      return verdict;
    }));
  }

  release(hold: Hold): Promise<Verdict> {
    const verdict = this.#judge(hold);
    if (verdict === "done") this.#rows.delete(hold.key);
    return Promise.resolve(verdict);
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
    const fencingToken = this.#fence || undefined;
    return Promise.resolve(
      row === undefined ? { fencingToken } : {
        owner: row.owner,
        leftMs: row.expiresAt - this.clock.now(),
        fencingToken,
      },
    );
  }

  forceRelease(key: string): Promise<boolean> {
    return Promise.resolve(
      this.#look(key) !== undefined && this.#rows.delete(key),
    );
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
      fencingToken < last.fencingToken;
    if (!isLate) {
      this.#written.set(key, { ...write, expiresAt: now + ttlMs });
    }
    return Promise.resolve(!isLate);
  }

  /** Drops what expired and was not asked for again: a timer would outlive it. */
  #sweep(): void {
    for (const key of this.#rows.keys()) this.#look(key);
    this.#sweepAt = Math.max(64, this.#rows.size * 2);
  }
}

/** A glob pattern as Redis reads it: `*`, `?`, `[a-z]`, `[^a]`, `\\` to escape. */
function glob(pattern: string): RegExp {
  const source = pattern.replace(
    /\\(.)|\[(\^?)((?:\\.|[^\]])*)\]|[*?]|[\s\S]/g,
    (all, escaped, not, members) =>
      escaped !== undefined
        ? quote(escaped)
        : members !== undefined
        ? `[${not}${members.replace(/[[\]^]/g, "\\$&")}]`
        : all === "*"
        ? ".*"
        : all === "?"
        ? "."
        : quote(all),
  );
  return new RegExp(`^${source}$`, "s");
}

function quote(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");
}
