/** Who is called off at a moment that nobody expects, and who observes it. */
import { assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  inspectLock,
  type LockEvent,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { redlock } from "@dreamer/utils/lock/redlock";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test, timersEnd } from "../../support/test.ts";

const stop = new Error("stop");

/** A world of one's own, and what is done when somebody is told of `type`. */
function observed(type: LockEvent["type"]) {
  const clock = new FakeClock();
  const told: string[] = [];
  const it = { clock, told, then: () => {} };
  const onEvent = (event: LockEvent) => {
    told.push(event.type);
    if (event.type === type) it.then();
  };
  return { ...it, on: memory({ clock, onEvent }), set: it };
}

test("an observer that calls off the next in the turn ends the turn", async () => {
  const { clock, on, set } = observed("released");
  const call = new AbortController();
  const options = { ttl: 1, waitMs: 5_000, autoExtend: true };
  let begun = () => {};
  const isInside = new Promise<void>((resolve) => begun = resolve);
  const leave = new AbortController();
  const inside = withLock(on, "k", async () => {
    begun();
    await new Promise((go) => leave.signal.addEventListener("abort", go));
    return "done";
  }, options);
  await isInside;
  const next = acquireLock(on, "k", { ...options, signal: call.signal });
  const outcome = next.catch((error) => error);
  await settle();
  set.then = () => call.abort(stop);
  leave.abort();
  assertEquals(await inside, "done");
  assertEquals(await outcome, stop);
  assertEquals((await inspectLock(on, "k")).held, false);
  await clock.advance(10_000);
  assertEquals(clock.pending, 0, "something is renewed");
});

test("a release whose observer calls off the next is told once, and is one", async () => {
  const { on, set, told, clock } = observed("released");
  const call = new AbortController();
  const first = await acquireLock(on, "k", { ttl: 1, waitMs: 1_000 });
  const next = acquireLock(on, "k", { waitMs: 5_000, signal: call.signal });
  const outcome = next.catch((error) => error);
  await settle();
  set.then = () => {
    call.abort(stop);
    // Nor does it help to ask again from in there.
    void first.release();
  };
  assertEquals(await first.release(), true);
  assertEquals(await outcome, stop);
  assertEquals(told.filter((type) => type === "released").length, 1);
  assertEquals((await inspectLock(on, "k")).held, false);
  await clock.advance(10_000);
  assertEquals(clock.pending, 0);
});

test("an observer that calls off who is told a place leaves no timer", async () => {
  const { clock, on, set } = observed("waiting");
  const call = new AbortController();
  const holder = await acquireLock(on, "k", { ttl: 10 });
  const { pending } = clock;
  set.then = () => call.abort(stop);
  const options = { waitMs: 5_000, localTurns: 0, signal: call.signal };
  assertEquals(await acquireLock(on, "k", options).catch((e) => e), stop);
  await settle();
  // What looked after the first attempt.
  await clock.advance(20);
  assertEquals(clock.pending, pending);
  await holder.release();
});

test("a signal that aborted before grants nothing, whatever is asked for", async () => {
  const on = memory();
  const signal = AbortSignal.abort(stop);
  for (const key of ["a", ["a", "b"]]) {
    for (const waitMs of [0, 1_000, Infinity]) {
      const taking = acquireLock(on, key, { waitMs, signal });
      assertEquals(await taking.catch((error) => error), stop);
    }
  }
  assertEquals((await inspectLock(on, "a")).held, false);
});

test("a signal is heard while it is found out whether there is a line", async () => {
  const double = {
    set: () => Promise.resolve(null),
    get: () => Promise.resolve("another"),
    del: () => Promise.resolve(0),
    eval: () => new Promise(() => {}),
  };
  const call = new AbortController();
  const options = { waitMs: Infinity, signal: call.signal };
  const waiting = assertRejects(() => acquireLock(double, "k", options));
  await settle();
  call.abort(stop);
  assertEquals(await waiting, stop);
  await timersEnd();
});

test("half a character in a label is told as the server would have it", async () => {
  const on = memory();
  await using lock = await acquireLock(on, "half", {
    label: "web \u{1F512}".slice(0, 5),
  });
  assertEquals((await inspectLock(on, lock.key)).label, "web \ufffd");
});

test("little patience is not less than none, also for several keys", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  const taken = await acquireLock(world, "taken", { ttl: 60 });
  // Every answer takes its time.
  const slow = new Proxy(world, {
    get(target, name) {
      const value = Reflect.get(target, name);
      const isAttempt = String(name).startsWith("tryAcquire");
      if (!isAttempt || value === undefined) return value;
      return async (...args: unknown[]) => {
        await new Promise<void>((go) => clock.setTimer(go, 6));
        return value.apply(target, args);
      };
    },
  });
  for (const keys of ["taken", ["other", "taken"]]) {
    for (const waitMs of [0, 1, 3]) {
      const hurry = { waitMs, throwOnFail: false } as const;
      const asking = acquireLock(slow, keys, hurry);
      await clock.advance(100);
      assertEquals(await asking, null);
    }
  }
  await taken.release();
});

test("a signal shared by many has one listener, and none when all is over", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const shutDown = new AbortController();
  const { signal } = shutDown;
  let listeners = 0;
  let most = 0;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: unknown[]) => {
    most = Math.max(most, ++listeners);
    Reflect.apply(addEventListener, signal, args);
  };
  signal.removeEventListener = (...args: unknown[]) => {
    listeners--;
    Reflect.apply(removeEventListener, signal, args);
  };
  const waitAll = (waitMs: number) =>
    Array.from({ length: 12 }, async (_, i) => {
      const options = { waitMs, signal, localTurns: i % 2 };
      const lock = await acquireLock(on, "k", options);
      await lock.release();
    });
  await Promise.all(waitAll(1_000));
  assertEquals([most, listeners], [1, 0]);
  await acquireLock(on, "k", { signal });
  assertEquals([most, listeners], [1, 0]);
  // Several keys at once, or where it is tried again and again.
  await (await acquireLock(on, ["l", "m"], { waitMs: 1_000, signal }))
    .release();
  const quorum = redlock([1, 2, 3].map(() => memory({ clock })));
  await (await acquireLock(quorum, "k", { waitMs: 1_000, signal })).release();
  assertEquals([most, listeners], [1, 0]);
  const outcomes = Promise.allSettled(waitAll(60_000));
  await settle();
  shutDown.abort(stop);
  const reasons = (await outcomes).map((it) =>
    it.status === "rejected" ? it.reason : it
  );
  assertEquals(reasons, Array(12).fill(stop));
  assertEquals(most, 1);
});
