/** From a wish to a hold, where the answer is late or nobody wants it any more. */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  forceRelease,
  LockBackendError,
  type LockEvent,
  LockLostError,
  LockNotAcquiredError,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

/** A backend that keeps its answers back until it is told to give them. */
function open() {
  const clock = new FakeClock();
  const on = memory({ clock });
  const ask = on.tryAcquire.bind(on);
  let answer = () => {};
  on.tryAcquire = async (claim) => {
    const granted = await ask(claim);
    await new Promise<void>((resolve) => answer = resolve);
    return granted;
  };
  /** Whether anybody has the key. */
  const isTaken = async () => (await on.inspect!("k")).owner !== undefined;
  return { clock, on, isTaken, answer: () => answer() };
}

test("a grant that took longer than the lease is none, and is given back", async () => {
  const { clock, on, isTaken, answer } = open();
  const late = acquireLock(on, "k", { ttl: 10 });
  await settle();
  // Less than the server's ttl, and more than can be known to be left of it.
  clock.stall(9_900);
  assert(await isTaken());
  answer();
  const error = await assertRejects(() => late, LockBackendError);
  assertEquals(
    error.message,
    'Cannot acquire "k": the answer took 9900 ms, longer than the lease',
  );
  assertEquals(await isTaken(), false);
});

test("several keys granted for longer than the lease took are all given back", async () => {
  const clock = new FakeClock();
  const on: Backend = memory({ clock });
  const ask = on.tryAcquireAll!.bind(on);
  let answer = () => {};
  on.tryAcquireAll = async (...args) => {
    const granted = await ask(...args);
    await new Promise<void>((resolve) => answer = resolve);
    return granted;
  };
  const keys = ["a", "b", "c"];
  const late = acquireLock(on, keys, { ttl: 10 });
  await settle();
  clock.stall(9_900);
  answer();
  await assertRejects(() => late, LockBackendError);
  for (const key of keys) {
    assertEquals((await on.inspect!(key)).owner, undefined, key);
  }
});

test("an abort ends the wait for an answer, and what it granted is given back", async () => {
  const { on, isTaken, answer } = open();
  const controller = new AbortController();
  const { signal } = controller;
  const aborted = acquireLock(on, "k", { signal });
  await settle();
  const reason = new Error("no more");
  controller.abort(reason);
  assertStrictEquals(await aborted.catch((error) => error), reason);
  assert(await isTaken());
  answer();
  await settle();
  assertEquals(await isTaken(), false);
});

for (let turn = 0; turn < 12; turn++) {
  test(`an abort ${turn} microtasks after the answer keeps handle and key together`, async () => {
    const { on, isTaken, answer } = open();
    const controller = new AbortController();
    const granted = acquireLock(on, "k", { signal: controller.signal });
    await settle();
    answer();
    for (let i = 0; i < turn; i++) await null;
    controller.abort();
    const lock = await granted.catch(() => null);
    await settle();
    assertEquals(await isTaken(), lock !== null);
  });
}

test("several keys of which one could not be freed are freed by the next release", async () => {
  const on: Backend = memory({ clock: new FakeClock() });
  const { release } = on;
  const keys = ["a", "b", "c"];
  const lock = await acquireLock(on, keys);
  on.release = (hold) =>
    hold.key === "b"
      ? Promise.reject(new LockBackendError("b", "no answer"))
      : release.call(on, hold);
  await assertRejects(() => lock.release(), LockBackendError);
  on.release = release;
  // Nobody was told of the others yet, and all of them were ours to the end.
  assertEquals(await lock.release(), true);
  assertEquals(await lock.release(), false);
  const again = await acquireLock(on, keys, { throwOnFail: false });
  assertEquals(await again?.release(), true);
});

test("what nobody said anything about is as the documents have it", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const lock = await acquireLock(on, "k");
  assertEquals(lock.remainingMs, 30_000 * 0.99 - 2);
  // Sixteen of one process, then whoever came after the first of them.
  const order: string[] = [];
  const come = async (label: string) => {
    const lock = await acquireLock(on, "k", { waitMs: Infinity, label });
    order.push(label);
    await lock.release();
  };
  const all = Array.from({ length: 20 }, () => come("many"));
  await settle();
  all.push(come("one"));
  await settle();
  await lock.release();
  await clock.advance(1_000);
  await Promise.all(all);
  assertEquals(order.indexOf("one"), 16);
});

