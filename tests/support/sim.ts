/**
 * A small world that runs as fast as it can be computed: a server with the
 * true time, a process whose two clocks go wrong, and a wire between them that
 * takes its time or loses things. For schedules by the hundred thousand; for a
 * single story the FakeClock reads better.
 */
import { memory } from "@dreamer/utils/lock/memory";
import type { Backend } from "../../src/core/backend.ts";
import type { Clock } from "../../src/core/clock.ts";
import { LockBackendError } from "../../src/core/errors.ts";

/** What happens to one request. */
export interface Passage {
  /** Milliseconds until the server has it; `Infinity`: it is lost. */
  thereMs: number;
  /** Milliseconds until its reply is back; `Infinity`: that is lost. */
  backMs: number;
  /** Milliseconds after which the client gives up on either. */
  givesUpMs: number;
}

interface Timer {
  at: number;
  callback: () => void;
}

/** True time, and everything that happens in it. */
export class World {
  /** The true time in milliseconds. */
  time = 0;
  readonly #timers = new Set<Timer>();
  /** The server, with a clock that is right. */
  readonly server: Backend = memory({
    clock: {
      now: () => this.time,
      wall: () => this.time,
      setTimer: () => () => {},
    },
  });
  /** Decides how each request fares. */
  passage: () => Passage = () => ({ thereMs: 0, backMs: 0, givesUpMs: 1e9 });

  /** Calls back when so much true time has gone by. */
  in(ms: number, callback: () => void): () => void {
    const timer = { at: this.time + ms, callback };
    if (ms !== Infinity) this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  }

  /** How many things are still to happen. */
  get pending(): number {
    return this.#timers.size;
  }

  /** Lets true time go by, with all that is due in it. */
  async pass(ms: number): Promise<void> {
    const end = this.time + ms;
    await microtasks();
    for (;;) {
      let next: Timer | undefined;
      for (const timer of this.#timers) {
        if (timer.at <= end && (!next || timer.at < next.at)) next = timer;
      }
      if (next === undefined) break;
      this.#timers.delete(next);
      this.time = Math.max(this.time, next.at);
      next.callback();
      await microtasks();
    }
    this.time = end;
    await microtasks();
  }

  /** The server as a process with `clock` sees it. */
  seenBy(clock: Clock): Backend {
    const send = <T>(what: string, key: string, ask: () => Promise<T>) =>
      new Promise<T>((resolve, reject) => {
        const { thereMs, backMs, givesUpMs } = this.passage();
        this.in(givesUpMs, () => {
          reject(new LockBackendError(key, `Cannot ${what} "${key}"`));
        });
        this.in(thereMs, () => {
          const reply = ask();
          this.in(backMs, () => resolve(reply));
        });
      });
    const { server } = this;
    return {
      name: "far away",
      clock,
      tryAcquire: (claim) =>
        send("acquire", claim.key, () => server.tryAcquire(claim)),
      extend: async (claims) => {
        try {
          const [{ key }] = claims;
          return await send("extend", key, () => server.extend(claims));
        } catch (error) {
          return claims.map(() => error as LockBackendError);
        }
      },
      release: (hold) => send("release", hold.key, () => server.release(hold)),
      inquire: (hold) => send("ask for", hold.key, () => server.inquire(hold)),
      discard: (claim) => void server.release(claim),
    };
  }
}

/** The clocks of one process: they may run slow, stop, or be set. */
export class ProcessClock implements Clock {
  readonly #world: World;
  /** How fast they run; the truth is 1. */
  readonly #rate: number;
  #sleptMs = 0;
  #steppedMs = 0;
  /** While set, no timer fires: the event loop is blocked, or asleep. */
  isStalled = false;
  readonly #overdue = new Set<() => void>();

  constructor(world: World, rate: number) {
    this.#world = world;
    this.#rate = rate;
  }

  now(): number {
    return (this.#world.time - this.#sleptMs) * this.#rate;
  }

  wall(): number {
    return this.#world.time * this.#rate + this.#steppedMs;
  }

  setTimer(callback: () => void, ms: number): () => void {
    const fire = () => {
      if (this.isStalled) this.#overdue.add(callback);
      else callback();
    };
    // Whole milliseconds, as a real one: a rest of 1e-13 would never be over.
    const callOff = this.#world.in(
      Math.ceil(Math.max(0, ms) / this.#rate),
      fire,
    );
    return () => {
      callOff();
      this.#overdue.delete(callback);
    };
  }

  /** Sets the wall clock. */
  step(ms: number): void {
    this.#steppedMs += ms;
  }

  /** Lets time go by without any timer of this process. */
  async stall(ms: number): Promise<void> {
    this.isStalled = true;
    await this.#world.pass(ms);
    this.isStalled = false;
  }

  /** The same, and the monotonic clock stands still for the while. */
  async sleep(ms: number): Promise<void> {
    await this.stall(ms);
    this.#sleptMs += ms;
  }

  /** Fires what fell due during a stall. */
  async wake(): Promise<void> {
    const due = [...this.#overdue];
    this.#overdue.clear();
    for (const callback of due) callback();
    await microtasks();
  }
}

/** As many turns of the microtask queue as the longest chain of ours takes. */
async function microtasks(): Promise<void> {
  for (let i = 0; i < 12; i++) await null;
}
