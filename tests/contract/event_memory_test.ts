/** The contract of events in memory, and what can be seen only there. */
import { assertEquals } from "@std/assert";

import {
  acquireLock,
  type Backend,
  LockBackendError,
  type LockEvent,
} from "@dreamer/utils/lock";
import { memory, type MemoryOptions } from "@dreamer/utils/lock/memory";
import { FakeClock } from "../support/fake_clock.ts";
import { spawnScript } from "../support/process.ts";
import { test } from "../support/test.ts";
import { eventContract } from "./event_contract.ts";

/** Memory that can be out of reach. */
function breakable(options: MemoryOptions) {
  const on = memory(options);
  let isDown = false;
  const guarded = <Args extends unknown[], Answer>(
    ask: (...args: Args) => Promise<Answer>,
  ) =>
  (...args: Args): Promise<Answer> => {
    if (!isDown) return ask.apply(on, args);
    const cause = new Error("connection is closed");
    return Promise.reject(new LockBackendError("?", "no answer", cause));
  };
  on.extend = guarded(on.extend);
  on.release = guarded(on.release);
  // What is tried again until it succeeds, is tried with the server there.
  on.discard = (claim) => {
    const again = () => void on.release(claim).catch(() => setTimeout(again));
    again();
  };
  return { on, fail: (down: boolean) => void (isDown = down) };
}

eventContract("memory", (onEvent) =>
  Promise.resolve({
    ...breakable({ onEvent }),
    pass: (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }));

eventContract("memory, fake clock", (onEvent) => {
  const clock = new FakeClock();
  return Promise.resolve({
    ...breakable({ onEvent, clock }),
    pass: (ms: number) => clock.advance(ms),
    [Symbol.asyncDispose]() {
      assertEquals(clock.pending, 0, "timers left behind");
      return Promise.resolve();
    },
  });
});

/** A lock on a clock that tells how many timers it set. */
async function watched(onEvent?: (event: LockEvent) => void) {
  const clock = new FakeClock();
  const here: Backend = memory({ clock, onEvent });
  return { clock, lock: await acquireLock(here, "k", { ttl: 10 }) };
}

test("a lock that nobody observes sets no timer", async () => {
  const { clock, lock } = await watched();
  assertEquals(clock.pending, 0);
  await lock.extend(20);
  assertEquals(clock.pending, 0);
  await lock.release();
});

test("a lock that is observed sets one timer, and takes it back", async () => {
  const { clock, lock } = await watched(() => {});
  assertEquals([clock.pending, clock.nextInMs], [1, 9_898]);
  await lock.extend(20);
  assertEquals([clock.pending, clock.nextInMs], [1, 19_798]);
  lock.signal;
  assertEquals(clock.pending, 1);
  await lock.release();
  assertEquals(clock.pending, 0);
});

test("a loss is told in the millisecond in which it happens", async () => {
  const events: LockEvent[] = [];
  const { clock } = await watched((event) => void events.push(event));
  await clock.advance(9_897);
  assertEquals(events.length, 1);
  await clock.advance(1);
  assertEquals(events.length, 2);
  const [, lost] = events;
  assertEquals(lost.type === "lost" && lost.heldMs, 9_898);
});

test("after a stall the first look tells of a loss, and no timer again", async () => {
  const types: string[] = [];
  const { clock, lock } = await watched(({ type }) => void types.push(type));
  clock.stall(60_000);
  assertEquals(lock.isAcquired(), false);
  assertEquals(types, ["acquired", "lost"]);
  assertEquals(clock.pending, 0);
  await clock.advance(60_000);
  assertEquals(types, ["acquired", "lost"]);
});

for (const by of ["onEvent", "subscriber"]) {
  const THROWER = new URL("./thrower.ts", import.meta.url);

  test(`${by} that throws breaks no lock and is an uncaught exception`, async () => {
    await using script = spawnScript(THROWER, [by, "catch"]);
    const { types, uncaught, result } = await script.next("done");
    assertEquals(result, "fn's value");
    assertEquals(types, [
      ...["acquired", "extended", "released"],
      ...["acquired", "refused", "lost"],
    ]);
    assertEquals(uncaught, (types as string[]).map((type) => `bad: ${type}`));
    assertEquals(await script.exited, { code: 0, signal: null });
  });

  test(`${by} that throws ends a process that catches nothing`, async () => {
    await using script = spawnScript(THROWER, [by]);
    const { code } = await script.exited;
    assertEquals(code !== 0, true);
    assertEquals(script.stderr.includes("bad: acquired"), true);
  });
}
