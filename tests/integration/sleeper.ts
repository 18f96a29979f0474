/** The second process of `stall_test.ts`: holds a lock, and looks at it. */
import { Buffer } from "node:buffer";
import { readSync } from "node:fs";

import {
  acquireLock,
  type DistributedLock,
  LockLostError,
  withLock,
} from "@dreamer/utils/lock";
import { args, say } from "../support/child.ts";
import { clients } from "../support/clients.ts";

const [what, name, url, key, ttl, by] = args;
const kind = clients.find((kind) => kind.name === name)!;
const opened = await kind.open(url);
const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

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
async function watch(lock: DistributedLock): Promise<void> {
  const looks = looksAt(lock);
  const isHeld = looks[by];
  say({ type: "held" });
  let lastHeld = 0;
  for (let at = Date.now(); isHeld(); at = Date.now()) {
    lastHeld = at;
    await pause(1);
  }
  tell(lock, looks, lastHeld);
}

/** Does nothing but one thing until the other process says a word. */
async function block(lock: DistributedLock): Promise<void> {
  const looks = looksAt(lock);
  say({ type: "held" });
  // Said and sent, and in the middle of its renewals.
  await pause(Number(ttl) * 1000);
  say({ type: "blocked", isAcquired: lock.isAcquired() });
  await pause(20);
  for (const word = Buffer.alloc(1);;) {
    try {
      if (readSync(0, word) > 0) break;
    } catch {
      // EAGAIN: nothing there yet.
    }
  }
  looks[by]();
  tell(lock, looks, 0);
}

function tell(
  lock: DistributedLock,
  looks: Record<string, () => boolean>,
  lastHeld: number,
): void {
  const stillHeld = Object.keys(looks).filter((look) => looks[look]());
  const reason: unknown = lock.signal.reason;
  say({
    type: "lost",
    lastHeld,
    stillHeld,
    reason: reason instanceof LockLostError ? reason.reason : String(reason),
  });
}

if (what === "keep") {
  await watch(
    await acquireLock(opened.client, key, {
      ttl: Number(ttl),
      autoExtend: true,
    }),
  );
} else {
  const fn = what === "block" ? block : watch;
  const error = await withLock(opened.client, key, fn, { ttl: Number(ttl) })
    .catch((error) => error);
  say({ type: "ended", name: error?.name, reason: error?.reason });
}
// With its client closed the process ends by itself: nothing of ours is left.
await opened.close();
