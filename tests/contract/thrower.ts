/** The second process of `event_memory_test.ts`: its observer always throws. */
import { subscribe } from "node:diagnostics_channel";
import process from "node:process";

import { acquireLock, type LockEvent, withLock } from "@dreamer/utils/lock";
import { diagnostics, lockChannels } from "@dreamer/utils/lock/diagnostics";
import { memory } from "@dreamer/utils/lock/memory";
import { args, say } from "../support/child.ts";

const [by, how] = args;
const types: string[] = [];
const uncaught: string[] = [];

function observe({ type }: LockEvent): void {
  types.push(type);
  throw new Error(`bad: ${type}`);
}

if (how === "catch") {
  process.on("uncaughtException", (error) => void uncaught.push(error.message));
}
if (by === "subscriber") {
  for (const name of Object.values(lockChannels)) {
    subscribe(name, (message) => observe(message as LockEvent));
  }
}
const here = memory({ onEvent: by === "onEvent" ? observe : diagnostics() });

const result = await withLock(here, "report", async (lock) => {
  await lock.extend();
  return "fn's value";
});
const lock = await acquireLock(here, "report", { ttl: 0.05 });
await acquireLock(here, "report", { throwOnFail: false });
await new Promise((done) => setTimeout(done, 100));
if (lock.isAcquired() || !lock.signal.aborted) throw new Error("not lost");
say({ type: "done", types, uncaught, result });
