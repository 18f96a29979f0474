/** Words of a server that come late or never, to a hold that is kept. */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  LockBackendError,
  LockError,
  LockReplicationError,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

/** A backend that does with `name` what `instead` says, by its number. */
function changed<Name extends "extend" | "inquire">(
  on: Backend,
  name: Name,
  instead: (nth: number) => Promise<never> | undefined,
): Backend {
  let nth = 0;
  return new Proxy(on, {
    get(target, member) {
      const value = Reflect.get(target, member);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        const answer = member === name ? instead(++nth) : undefined;
        return answer ?? value.apply(target, args);
      };
    },
  });
}

/** A backend that has other functions by these names. */
function changedMany(on: Backend, others: Record<string, unknown>): Backend {
  return new Proxy(on, {
    get(target, name) {
      const value = others[String(name)] ?? Reflect.get(target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

const never = () => new Promise<never>(() => {});
const silence = () =>
  Promise.reject(new LockBackendError("k", "Cannot ask: no answer"));

test("one lost renewal does not lose a lock that was extended for long", async () => {
  for (const lost of [never, silence]) {
    const clock = new FakeClock();
    const on = changed(
      memory({ clock }),
      "extend",
      (nth) => nth === 2 ? lost() : undefined,
    );
    const lock = await acquireLock(on, "k", { ttl: 1, autoExtend: true });
    await lock.extend(12);
    await clock.advance(60_000);
    assert(lock.isAcquired());
    await lock.release();
  }
});

test("a long extension is not cut short because others are renewed", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const options = { ttl: 1, autoExtend: true };
  const other = await acquireLock(on, "other", options);
  const lock = await acquireLock(on, "k", options);
  await lock.extend(12);
  await clock.advance(9_000);
  assert(lock.remainingMs > 2_000, `${lock.remainingMs} ms`);
  await Promise.all([lock.release(), other.release()]);
});

test("an extension by hand goes past a renewal without an answer", async () => {
  const clock = new FakeClock();
  const on = changed(
    memory({ clock }),
    "extend",
    (nth) => nth === 1 ? never() : undefined,
  );
  const lock = await acquireLock(on, "k", { ttl: 2, autoExtend: true });
  await clock.advance(3_000);
  let isExtended = false;
  const extending = lock.extend(2).then(() => isExtended = true);
  await clock.advance(350);
  assert(isExtended, "it waits for what may never come");
  await extending;
  assert(lock.isAcquired());
  await lock.release();
});

test("an extension without an answer may cut short a later one, and is counted with", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let arrive = () => {};
  let times = 0;
  const on = changedMany(world, {
    extend(...args: Parameters<Backend["extend"]>) {
      if (++times > 1) return world.extend(...args);
      // Given up by the client, and still on its way.
      arrive = () => void world.extend(...args);
      const error = new LockBackendError("k", "Command timed out");
      return Promise.resolve([error]);
    },
  });
  const options = { ttl: 3, waitMs: 9_000 };
  const lock = await acquireLock(on, "k", options);
  await assertRejects(() => lock.extend(), LockBackendError);
  await lock.extend(60);
  assert(lock.remainingMs <= 3_000, `${lock.remainingMs} ms`);
  assertThrows(() => lock.toJSON(), LockError, "without an answer");
  const next = acquireLock(on, "k", options);
  await clock.advance(2_000);
  arrive();
  await clock.advance(1_500);
  assertEquals(lock.isAcquired(), false);
  await clock.advance(2_000);
  (await next).assertHeld();
});

for (const ttl of [undefined, 3]) {
  const what = ttl === undefined ? "" : " to less";
  test(`an extension by hand${what} without an answer ends no renewal`, async () => {
    const clock = new FakeClock();
    const on = changed(
      memory({ clock }),
      "extend",
      (nth) => nth === 1 ? never() : undefined,
    );
    const lock = await acquireLock(on, "k", { ttl: 12, autoExtend: true });
    const extending = lock.extend(ttl).catch(() => {});
    await clock.advance(60_000);
    assert(lock.isAcquired());
    await lock.release();
    await extending;
  });
}

test("an extension that was answered late cuts short no later one", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let times = 0;
  const on = changedMany(world, {
    async extend(...args: Parameters<Backend["extend"]>) {
      const answer = await world.extend(...args);
      if (++times > 1) return answer;
      await new Promise<void>((go) => clock.setTimer(go, 500));
      return answer;
    },
  });
  const lock = await acquireLock(on, "k", { ttl: 10 });
  const extending = lock.extend(1);
  await clock.advance(500);
  await extending;
  await lock.extend(60);
  assert(lock.remainingMs > 59_000, `${lock.remainingMs} ms`);
  lock.toJSON();
});

for (const how of ["given up", "released"] as const) {
  test(`an extension of what was ${how} meanwhile is not sent any more`, async () => {
    const clock = new FakeClock();
    const world = memory({ clock });
    const sent: number[] = [];
    let answer = () => {};
    const on = changedMany(world, {
      async extend(...args: Parameters<Backend["extend"]>) {
        sent.push(args[0][0].ttlMs);
        if (sent.length === 1) {
          await new Promise<void>((resolve) => answer = resolve);
        }
        return await world.extend(...args);
      },
    });
    const lock = await acquireLock(on, "k", { ttl: 12, autoExtend: true });
    const first = lock.extend().catch(() => {});
    const second = lock.extend(60).catch((error) => error);
    if (how === "given up") {
      await clock.advance(12_000);
      assertInstanceOf(await second, LockBackendError);
      assert(lock.isAcquired());
    } else await lock.release();
    answer();
    await settle();
    await first;
    assertEquals(sent.includes(60_000), false);
    await lock.release();
    await clock.advance(12_000);
    assertInstanceOf(await second, LockError);
  });
}

for (const reply of [undefined, "LOADING", "READONLY"]) {
  const what = reply === undefined ? "is silent" : `answers ${reply}`;
  test(`two clocks in doubt outlast a server that ${what}`, async () => {
    const clock = new FakeClock();
    const error = new LockBackendError("k", "Cannot ask", undefined, reply);
    const on = changed(
      memory({ clock }),
      "inquire",
      (nth) => nth < 4 ? Promise.reject(error) : undefined,
    );
    const lock = await acquireLock(on, "k", { ttl: 10 });
    clock.stepWall(3_600_000);
    assertEquals(lock.isAcquired(), false, "in doubt");
    await clock.advance(1_000);
    assert(lock.isAcquired());
    await lock.release();
  });
}

test("two clocks stay in doubt while a lease is being cut short", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let arrive = () => {};
  const on = changedMany(world, {
    async extend(...args: Parameters<Backend["extend"]>) {
      await new Promise<void>((resolve) => arrive = resolve);
      return await world.extend(...args);
    },
  });
  const lock = await acquireLock(on, "k", { ttl: 10 });
  const extending = lock.extend(1);
  await settle();
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false, "in doubt");
  await settle();
  // What the server would say by now is not what it will keep.
  assertEquals(lock.isAcquired(), false, "known");
  arrive();
  await extending.catch(() => {});
  await settle();
  assert(lock.isAcquired());
  await clock.advance(1_000);
  assertEquals(lock.isAcquired(), false);
  await lock.release();
});

