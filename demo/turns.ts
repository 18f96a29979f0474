/** One worker's part in the demo; whether it is a process or a task, it plays the same. */
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
  | { type: "enter"; at: number; long: boolean }
  | { type: "leave" | "lost"; at: number }
  | { type: "refused"; at: number; retryAfterMs?: number };

/** What a worker is told; its turns are short until it hears otherwise. */
export type Order = "go" | "long" | "short" | "stop";

/** Who plays, where, and how it tells of it. */
export interface Part {
  on: LockTarget;
  key: string;
  name: string;
  /** Writes into the book, which all share and the server keeps in order. */
  write(line: string): Promise<unknown>;
  say(report: Report): void;
}

/** Takes turns until told to stop. */
export async function takeTurns(part: Part, cue: Cue): Promise<void> {
  const { on, key, name, write, say } = part;
  // A dead process renews nothing, but the task that plays one would.
  const options = { ttl: TTL, label: name, autoExtend: false };
  await cue.begun;
  while (!cue.isOver) {
    try {
      await withLock(on, key, async (lock) => {
        const { long } = cue;
        const at = Date.now();
        await write(`enter ${name}`);
        say({ type: "enter", at, long });
        await cue.rest(long ? 1_500 : between(350, 550));
        // Stalled for longer than the ttl, we'd have no business here.
        lock.assertHeld();
        await write(`leave ${name}`);
        say({ type: "leave", at: Date.now() });
      }, options);
    } catch (error) {
      const at = Date.now();
      if (error instanceof LockNotAcquiredError) {
        say({ type: "refused", at, retryAfterMs: error.retryAfterMs });
      } else if (error instanceof LockLostError) {
        await write(`lost ${name}`);
        say({ type: "lost", at });
      } else throw error;
    }
    await cue.rest(between(200, 500));
  }
}

/** What a worker hears from the director. */
export class Cue {
  /** Resolves at "go", or when it is over before that. */
  readonly begun: Promise<void>;
  long = false;
  isOver = false;
  #begin = () => {};
  #wake = () => {};
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    this.begun = new Promise((resolve) => this.#begin = resolve);
  }

  obey(order: Order): void {
    if (order === "long" || order === "short") this.long = order === "long";
    if (order === "stop") this.isOver = true;
    if (order === "stop" || order === "go") this.#begin();
    if (order === "stop") this.#wake();
  }

  /** Waits for `ms` milliseconds, or until told to stop. */
  rest(ms: number): Promise<void> {
    return new Promise((resolve) => {
      if (this.isOver) return resolve();
      this.#timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(this.#timer);
        resolve();
      };
    });
  }

  /** SIGKILL for a task: it is resting, and nothing will ever wake it again. */
  kill(): void {
    clearTimeout(this.#timer);
    this.#wake = () => {};
  }
}

function between(least: number, most: number): number {
  return least + Math.random() * (most - least);
}
