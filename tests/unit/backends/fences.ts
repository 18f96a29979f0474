/**
 * The second process of `redlock_fencing_test.ts`: so many holds one after the
 * other, each by a random majority, and what became of their tokens. Without
 * node:test, which under Node follows every promise by a hook.
 */
import type { Backend } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { RedlockBackend } from "../../../src/backends/redlock.ts";
import { LockBackendError } from "../../../src/core/errors.ts";
import { args, say } from "../../support/child.ts";

const [seed, holds, how] = [Number(args[0]), Number(args[1]), args[2]];
const SERVERS = 5;
const TTL_MS = 20;
/** By how much a wall clock may be off, either way: the model's limit. */
const SKEW_MS = 500;
/**
 * How long a server stays away that comes back empty: until its clock, however
 * slow, is past all that was drawn, however fast, before it went.
 */
const AWAY_MS = how === "at once" ? 0 : 2 * SKEW_MS;

/** A small generator with a seed (mulberry32). */
let state = seed;
function random(): number {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
}
const upTo = (max: number) => random() * max;

/** The true time in milliseconds. */
let time = 1_000_000;

class Server {
  inner: Backend;
  skewMs = 0;
  /** When it is back. */
  backAt = 0;
  /** Whether it hears what it is asked, and is heard, in this attempt. */
  isReached = true;

  constructor() {
    this.inner = this.#empty();
  }

  /** It lost all that it had. */
  wipe(): void {
    this.inner = this.#empty();
    this.backAt = time + AWAY_MS;
  }

  #empty(): Backend {
    const clock = {
      now: () => time,
      wall: () => time + this.skewMs,
      setTimer: () => () => {},
    };
    return memory({ clock });
  }

  /** Asks it, unless it can't be reached; it may answer before others or after. */
  async ask<T>(key: string, fn: () => Promise<T>): Promise<T> {
    if (!this.isReached || time < this.backAt) {
      throw new LockBackendError(key, "away");
    }
    for (let steps = upTo(4); steps > 1; steps--) await undefined;
    return await fn();
  }

  readonly on: Backend = {
    name: "server",
    clock: {
      now: () => time,
      wall: () => time,
      setTimer: () => () => {},
    },
    tryAcquire: (claim) =>
      this.ask(claim.key, () => this.inner.tryAcquire(claim)),
    tryAcquireFenced: (claim) =>
      this.ask(claim.key, () => this.inner.tryAcquireFenced!(claim)),
    raiseFence: (hold, token) => {
      if (how === "forgetful") return Promise.resolve("done");
      // Some go between the two.
      if (random() < 0.03) this.isReached = false;
      return this.ask(hold.key, () => this.inner.raiseFence!(hold, token));
    },
    extend: (claims) => this.inner.extend(claims),
    release: (hold) => this.ask(hold.key, () => this.inner.release(hold)),
    discard: (claim) => {
      if (this.isReached && time >= this.backAt) this.inner.discard(claim);
    },
    inquire: (hold) => this.inner.inquire(hold),
  };
}

const servers = Array.from({ length: SERVERS }, () => new Server());
const quorum = new RedlockBackend(servers.map(({ on }) => on));
let last = 0;
let held = 0;
let fallen = 0;
let failed = 0;
let wiped = 0;
while (held < holds) {
  time += upTo(2);
  for (const server of servers) {
    // Set at random within the limits: forward, and back.
    if (random() < 0.2) server.skewMs = upTo(2 * SKEW_MS) - SKEW_MS;
    server.isReached = random() < 0.8;
  }
  if (random() < 0.01) {
    // A majority of them is there: more would be a model of nothing.
    const away = servers.filter(({ backAt }) => backAt > time).length;
    if (away < 2) {
      servers[Math.floor(upTo(SERVERS))].wipe();
      wiped++;
    }
  }
  const claim = { key: "k", owner: `${held} ${failed}`, ttlMs: TTL_MS };
  const answer = await quorum.tryAcquireFenced!(claim).catch(() => undefined);
  // What is left over is over by the time of the next.
  for (let steps = 0; steps < 12; steps++) await undefined;
  if (answer?.granted) {
    held++;
    if (answer.fencingToken! <= last) fallen++;
    last = answer.fencingToken!;
    if (random() < 0.7) await quorum.release(claim).catch(() => {});
    else time += TTL_MS;
  } else {
    failed++;
    time += upTo(TTL_MS);
  }
}
say({ type: "done", held, fallen, failed, wiped });