test("what the server said of two clocks is no news once the lease was renewed", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let answer = () => {};
  const on = changedMany(world, {
    async inquire(...args: Parameters<Backend["inquire"]>) {
      const standing = await world.inquire(...args);
      await new Promise<void>((resolve) => answer = resolve);
      return standing;
    },
  });
  const lock = await acquireLock(on, "k", { ttl: 10, autoExtend: true });
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false, "in doubt");
  await clock.advance(4_000);
  assert(lock.isAcquired(), "renewed");
  await lock.extend(1);
  answer();
  await settle();
  assert(lock.remainingMs < 1_000, `${lock.remainingMs} ms`);
  await lock.release();
});

test("maxHoldMs counts from when all of several keys are held", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const before = await acquireLock(on, "b", { ttl: 10 });
  const taking = acquireLock(on, ["a", "b"], {
    ...{ ttl: 10, waitMs: 5_000, maxHoldMs: 300 },
  });
  await settle();
  await clock.advance(1_000);
  await before.release();
  const lock = await taking;
  assert(lock.remainingMs > 250, `${lock.remainingMs} ms`);
  await clock.advance(300);
  assertEquals(lock.isAcquired(), false);
  await lock.release();
});

test("what ended the waiting says nothing of another try by hand", async () => {
  const call = new AbortController();
  const lock = await acquireLock(memory(), "k", { signal: call.signal });
  await lock.release();
  call.abort(new Error("too late"));
  assertEquals(await lock.acquire(), true);
  await lock.release();
});