test("several keys are acquired again as one, or none of them is", async () => {
  const clock = new FakeClock();
  const on: Backend = memory({ clock });
  const lock = await acquireLock(on, ["a", "b"], { ttl: 10 });
  const { signal } = lock;
  await forceRelease(on, "b");
  await assertRejects(() => lock.extend(), LockLostError);
  assert(signal.aborted);
  const other = await acquireLock(on, "b", { ttl: 60 });
  assertEquals(await lock.acquire(), false);
  assertEquals((await on.inspect!("a")).owner, undefined, "left behind");
  await other.release();
  assertEquals(await lock.acquire(), true);
  assertEquals(lock.signal.aborted, false, "that was the hold before");
  await lock.release();
  // Each takes its time: the first is over when the last is there.
  const { tryAcquire } = on;
  on.tryAcquire = async (...args) => {
    const answer = await tryAcquire.apply(on, args);
    clock.stall(5_000);
    return answer;
  };
  await assertRejects(() => lock.acquire(), LockLostError);
  await settle();
  for (const key of ["a", "b"]) {
    assertEquals((await on.inspect!(key)).owner, undefined, key);
  }
});

test("of several keys that can't be resumed all are freed", async () => {
  const on = memory({ clock: new FakeClock() });
  const json = (await acquireLock(on, ["a", "b", "c"])).toJSON();
  await forceRelease(on, "b");
  await assertRejects(() => DistributedLock.resume(on, json), LockLostError);
  for (const key of ["a", "c"]) {
    assertEquals((await on.inspect!(key)).owner, undefined, key);
  }
});

test("of several keys those at hand are kept while another is waited for", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "b", { ttl: 60 });
  const taking = acquireLock(on, ["a", "b"], { ttl: 2, waitMs: 60_000 });
  await clock.advance(10_000);
  await holder.release();
  const lock = await taking;
  assert(lock.isAcquired());
  // From here on by nobody, as nobody said so.
  await clock.advance(2_000);
  assertEquals(lock.isAcquired(), false);
  assertEquals(clock.pending, 0);
});

test("of several keys none is kept where patience ends, by error or null", async () => {
  for (const throwOnFail of [true, false]) {
    const clock = new FakeClock();
    const on = memory({ clock });
    await acquireLock(on, "b", { ttl: 60 });
    const options = { ttl: 2, waitMs: 500, throwOnFail };
    const taking = acquireLock(on, ["a", "b"], options).catch((error) => error);
    await clock.advance(1_000);
    const outcome = await taking;
    if (throwOnFail) assertInstanceOf(outcome, LockNotAcquiredError);
    else assertStrictEquals(outcome, null);
    assertEquals((await on.inspect!("a")).owner, undefined);
    assertEquals(clock.pending, 0);
  }
});

test("a server that says no more of several keys once they are taken leaves it at that", async () => {
  const clock = new FakeClock();
  const on: Backend = memory({ clock });
  await acquireLock(on, "b", { ttl: 60 });
  const never = () => new Promise<never>(() => {});
  on.tryAcquire = never;
  on.line!.stand = never;
  const options = { waitMs: 300, throwOnFail: false };
  let outcome: unknown;
  void acquireLock(on, ["a", "b"], options).then(
    (lock) => outcome = lock,
    (error) => outcome = error,
  );
  await clock.advance(1_000);
  assertStrictEquals(outcome, null);
});

test("several keys of which one is lost while another is waited for are none", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "b", { ttl: 60 });
  const options = { ttl: 2, waitMs: 60_000, autoExtend: true };
  const taking = assertRejects(
    () => acquireLock(on, ["a", "b"], options),
    LockLostError,
  );
  await clock.advance(500);
  await forceRelease(on, "a");
  await clock.advance(1_000);
  await holder.release();
  await clock.advance(1_000);
  await taking;
  assertEquals((await on.inspect!("b")).owner, undefined);
});

