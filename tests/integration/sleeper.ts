/** The second process of `stall_test.ts`: holds a lock, and looks at it. */
import { Buffer } from "node:buffer";
import { readSync } from "node:fs";

import {
  acquireLock,
  type DistributedLock,
  type IoredisClient,
  LockLostError,
  redis,
  withLock,
} from "@dreamer/utils/lock";
import { args, say } from "../support/child.ts";
import { clients } from "../support/clients.ts";
import { stall } from "../support/stall.ts";
import { until } from "../support/until.ts";

const [what, name, url, key, ttl, list] = args;
const kind = clients.find((kind) => kind.name === name)!;
const opened = await kind.open(url);
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));
let renewals = 0;
const observed = redis(opened.client as IoredisClient, {
  onEvent: ({ type }) => {
    if (type === "extended") renewals++;
  },
});

/** Every way to ask a lock, and nobody else, whether it is held. */
function looksAt(lock: DistributedLock): Record<string, () => boolean> {
  // As handed out while it was held.
  const { signal } = lock;
  const throws = (fn: () => void) => {
    try {
      fn();
      return false;
    } catch {
      return true;
    }
  };
  return {
    isAcquired: () => lock.isAcquired(),
    remainingMs: () => lock.remainingMs > 0,
    aborted: () => !signal.aborted,
    reason: () => signal.reason === undefined,
    assertHeld: () => !throws(() => lock.assertHeld()),
    throwIfAborted: () => !throws(() => signal.throwIfAborted()),
  };
}

/** Looks again and again until it is lost, and tells when it last was not. */
async function watch(lock: DistributedLock, by: string): Promise<void> {
  const looks = looksAt(lock);
  const isHeld = looks[by];
  say({ type: `held, ${by}` });
  let lastHeld = 0;
  for (let at = Date.now(); isHeld(); at = Date.now()) {
    lastHeld = at;
    await pause(1);
  }
  tell(lock, by, looks, lastHeld);
}

/** Does nothing but one thing until the other process says a word. */
async function block(lock: DistributedLock, by: string): Promise<void> {
  const looks = looksAt(lock);
  // The first lease is over then, and no renewal is under way.
  await until("it was renewed", () => renewals >= 4);
  say({ type: "blocked", isAcquired: lock.isAcquired() });
  // Said and sent, long before the next renewal is due.
  await pause(20);
  for (const word = Buffer.alloc(1);;) {
    try {
      if (readSync(0, word) > 0) break;
    } catch {
      // EAGAIN: nothing there yet.
      stall(5);
    }
  }
  looks[by]();
  tell(lock, by, looks, 0);
}

function tell(
  lock: DistributedLock,
  by: string,
  looks: Record<string, () => boolean>,
  lastHeld: number,
): void {
  const stillHeld = Object.keys(looks).filter((look) => looks[look]());
  const reason: unknown = lock.signal.reason;
  say({
    type: `lost, ${by}`,
    lastHeld,
    stillHeld,
    reason: reason instanceof LockLostError ? reason.reason : String(reason),
  });
}

/** Holds a lock of its own for one way to look at it. */
async function hold(by: string): Promise<void> {
  const own = `${key}:${by}`;
  if (what === "keep") {
    const options = { ttl: Number(ttl), autoExtend: true };
    return await watch(await acquireLock(opened.client, own, options), by);
  }
  const fn = what === "block" ? block : watch;
  const on = what === "block" ? observed : opened.client;
  const error = await withLock(on, own, (lock) => fn(lock, by), {
    ttl: Number(ttl),
  }).catch((error) => error);
  say({ type: `ended, ${by}`, name: error?.name, reason: error?.reason });
}

await Promise.all(list.split(",").map(hold));
// With its client closed the process ends by itself: nothing of ours is left.
await opened.close();