test("several keys without tokens have none, and can be gone on with", async () => {
  const on = memory();
  const lock = await acquireLock(on, ["a", "b"]);
  assertEquals(lock.fencingToken, undefined);
  const again = await DistributedLock.resume(on, JSON.stringify(lock));
  assertEquals(await again.release(), true);
});

test("what was gone before its replicas had it is passed on to nobody", async () => {
  const world = memory();
  let isGone = false;
  const on = changedMany(world, {
    async confirm([{ key, owner }]: { key: string; owner: string }[]) {
      if (isGone) return 1;
      isGone = true;
      await world.release({ key, owner });
      await world.tryAcquire({ key, owner: "theirs", ttlMs: 60_000 });
      return "taken";
    },
  });
  const before = await acquireLock(world, "k");
  const options = { waitMs: 200, replicas: 1 };
  const one = acquireLock(on, "k", options);
  const next = acquireLock(on, "k", { ...options, throwOnFail: false });
  await settle();
  await before.release();
  await assertRejects(() => one, LockBackendError, "gone before its replicas");
  assertEquals(await next, null, "two holders");
});

test("who is called off as replicas are asked is told so at once", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  const asked: number[] = [];
  const on = changedMany(world, {
    confirm: (_claims: unknown, _replicas: number, ms: number) => {
      asked.push(ms);
      return asked.length < 12
        ? new Promise((go) => clock.setTimer(() => go(0), ms))
        : never();
    },
    release: never,
  });
  const call = new AbortController();
  const options = { ttl: 60, waitMs: 30_000, replicas: 1 };
  const { signal } = call;
  let outcome: unknown;
  void acquireLock(on, "k", { ...options, signal }).catch((error) =>
    outcome = error
  );
  await clock.advance(6_000);
  assertEquals(asked.length, 12);
  // Everybody else on the connection waits for as long.
  assert(Math.max(...asked) <= 320, `${asked}`);
  const stop = new Error("stop");
  call.abort(stop);
  await clock.advance(20);
  assertEquals(outcome, stop);
});

for (
  const [ttl, waitMs, limitMs] of [
    [60, 0, 1_000],
    [60, 300, 1_000],
    [60, 5_000, 5_000],
    [3, 5_000, 1_000],
    [1.5, 0, 500],
  ]
) {
  test(`replicas have ${limitMs} ms to confirm a lock of ${ttl} s, with a patience of ${waitMs}`, async () => {
    const clock = new FakeClock();
    const confirmed = [0, 1];
    const on = changedMany(memory({ clock }), {
      confirm: () => Promise.resolve(confirmed.shift() ?? 0),
    });
    let outcome: unknown;
    void acquireLock(on, "k", { ttl, waitMs, replicas: 2 })
      .catch((error) => outcome = error);
    await clock.advance(limitMs - 1);
    assertEquals(outcome, undefined);
    await clock.advance(1);
    assertInstanceOf(outcome, LockReplicationError);
    assertEquals(outcome.confirmed, 1, "the most there were");
    assertEquals((await on.inspect!("k")).owner, undefined);
  });
}

test("replicas are asked again after a failure that passes, and no other", async () => {
  for (const reply of ["READONLY", undefined, "NOPERM"]) {
    const clock = new FakeClock();
    const error = new LockBackendError("k", "Cannot ask", undefined, reply);
    let asked = 0;
    const on = changedMany(memory({ clock }), {
      confirm: () => ++asked > 1 ? Promise.resolve(1) : Promise.reject(error),
    });
    const acquiring = acquireLock(on, "k", { replicas: 1 })
      .catch((error) => error);
    await clock.advance(100);
    const outcome = await acquiring;
    if (reply === "NOPERM") {
      assertEquals(outcome, error);
      assertEquals((await on.inspect!("k")).owner, undefined);
    } else {
      assertInstanceOf(outcome, DistributedLock);
      await outcome.release();
    }
  }
});

