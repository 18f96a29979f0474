/** Renewal in the background, on a hand-cranked clock. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  type DistributedLock,
  LockBackendError,
  LockLostError,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

const TTL_MS = 12_000;
const TERMS = { ttl: TTL_MS / 1000, autoExtend: true };

/** A server that does as it is told, and remembers when it was asked. */
function open() {
  const clock = new FakeClock();
  const inner = memory({ clock });
  /** When, and for how many holds at once. */
  const renewals: [at: number, holds: number][] = [];
  const server = {
    /** What it does with the next renewals; works again after these. */
    fails: [] as ("rejects" | "hangs" | "loses the reply")[],
    isDead: false,
  };
  const extend = inner.extend.bind(inner);
  inner.extend = async (claims) => {
    renewals.push([clock.now(), claims.length]);
    const how = server.isDead ? "rejects" : server.fails.shift();
    if (how === "hangs") return new Promise(() => {});
    if (how === "loses the reply") await extend(claims);
    if (how !== undefined) {
      throw new LockBackendError(claims[0].key, "the server is away");
    }
    return extend(claims);
  };
  const on: Backend = inner;
  return { clock, on, renewals, server };
}

function whyLost({ signal }: DistributedLock): LockLostError {
  assertInstanceOf(signal.reason, LockLostError);
  return signal.reason;
}

test("a lock is renewed at a third of its lease, for as long as it is held", async () => {
  const { clock, on, renewals } = open();
  const lock = await acquireLock(on, "k", TERMS);
  const { signal } = lock;
  await clock.advance(20 * TTL_MS);
  assertEquals(renewals.length, 60);
  assertEquals(renewals[0], [TTL_MS / 3, 1]);
  assertFalse(signal.aborted);
  assertEquals(await lock.release(), true);
  assertEquals(clock.pending, 0);
  await clock.advance(TTL_MS);
  assertEquals(renewals.length, 60, "renewed after its release");
});

test("acquireLock() renews only if told to, withLock() unless told not to", async () => {
  const { clock, on, renewals } = open();
  const lock = await acquireLock(on, "k", { ttl: 12 });
  await clock.advance(TTL_MS);
  assertEquals([renewals.length, lock.isAcquired()], [0, false]);
  await withLock(on, "k", async (lock) => {
    await clock.advance(3 * TTL_MS);
    lock.assertHeld();
  }, { ttl: 12 });
  assertEquals(renewals.length, 9);
  assertEquals(clock.pending, 0);
});

for (const how of ["rejects", "hangs", "loses the reply"] as const) {
  test(`a lock is held on while the server ${how} two times of three`, async () => {
    const { clock, on, renewals, server } = open();
    const lock = await acquireLock(on, "k", TERMS);
    const { signal } = lock;
    for (let i = 0; i < 30; i++) {
      server.fails.push(how, how);
      await clock.advance(TTL_MS);
    }
    assertFalse(signal.aborted);
    assert(renewals.length < 30 * 8, "a busy loop");
    server.fails = [];
    assertEquals(await lock.release(), true);
    assertEquals(clock.pending, 0);
  });
}

test("a lock is lost, as unreachable, before a dead server's own expiry", async () => {
  const { clock, on, renewals, server } = open();
  const lock = await acquireLock(on, "k", TERMS);
  const { signal } = lock;
  server.isDead = true;
  await clock.advance(TTL_MS * 0.98);
  assertFalse(signal.aborted);
  await clock.advance(TTL_MS * 0.02 - 100);
  assert(signal.aborted, "not told in time");
  const loss = whyLost(lock);
  assertEquals(loss.reason, "unreachable");
  assertInstanceOf(loss.cause, LockBackendError);
  assert(renewals.length >= 5 && renewals.length <= 10, `${renewals.length}`);
  assertEquals(clock.pending, 0, "it goes on trying");
});

test("a lock is told as lost with the first renewal after it was taken", async () => {
  const { clock, on } = open();
  const [taken, deleted] = await Promise.all([
    acquireLock(on, "taken", TERMS),
    acquireLock(on, "deleted", TERMS),
  ]);
  await on.release(taken);
  await on.tryAcquire({ key: "taken", owner: "other", ttlMs: 99_000 });
  await on.release(deleted);
  await clock.advance(TTL_MS / 3);
  assertEquals(whyLost(taken).reason, "taken");
  assertEquals(whyLost(deleted).reason, "deleted");
  assertEquals(clock.pending, 0);
});

