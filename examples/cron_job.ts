/**
 * A job that must run once, though three hosts start it at the same minute:
 *
 *     0 3 * * *  REDIS_URL=redis://… deno run -A examples/cron_job.ts
 *
 * Whoever comes first runs it; the others find the lock taken, and go home
 * without a word. Try it without a server as well: then it lives in memory().
 */
import { acquireLock, lockKey, type LockTarget } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { hostname } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** For how long the job keeps others out, in seconds. */
export interface Spell {
  /** However short the job: how far apart the clocks of the hosts may be. */
  atLeast: number;
  /** However it ends: longer than the job ever takes. What a crash costs. */
  atMost: number;
}

/** Runs `job` unless another host does, or just did; says whether it ran. */
export async function runOnce(
  on: LockTarget,
  name: string,
  job: (signal: AbortSignal) => void | Promise<void>,
  { atLeast, atMost }: Spell = { atLeast: 60, atMost: 600 },
): Promise<boolean> {
  const begunAt = performance.now();
  const lock = await acquireLock(on, lockKey("cron", name), {
    ttl: atMost,
    throwOnFail: false,
    label: hostname(),
  });
  if (lock === null) return false;
  try {
    // It should stop when the signal says so: then another host may begin.
    await job(lock.signal);
    lock.assertHeld();
  } catch (error) {
    // So that it can be started again at once. What went wrong in the job
    // matters more than what may go wrong here: the lock expires anyway.
    await lock.release().catch(() => {});
    throw error;
  }
  // Released now, it would be free for a host whose clock is late. So it is not
  // released at all: the server drops it when its time is up.
  const rest = atLeast - (performance.now() - begunAt) / 1000;
  if (rest >= 0.001) await lock.extend(rest);
  else await lock.release();
  return true;
}

/** Stands for the work of a night. */
async function writeReport(signal: AbortSignal): Promise<void> {
  for (const page of [1, 2, 3]) {
    signal.throwIfAborted();
    await new Promise((done) => setTimeout(done, 100));
    console.log(`page ${page} of the report, by ${hostname()}`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const url = process.env.REDIS_URL;
  if (url) {
    const { Redis } = await import("ioredis");
    const redis = new Redis(url);
    try {
      await runOnce(redis, "nightly-report", writeReport);
    } finally {
      redis.disconnect();
    }
  } else {
    await runOnce(memory(), "nightly-report", writeReport);
  }
}
