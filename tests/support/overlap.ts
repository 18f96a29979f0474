/**
 * Many who take random sets of a few keys as one lock, again and again: no two
 * may be inside at once, and none may wait for ever.
 */
import { Redis } from "ioredis";

import {
  acquireLock,
  type DistributedLock,
  type LockTarget,
} from "@dreamer/utils/lock";

/** What many do. */
export interface Overlap {
  /** Where the locks live; by turns, where there are several. */
  readonly on: readonly LockTarget[];
  readonly clients: number;
  readonly seconds: number;
  /** What all keys begin with. */
  readonly prefix: string;
  /** How long somebody waits before that is a deadlock. */
  readonly waitMs: number;
  readonly ttl: number;
  /** Numbers in [0, 1). */
  random(): number;
  readonly ledger: Ledger;
}

/** Who is inside, by their own word. */
export interface Ledger {
  /** Writes it down; gives the keys that somebody else has. */
  enter(lock: DistributedLock): Promise<string[]>;
  leave(lock: DistributedLock): Promise<void>;
}

/** What came of it. */
export interface Outcome {
  readonly served: number;
  readonly longestMs: number;
  readonly strange: readonly string[];
}

const KEYS = 12;

/** Runs it to its end. */
export async function overlap(how: Overlap): Promise<Outcome> {
  const { on, clients, seconds, prefix, waitMs, ttl, random, ledger } = how;
  const upTo = (most: number) => Math.floor(random() * most);
  const endsAt = performance.now() + seconds * 1_000;
  const strange: string[] = [];
  let served = 0;
  let longestMs = 0;
  await Promise.all(Array.from({ length: clients }, async (_, i) => {
    while (performance.now() < endsAt) {
      const keys = Array.from(
        { length: 2 + upTo(5) },
        () => `${prefix}:${upTo(KEYS)}`,
      );
      const askedAt = performance.now();
      try {
        const lock = await acquireLock(on[i % on.length], keys, {
          waitMs,
          ttl,
          throwOnFail: true,
        });
        longestMs = Math.max(longestMs, performance.now() - askedAt);
        for (const key of await ledger.enter(lock)) {
          if (lock.isAcquired()) strange.push(`two have ${key}`);
        }
        if (upTo(3) === 0) await new Promise((done) => setTimeout(done, 2));
        lock.assertHeld();
        await ledger.leave(lock);
        await lock.release();
        served++;
      } catch (error) {
        strange.push(String(error));
      }
    }
  }));
  return { served, longestMs, strange };
}

/** For one process: what each has, as long as it knows so. */
export function ledgerHere(): Ledger {
  const inside = new Map<string, DistributedLock>();
  return {
    enter(lock) {
      const crowded = lock.keys.filter((key) => inside.get(key)?.isAcquired());
      for (const key of lock.keys) inside.set(key, lock);
      return Promise.resolve(crowded);
    },
    leave(lock) {
      for (const key of lock.keys) inside.delete(key);
      return Promise.resolve();
    },
  };
}

/**
 * For several processes, any of which may be killed: on a server of its own,
 * until each lock is known to end by the clock of the machine, which is the
 * same for all; `served` counts who entered.
 */
export function ledgerAt(url: string): Ledger & { close(): void } {
  const redis = new Redis(url);
  return {
    async enter(lock) {
      const now = Date.now();
      const until = Math.floor(now + lock.remainingMs);
      const crowded = await redis.eval(
        `local crowded = {}
redis.call("INCR", "served")
for i, key in ipairs(KEYS) do
  local other = redis.call("GET", key)
  if other and other ~= ARGV[1] then crowded[#crowded + 1] = key end
  redis.call("SET", key, ARGV[1], "PXAT", ARGV[2])
end
return crowded`,
        lock.keys.length,
        ...lock.keys,
        lock.owner,
        until,
      );
      return crowded as string[];
    },
    async leave(lock) {
      await redis.eval(
        `for _, key in ipairs(KEYS) do
  if redis.call("GET", key) == ARGV[1] then redis.call("DEL", key) end
end`,
        lock.keys.length,
        ...lock.keys,
        lock.owner,
      );
    },
    close: () => redis.disconnect(),
  };
}

/** Numbers in [0, 1) that follow from the seed (mulberry32). */
export function randomBy(seed: number): () => number {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}
