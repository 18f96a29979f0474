/** The second process of `processes_test.ts`: does one thing with one lock. */
import { Redis } from "ioredis";

import { acquireLock, withLock } from "@dreamer/utils/lock";
import { args, say } from "../support/child.ts";

const [what, url, key] = args;
const redis = new Redis(url);

/** Looks at its lock without ever yielding, so that no timer can run. */
async function stare(): Promise<void> {
  const lock = await acquireLock(redis, key, { ttl: 0.5 });
  const { signal } = lock;
  say({ type: "held" });
  // Said and sent: what follows keeps everything else from running.
  await new Promise((done) => setTimeout(done, 20));
  let lastHeld = 0;
  for (let at = Date.now(); lock.isAcquired(); at = Date.now()) lastHeld = at;
  say({ type: "lost", lastHeld, aborted: signal.aborted });
}

/** Holds the lock and never gives it back. */
async function die(): Promise<void> {
  await acquireLock(redis, key, { ttl: 1, label: "about to die" });
  say({ type: "held" });
  await new Promise(() => setInterval(() => {}, 1_000));
}

/** Takes its turns, and counts who else is inside by a witness of its own. */
async function take(turns: number): Promise<void> {
  let refused = 0;
  let crowded = 0;
  say({ type: "ready" });
  await redis.blpop(`${key}:go`, 0);
  for (let done = 0; done < turns;) {
    const result = await withLock(redis, key, async () => {
      if (await redis.incr(`${key}:inside`) !== 1) crowded++;
      await redis.decr(`${key}:inside`);
      return true;
    }, { ttl: 5, throwOnFail: false });
    if (result) done++;
    else refused++;
  }
  say({ type: "done", refused, crowded });
}

if (what === "stare") await stare();
else if (what === "die") await die();
else await take(Number(args[3]));
// With its client closed the process ends by itself: nothing of ours is left.
redis.disconnect();