test("what replicas do not confirm is told in time, though the server says no more", async () => {
  const clock = new FakeClock();
  const on = changedMany(memory({ clock }), { confirm: never, release: never });
  let outcome: unknown;
  void acquireLock(on, "k", { ttl: 60, replicas: 1 }).catch((error) =>
    outcome = error
  );
  await clock.advance(2_050);
  assertInstanceOf(outcome, LockReplicationError);
});

test("patience for several keys ends also in their last step", async () => {
  for (const isCalledOff of [true, false]) {
    const clock = new FakeClock();
    const world = memory({ clock });
    let isSilent = false;
    const on = changed(world, "extend", () => isSilent ? never() : undefined);
    const holder = await acquireLock(world, "b", { ttl: 60 });
    const call = new AbortController();
    const options = { ttl: 30, waitMs: 1_000, signal: call.signal };
    let outcome: unknown;
    void acquireLock(on, ["a", "b"], options).catch((error) => outcome = error);
    await clock.advance(500);
    isSilent = true;
    await holder.release();
    await clock.advance(200);
    const stop = new Error("stop");
    if (isCalledOff) call.abort(stop);
    await clock.advance(isCalledOff ? 20 : 340);
    if (isCalledOff) assertEquals(outcome, stop);
    else assertInstanceOf(outcome, LockBackendError);
  }
});

test("a lock that is over asks no more which of two clocks is right", async () => {
  for (const how of ["lost", "released"]) {
    const clock = new FakeClock();
    let asked = 0;
    const on = changed(memory({ clock }), "inquire", () => {
      asked++;
      return silence();
    });
    const lock = await acquireLock(on, "k", { ttl: 10 });
    clock.stepWall(3_600_000);
    assertEquals(lock.isAcquired(), false, "in doubt");
    await clock.advance(500);
    if (how === "released") await lock.release();
    await clock.advance(20_000);
    const sofar = asked;
    await clock.advance(200_000);
    assertEquals([asked, clock.pending], [sofar, 0], how);
    await lock.release();
  }
});

test("a lock that was released while the server was asked asks no more", async () => {
  const clock = new FakeClock();
  let asked = 0;
  let fail = (_: LockBackendError) => {};
  const on = changed(memory({ clock }), "inquire", () => {
    asked++;
    return new Promise((_, reject) => fail = reject);
  });
  const lock = await acquireLock(on, "k", { ttl: 10 });
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false, "in doubt");
  await settle();
  await lock.release();
  fail(new LockBackendError("k", "Cannot ask: no answer"));
  await clock.advance(60_000);
  assertEquals([asked, clock.pending], [1, 0]);
});

test("no late answer has a lock renewed that was released in doubt", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let answer = () => {};
  const on = changedMany(world, {
    inquire: never,
    async extend(...args: Parameters<Backend["extend"]>) {
      const verdicts = await world.extend(...args);
      await new Promise<void>((resolve) => answer = resolve);
      return verdicts;
    },
  });
  const lock = await acquireLock(on, "k", { ttl: 12, autoExtend: true });
  await clock.advance(4_000);
  clock.stepWall(3_600_000);
  assertEquals(lock.isAcquired(), false, "in doubt");
  assertEquals(await lock.release(), true);
  answer();
  await clock.advance(60_000);
  assertEquals(clock.pending, 0);
});

test("an extension by hand comes through however slow the server is", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  const on = new Proxy(world, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      if (name !== "extend") return value.bind(target);
      return async (...args: unknown[]) => {
        await new Promise<void>((go) => clock.setTimer(go, 75));
        const answer = await value.apply(target, args);
        await new Promise<void>((go) => clock.setTimer(go, 75));
        return answer;
      };
    },
  });
  const lock = await acquireLock(on, "k", { ttl: 0.6, autoExtend: true });
  await clock.advance(1_000);
  for (let times = 0; times < 3; times++) {
    const extending = lock.extend();
    await clock.advance(500);
    await extending;
  }
  assert(lock.isAcquired());
  await lock.release();
});
