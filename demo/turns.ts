/** One worker's part in the demo; whether it is a process or a task, it plays the same. */
import { setTimeout as rest } from "node:timers/promises";

import {
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";

/** What the server keeps a silent hold for, in seconds: the price of a crash. */
export const TTL = 2;

/** What a worker tells, and when by the wall clock, which all of them share. */
export type Report =
  | { type: "come"; at: number }
  | { type: "enter"; at: number; forMs: number }
  | { type: "leave" | "lost"; at: number }
  | { type: "refused"; at: number; retryAfterMs?: number | undefined };

/** What a worker is told: to take a turn of `forMs`, or to go home. */
export type Order = { waitMs: number; forMs: number } | "stop";

/** Who plays, where, and how it tells of it. */
export interface Part {
  on: LockTarget;
  key: string;
  name: string;
  /** Writes into the book, which all share and the server keeps in order. */
  write(line: string): Promise<unknown>;
  say(report: Report): void;
}

/** One who does as it is told, one thing after the other. */
export class Player {
  readonly #part: Part;
  readonly #end = new AbortController();
  #turns = Promise.resolve();
  #isDead = false;

  constructor(part: Part) {
    this.#part = part;
  }

  /** Resolves once all that it was told is done; "stop" cuts it short. */
  obey(order: Order): Promise<void> {
    if (order === "stop") this.#end.abort();
    else {
      const { waitMs, forMs } = order;
      this.#turns = this.#turns.then(() => this.#takeTurn(waitMs, forMs));
    }
    return this.#turns;
  }

  /** SIGKILL for a task: what it is inside of, it never leaves, and says no
   * more. Only its waiting has to be called off: else it would go in. */
  kill(): void {
    this.#isDead = true;
    this.#end.abort();
  }

  async #takeTurn(waitMs: number, forMs: number): Promise<void> {
    const { on, key, name, write, say } = this.#part;
    const { signal } = this.#end;
    if (signal.aborted) return;
    if (waitMs > 0) {
      await write(`come ${name}`);
      say({ type: "come", at: Date.now() });
    }
    // A dead process renews nothing, but the task that plays one would.
    const options = { ttl: TTL, label: name, autoExtend: false };
    try {
      await withLock(on, key, async (lock) => {
        const at = Date.now();
        await write(`enter ${name}`);
        say({ type: "enter", at, forMs });
        await rest(forMs, undefined, { signal }).catch(() => {});
        if (this.#isDead) await new Promise(() => {});
        // Stalled for longer than the ttl, we'd have no business here.
        lock.assertHeld();
        await write(`leave ${name}`);
        say({ type: "leave", at: Date.now() });
      }, { ...options, waitMs, signal });
    } catch (error) {
      const at = Date.now();
      if (error instanceof LockNotAcquiredError) {
        say({ type: "refused", at, retryAfterMs: error.retryAfterMs });
      } else if (error instanceof LockLostError) {
        await write(`lost ${name}`);
        say({ type: "lost", at });
      } else if (error !== signal.reason) throw error;
    }
  }
}