test("after a stall past the lease nothing is renewed: it may be another's", async () => {
  const { clock, on, renewals } = open();
  const lock = await acquireLock(on, "k", TERMS);
  clock.stall(TTL_MS);
  await on.tryAcquire({ key: "k", owner: "other", ttlMs: 99_000 });
  await clock.advance(TTL_MS);
  assertEquals(renewals, []);
  assertEquals(whyLost(lock).reason, "expired");
  assertEquals(clock.pending, 0);
});

test("all locks of a backend are renewed together", async () => {
  const { clock, on, renewals } = open();
  const locks: DistributedLock[] = [];
  // Acquired over a whole period: no two at the same moment.
  for (let i = 0; i < 1_000; i++) {
    locks.push(await acquireLock(on, `k${i}`, TERMS));
    await clock.advance(TTL_MS / 3 / 1_000);
  }
  await clock.advance(TTL_MS / 3);
  renewals.length = 0;
  const PERIODS = 30;
  await clock.advance(PERIODS * TTL_MS / 3);
  const perPeriod = renewals.length / PERIODS;
  assert(perPeriod <= 10, `${perPeriod} commands per period`);
  // A script holds everybody else up for as long as it runs.
  assert(renewals.every(([, holds]) => holds <= 250), "too many at once");
  assert(locks.every((lock) => lock.isAcquired()));
  assertEquals(clock.pending, 1, "one timer for all");
  await Promise.all(locks.map((lock) => lock.release()));
  assertEquals(clock.pending, 0);
});

test("maxHoldMs ends renewal, and then the hold", async () => {
  const { clock, on, renewals } = open();
  const lock = await acquireLock(on, "k", { ...TERMS, maxHoldMs: 30_000 });
  const { signal } = lock;
  await clock.advance(29_999);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assertEquals(whyLost(lock).reason, "max-hold");
  const [last] = renewals.at(-1)!;
  assert(last < 30_000 && last > 30_000 - TTL_MS);
  // Renewed once more than was needed, it would keep others out for longer.
  const [before] = renewals.at(-2)!;
  assert(before + TTL_MS * 0.99 - 2 < 30_000, `${renewals}`);
  assertEquals(clock.pending, 0);
  assertEquals(await lock.release(), true, "it was still ours to free");
});

test("extend() to more than the ttl is not undone by renewal", async () => {
  const { clock, on } = open();
  const lock = await acquireLock(on, "k", TERMS);
  await lock.extend(60);
  for (let i = 0; i < 40; i++) {
    await clock.advance(1_000);
    assert(lock.remainingMs >= 60_000 * 0.99 - 2 - (i + 1) * 1_000);
  }
  await clock.advance(60_000);
  assert(lock.isAcquired(), "renewed once that was needed");
  await lock.release();
});

test("withLock() tells of a loss on the way, unless fn failed", async () => {
  const { clock, on } = open();
  const lose = async (lock: DistributedLock) => {
    await on.release(lock);
    await clock.advance(TTL_MS);
  };
  const told = await withLock(on, "k", lose, TERMS).catch((error) => error);
  assertInstanceOf(told, LockLostError);
  assertEquals(told.reason, "deleted");
  const bad = new Error("fn");
  const caught = await withLock(on, "k", async (lock) => {
    await lose(lock);
    throw bad;
  }, TERMS).catch((error) => error);
  assertStrictEquals(caught, bad);
  assertInstanceOf(bad.cause, LockLostError);
  const cause = new Error("fn", { cause: "of its own" });
  await withLock(on, "k", async (lock) => {
    await lose(lock);
    throw cause;
  }, TERMS).catch(() => {});
  assertEquals(cause.cause, "of its own");
  assertEquals(clock.pending, 0);
});

test("withLock() hides neither value nor loss behind a release that fails", async () => {
  const { on } = open();
  const failing: Backend = Object.assign(on, {
    release: () => Promise.reject(new LockBackendError("k", "away")),
  });
  const discarded: string[] = [];
  failing.discard = ({ key }) => void discarded.push(key);
  assertEquals(await withLock(failing, "k1", () => 7), 7);
  const bad = new Error("fn");
  const caught = await withLock(failing, "k2", () => Promise.reject(bad))
    .catch((error) => error);
  assertStrictEquals(caught, bad);
  assertEquals(discarded, ["k1", "k2"], "freed in the background");
});
