/** A hold that moves is never held twice, nor kept by nobody. */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";

import {
  acquireLock,
  DistributedLock,
  LockError,
  type Verdict,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

test("a lock under an owner of the caller's can't be taken back once handed over", async () => {
  const here = memory();
  const given = new DistributedLock(here, "k", "value", 10);
  await given.acquire();
  const resumed = await DistributedLock.resume(here, given.toJSON());
  await assertRejects(() => given.acquire(), LockError, "handed over");
  assertEquals(await resumed.release(), true);
});

test("a lock is not given away while an extension of it is under way", async () => {
  const here = memory();
  const lock = await acquireLock(here, "k", { ttl: 10 });
  const { extend } = here;
  let arrive = () => {};
  here.extend = async (claims) => {
    await new Promise<void>((resolve) => arrive = resolve);
    return extend.call(here, claims) as Promise<readonly Verdict[]>;
  };
  const extended = lock.extend(0.5);
  await settle();
  assertThrows(() => lock.toJSON(), LockError, "being extended");
  arrive();
  await extended;
  lock.toJSON();
});

test("a lock that can't be resumed for a clock's sake is kept by nobody", async () => {
  const clock = new FakeClock();
  const here = memory({ clock });
  const lock = await acquireLock(here, "k", { ttl: 1, autoExtend: true });
  const json = JSON.stringify(lock);
  const { inquire } = here;
  here.inquire = (hold) => {
    clock.stepWall(5_000);
    return inquire.call(here, hold);
  };
  await assertRejects(() => DistributedLock.resume(here, json), LockError);
  await clock.advance(5_000);
  assertEquals(clock.pending, 0);
  assertEquals((await acquireLock(here, "k")).isAcquired(), true);
});

test("a short lease that is handed over is made a full one there", async () => {
  const clock = new FakeClock();
  const here = memory({ clock });
  const waitMs = 1_000;
  const first = await acquireLock(here, "k", { ttl: 3, waitMs });
  // Passed on inside the process, with what is left of the lease.
  const next = acquireLock(here, "k", { ttl: 10, waitMs });
  await settle();
  await first.release();
  const given = await next;
  assertEquals(given.remainingMs < 3_000, true);
  const lock = await DistributedLock.resume(here, JSON.stringify(given));
  await clock.advance(5_000);
  assertEquals(lock.isAcquired(), true);
  assertEquals(await lock.release(), true);
});