/** A lock whose releases are done when they are told to arrive. */
async function slowlyReleased() {
  const clock = new FakeClock();
  const on: Backend = memory({ clock });
  const { release } = on;
  const arrive: (() => void)[] = [];
  on.release = async (hold) => {
    await new Promise<void>((resolve) => arrive.push(resolve));
    return await release.call(on, hold);
  };
  const lock = new DistributedLock(on, "k", "o", 10);
  assert(await lock.acquire());
  const ownerNow = async () => (await on.inspect!("k")).owner;
  return { clock, on, lock, ownerNow, arrive: () => arrive.shift()?.() };
}

test("a lock is acquired again only once its release has arrived", async () => {
  const { lock, ownerNow, arrive } = await slowlyReleased();
  const releasing = lock.release();
  const acquiring = lock.acquire();
  await settle();
  assertEquals(lock.isAcquired(), false);
  arrive();
  assertEquals([await releasing, await acquiring], [true, true]);
  assert(lock.isAcquired());
  assertEquals(await ownerNow(), "o");
});

test("what is acquired after the end of its block is given back", async () => {
  const { clock, on, lock: before, ownerNow, arrive } = await slowlyReleased();
  const freed = before.release();
  arrive();
  await freed;
  // Each hold of this one has an owner of its own.
  const lock = await acquireLock(on, "k", { ttl: 10 });
  const releasing = lock.release();
  const acquiring = lock.acquire();
  let isOver = false;
  void lock[Symbol.asyncDispose]().then(() => isOver = true);
  for (let ms = 0; !isOver; ms += 1_000) {
    assert(ms <= 20_000, "waited for without end");
    await clock.advance(1_000);
  }
  arrive();
  await releasing;
  assertEquals(await acquiring, true);
  for (let times = 0; times < 3; times++) {
    arrive();
    await settle();
  }
  assertEquals(await ownerNow(), undefined);
});

test("a release tries again where one that was under way fails", async () => {
  const on: Backend = memory({ clock: new FakeClock() });
  const { release } = on;
  const lock = await acquireLock(on, "k");
  on.release = () => {
    on.release = release;
    return Promise.reject(new LockBackendError("k", "no answer"));
  };
  const [first, second] = await Promise.allSettled([
    lock.release(),
    lock.release(),
  ]);
  assertEquals(first.status, "rejected");
  assertEquals(second, { status: "fulfilled", value: true });
});

test("a release that was done and not answered makes no loss of the next", async () => {
  const told: string[] = [];
  const onEvent = ({ type }: LockEvent) => void told.push(type);
  const on: Backend = memory({ clock: new FakeClock(), onEvent });
  const { release } = on;
  const lock = await acquireLock(on, "k");
  on.release = async (hold) => {
    on.release = release;
    await release.call(on, hold);
    throw new LockBackendError("k", "no answer");
  };
  await assertRejects(() => lock.release(), LockBackendError);
  assertEquals(await lock.release(), false);
  assertEquals(told.includes("lost"), false, told.join());
});

test("a lock lost to a silent server is told at once, and freed in the background", async () => {
  const clock = new FakeClock();
  const on: Backend = memory({ clock });
  const never = () => new Promise<never>(() => {});
  let freed = 0;
  Object.assign(on, { extend: never, release: never });
  on.discard = () => void freed++;
  let outcome: unknown;
  void withLock(on, "k", async (lock) => {
    await new Promise((go) => lock.signal.addEventListener("abort", go));
  }, { ttl: 10 }).catch((error) => outcome = error);
  await clock.advance(10_000);
  assertInstanceOf(outcome, LockLostError);
  assertEquals([outcome.reason, freed], ["unreachable", 1]);
});

test("what is handed over may be held for what is left of maxHoldMs", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const options = { autoExtend: true, maxHoldMs: 10_000 };
  const lock = await acquireLock(on, "k", options);
  await clock.advance(4_000);
  const resumed = await DistributedLock.resume(on, lock.toJSON());
  await clock.advance(5_999);
  assert(resumed.isAcquired());
  await clock.advance(1);
  assertEquals(resumed.isAcquired(), false);
  await resumed.release();
});
