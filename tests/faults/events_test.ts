/**
 * What an observer was not told, or told wrongly: stories of events that came
 * after the end, before the beginning, or not at all.
 */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  LockBackendError,
  type LockEvent,
  LockLostError,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock, settle } from "../support/fake_clock.ts";
import { test } from "../support/test.ts";

/** Memory on a clock of our own, and what was told of its locks. */
function open() {
  const clock = new FakeClock();
  const events: LockEvent[] = [];
  const on: Backend = memory({ clock, onEvent: (event) => events.push(event) });
  const types = () => events.map((event) => event.type);
  return { clock, on, events, types };
}

/** From now on `name` answers only once it is let. */
function held(on: Backend, name: "extend" | "inquire" | "tryAcquire") {
  const ask = on[name] as (what: unknown) => Promise<unknown>;
  let answer = () => {};
  const gate = new Promise<void>((done) => answer = done);
  // What is asked is done at once; it is the reply that takes its time.
  Object.assign(on, {
    [name]: async (what: unknown) => {
      const answered = await ask.call(on, what);
      await gate;
      return answered;
    },
  });
  return () => answer();
}

test("a lock released while in doubt is renewed no more, nor told of", async () => {
  const { clock, on, types } = open();
  const options = { ttl: 30, autoExtend: true };
  const lock = await acquireLock(on, "k", options);
  const inquired = held(on, "inquire");
  const extended = held(on, "extend");
  // A renewal is on its way when somebody sets the wall clock …
  await clock.advance(10_000);
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false);
  // … and the lock is released before either has been answered.
  await lock.release();
  assertEquals(types(), ["acquired", "released"]);
  extended();
  inquired();
  await settle();
  assertEquals(types(), ["acquired", "released"]);
  assertEquals(clock.pending, 0, "renewed on and on");
});

test("a lock lost while in doubt is renewed no more, nor told of", async () => {
  const { clock, on, types } = open();
  const lock = await acquireLock(on, "k", { ttl: 30, autoExtend: true });
  held(on, "inquire");
  const extended = held(on, "extend");
  await clock.advance(10_000);
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false);
  await clock.advance(30_000);
  assertEquals(types(), ["acquired", "lost"]);
  extended();
  await settle();
  assertEquals(types(), ["acquired", "lost"]);
  assertEquals(clock.pending, 0);
});

for (const [how, reason] of [["taken", "taken"], ["deleted", "deleted"]]) {
  const others = async (on: Backend, { key, owner }: DistributedLock) => {
    await on.release({ key, owner });
    if (how === "deleted") return;
    await on.tryAcquire({ key, owner: "somebody-else", ttlMs: 20_000 });
  };

  test(`withLock() that finds the lock ${how} at its end tells of it`, async () => {
    const { on, events, types } = open();
    const error = await assertRejects(
      () => withLock(on, "k", (lock) => others(on, lock)),
      LockLostError,
    );
    assertEquals(types(), ["acquired", "lost"]);
    assert(events[1].type === "lost");
    assertEquals([events[1].reason, events[1].error], [reason, error]);
  });

  test(`release() that finds the lock ${how} tells of it`, async () => {
    const { on, events, types } = open();
    const lock = await acquireLock(on, "k");
    await others(on, lock);
    assertEquals(await lock.release(), false);
    assertEquals(types(), ["acquired", "lost"]);
    assert(events[1].type === "lost");
    assertEquals(events[1].reason, reason);
  });
}

test("acquire() tells of a hold as acquireLock() does", async () => {
  const { on, types } = open();
  const lock = new DistributedLock(on, "k", "my-own-value", 10);
  const rival = new DistributedLock(on, "k", "another-value", 10);
  assertEquals(await lock.acquire(), true);
  assertEquals(await rival.acquire(), false);
  assertEquals(await lock.release(), true);
  assertEquals(types(), ["acquired", "refused", "released"]);
  // And as often as there is a new hold, not a new look.
  await lock.acquire();
  await lock.acquire();
  assertEquals(types().slice(3), ["acquired"]);
  await lock.release();
});

test("a hold that is over when it is granted: acquired, then lost", async () => {
  const { clock, on, events, types } = open();
  const granted = held(on, "tryAcquire");
  const acquiring = acquireLock(on, "k", { ttl: 10, maxHoldMs: 50 });
  await clock.advance(100);
  granted();
  const lock = await acquiring;
  assertEquals(types(), ["acquired", "lost"]);
  assertInstanceOf(lock.signal.reason, LockLostError);
  assert(events[1].type === "lost");
  assertEquals(events[1].reason, "max-hold");
  await lock.release();
});

test("a release whose answer was lost, and the next, tell of no loss", async () => {
  const { on, types } = open();
  const { release } = on;
  const value = await withLock(on, "k", async (lock) => {
    on.release = async (hold) => {
      await release.call(on, hold);
      throw new LockBackendError("k", "the answer was lost");
    };
    await assertRejects(() => lock.release(), LockBackendError);
    on.release = release;
    return "fn's value";
  });
  assertEquals(value, "fn's value");
  assertEquals(types(), ["acquired", "release-failed"]);
});

test("extended is told once for each third of a lease", async () => {
  const { clock, on, events } = open();
  const lock = await acquireLock(on, "k", { ttl: 30, autoExtend: true });
  await clock.advance(65_000);
  assertEquals(events.length - 1, 6);
  await lock.release();
});
