/**
 * The second process of `line_test.ts`, here and in `integration/`: waits for
 * locks, holds and releases them as it is told, and keeps looking at what it
 * holds.
 */
import process from "node:process";

import {
  acquireLock,
  type DistributedLock,
  type LockOptions,
} from "@dreamer/utils/lock";
import { args, lines, say } from "../support/child.ts";
import { clients } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";

/** What it is told, with a name of the teller's for each lock. */
type Order =
  | { do: "acquire"; id: string; key: string; options: LockOptions }
  /** All of them at once, each released as soon as it is held. */
  | { do: "pass"; count: number; key: string; options: LockOptions }
  | { do: "release"; id: string }
  | { do: "close" };

const [kind, ...urls] = args;
const named = ({ name }: { name: string }) => name === kind;
const it = await (clusterClients.find(named)?.open(urls) ??
  clients.find(named)!.open(urls[0]));
const locks = new Map<string, DistributedLock>();
const watching = setInterval(look, 2);
const lastHeld = new Map<string, number>();

/** Looks at all of them: also the first thing after a stall. */
function look(): void {
  for (const [id, lock] of locks) {
    // Read before: the lock is held at that time or later.
    const at = Date.now();
    if (lock.isAcquired()) lastHeld.set(id, at);
    else {
      locks.delete(id);
      say({ type: "lost", id, lastHeld: lastHeld.get(id) ?? 0 });
    }
  }
}

async function acquire(order: Order & { do: "acquire" }): Promise<void> {
  const { id, key, options } = order;
  try {
    const lock = await acquireLock(it.client, key, options);
    if (lock === null) return say({ type: "refused", id });
    say({ type: "held", id, at: Date.now(), fencingToken: lock.fencingToken });
    locks.set(id, lock);
  } catch (error) {
    const { name, message } = error as Error;
    say({ type: "failed", id, name, message });
  }
}

async function pass(order: Order & { do: "pass" }): Promise<void> {
  const { count, key, options } = order;
  const locks: { owner: string; fencingToken: number | undefined }[] = [];
  await Promise.all(Array.from({ length: count }, async () => {
    const lock = await acquireLock(it.client, key, {
      ...options,
      throwOnFail: true,
    });
    locks.push({ owner: lock.owner, fencingToken: lock.fencingToken });
    await lock.release();
  }));
  say({ type: "passed", locks });
}

say({ type: "ready" });
for await (const order of lines<Order>()) {
  if (order.do === "acquire") void acquire(order);
  else if (order.do === "pass") void pass(order);
  else if (order.do === "release") {
    const lock = locks.get(order.id);
    locks.delete(order.id);
    const freed = await lock?.release().catch((error) => String(error));
    say({ type: "released", id: order.id, freed });
  } else {
    clearInterval(watching);
    await it.close();
    say({ type: "closed" });
    break;
  }
}
clearInterval(watching);
// What is read from goes on keeping a process alive.
process.stdin.destroy();
