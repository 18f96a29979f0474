/**
 * Locks in the memory of this process, with no server: for tests, for programs
 * of one process, and to try things out.
 *
 * @module
 */

import {
  type Backend,
  type Claim,
  type Grant,
  GRANTED,
  type Hold,
  type Refusal,
  type Verdict,
} from "../core/backend.ts";
import { type Clock, systemClock } from "../core/clock.ts";

export type { Backend, Claim, Clock, Grant, Hold, Refusal, Verdict };

/** How {@linkcode memory} is set up. */
export interface MemoryOptions {
  /** The clock of the locks and of the "server"; the machine's by default. */
  clock?: Clock;
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
  return new MemoryBackend(options.clock ?? systemClock);
}

/** A key as a server has it written down. */
interface Entry {
  readonly owner: string;
  expiresAt: number;
}

class MemoryBackend implements Backend {
  readonly name = "memory";
  readonly clock: Clock;
  readonly #entries = new Map<string, Entry>();
  /** Swept once there are this many: twice what the last sweep left. */
  #sweepAt = 64;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** The live entry of `key`; one that has expired is dropped as it is met. */
  #look(key: string): Entry | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined || entry.expiresAt > this.clock.now()) return entry;
    this.#entries.delete(key);
    return undefined;
  }

  tryAcquire({ key, owner, ttlMs }: Claim): Promise<Grant | Refusal> {
    const now = this.clock.now();
    const entry = this.#look(key);
    if (entry === undefined) {
      this.#entries.set(key, { owner, expiresAt: now + ttlMs });
      if (this.#entries.size >= this.#sweepAt) this.#sweep();
    } else if (entry.owner !== owner) {
      const retryAfterMs = Math.ceil(entry.expiresAt - now);
      return Promise.resolve({ granted: false, retryAfterMs });
    }
    return Promise.resolve(GRANTED);
  }

  extend({ key, owner, ttlMs }: Claim): Promise<Verdict> {
    const entry = this.#look(key);
    if (entry?.owner !== owner) {
      return Promise.resolve(entry === undefined ? "absent" : "taken");
    }
    entry.expiresAt = this.clock.now() + ttlMs;
    return Promise.resolve("done");
  }

  release({ key, owner }: Hold): Promise<Verdict> {
    const entry = this.#look(key);
    if (entry?.owner !== owner) {
      return Promise.resolve(entry === undefined ? "absent" : "taken");
    }
    this.#entries.delete(key);
    return Promise.resolve("done");
  }

  discard(claim: Claim): void {
    void this.release(claim);
  }

  /** Drops what expired and was not asked for again: a timer would outlive it. */
  #sweep(): void {
    for (const key of this.#entries.keys()) this.#look(key);
    this.#sweepAt = Math.max(64, this.#entries.size * 2);
  }
}
