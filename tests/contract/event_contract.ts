/**
 * What an observer is told, wherever a lock lives: each transition once, in
 * order, as it happens, and never who the owner is.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
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
import { test } from "../support/test.ts";

/** Where the suite runs. */
export interface World extends AsyncDisposable {
  /** Where locks are made that the given observer is told of. */
  on: Backend;
  /** Lets `ms` go by, timers included. */
  pass(ms: number): Promise<void>;
  /** While true, no command gets an answer: each fails at once. */
  fail(isDown: boolean): void | Promise<void>;
}

type Told<Type extends LockEvent["type"]> = Extract<LockEvent, { type: Type }>;

/** An observer that remembers, and looks at each event as it comes. */
class Observer {
  readonly events: LockEvent[] = [];

  /** What happened, in order. */
  get types(): string[] {
    return this.events.map((event) => event.type);
  }

  /** How often it happened. */
  count(type: LockEvent["type"]): number {
    return this.types.filter((told) => told === type).length;
  }

  /** The one event of this type. */
  only<Type extends LockEvent["type"]>(type: Type): Told<Type> {
    const all = this.events.filter((event) => event.type === type);
    assertEquals(all.length, 1, `told once: ${type} of ${this.types}`);
    return all[0] as Told<Type>;
  }
}

/** Runs the suite in the world that `open` opens, once for each test. */
export function eventContract(
  name: string,
  open: (onEvent: (event: LockEvent) => void) => Promise<World>,
): void {
  type Story = (
    it: World & { key: string; label: string; told: Observer },
  ) => Promise<void>;
  let serial = 0;
  const patient: [name: string, fn: () => Promise<void>][] = [];

  /** One test, with a key and a label of its own. */
  function tells(sentence: string, fn: Story): void {
    test(`${name}: ${sentence}`, () => live(fn));
  }

  /** The same for one that lets time go by: all of those do it side by side. */
  function tellsOverTime(sentence: string, fn: Story): void {
    patient.push([`${name}: ${sentence}`, () => live(fn)]);
  }

  async function live(fn: Story): Promise<void> {
    const told = new Observer();
    await using world = await open((event) => void told.events.push(event));
    const { on, pass, fail } = world;
    const owners = ownersOf(on);
    const key = `events:${name}:${++serial}`;
    const label = `web-${serial}`;
    const dispose = () => Promise.resolve();
    const own = { key, label, told, [Symbol.asyncDispose]: dispose };
    const begunAt = clockOf(on);
    await fn({ on, pass, fail, ...own });
    const tookMs = clockOf(on) - begunAt;

    for (const event of told.events) {
      assertEquals(event.key, key);
      assertEquals(event.label, label);
      for (const [what, ms] of Object.entries(event)) {
        if (!what.endsWith("Ms") || ms === undefined) continue;
        const isSane = typeof ms === "number" && ms >= 0 &&
          ms <= (what === "ttlMs" || what === "retryAfterMs" ? 60e3 : tookMs);
        assert(isSane, `${event.type}: ${what} is ${ms}, of ${tookMs}`);
      }
      const text = textOf(event);
      assert(owners.size > 0);
      for (const owner of owners) {
        // Its random part; behind it is the label, which is no secret.
        assertFalse(text.includes(owner.slice(0, 32)), `an owner in ${text}`);
      }
    }
  }

  tells("acquired and released, once each", async ({
    on,
    key,
    label,
    told,
    pass,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10, label });
    assertEquals(told.types, ["acquired"]);
    assertEquals(told.only("acquired").fencingToken, undefined);
    await pass(30);
    assertEquals(await lock.release(), true);
    assertEquals(await lock.release(), false);
    assertEquals(told.types, ["acquired", "released"]);
    const { heldMs } = told.only("released");
    assert(heldMs >= 29, `held for ${heldMs} ms`);
  });

  tells("the fencing token", async ({ on, key, label, told }) => {
    const lock = await acquireLock(on, key, { label, fencing: true });
    assertEquals(told.only("acquired").fencingToken, lock.fencingToken);
    assert(lock.fencingToken! > 0);
    await lock.release();
  });

  for (const throwOnFail of [true, false]) {
    const as = throwOnFail ? "an error" : "null";
    tells(`refused, where it is ${as}`, async ({ on, key, label, told }) => {
      const lock = await acquireLock(on, key, { ttl: 5, label });
      const options = { throwOnFail, label };
      await acquireLock(on, key, options).catch(() => {});
      assertEquals(told.types, ["acquired", "refused"]);
      await withLock(on, key, () => {}, options).catch(() => {});
      assertEquals(told.types, ["acquired", "refused", "refused"]);
      for (const { type, ...rest } of told.events) {
        if (type !== "refused" || !("retryAfterMs" in rest)) continue;
        const { retryAfterMs = 1 } = rest;
        assert(retryAfterMs > 0 && retryAfterMs <= 5_000);
      }
      await lock.release();
    });
  }

  tells("withLock(): acquired before fn, released after", async ({
    on,
    key,
    label,
    told,
  }) => {
    await withLock(on, key, () => {
      assertEquals(told.types, ["acquired"]);
    }, { label });
    assertEquals(told.types, ["acquired", "released"]);
    const bad = new Error("fn failed");
    await withLock(on, key, () => Promise.reject(bad), { label })
      .catch((error) => assertStrictEquals(error, bad));
    assertEquals(told.types.slice(2), ["acquired", "released"]);
    // Released by fn: not once more by us.
    await withLock(on, key, (lock) => lock.release(), { label });
    assertEquals(told.types.slice(4), ["acquired", "released"]);
  });

  tells("`await using`: released at the end of the block", async ({
    on,
    key,
    label,
    told,
  }) => {
    {
      await using _ = await acquireLock(on, key, { label });
      assertEquals(told.types, ["acquired"]);
    }
    assertEquals(told.types, ["acquired", "released"]);
  });

  tells("a release and the next hold in the order of the server", async ({
    on,
    key,
    label,
    told,
  }) => {
    const options = { label, throwOnFail: false };
    for (let turn = 0; turn < 20; turn++) {
      const lock = await acquireLock(on, key, { label });
      const [, next] = await Promise.all([
        lock.release(),
        acquireLock(on, key, options),
      ]);
      await next?.release();
      const types = told.types.filter((type) => type !== "refused");
      assertEquals(
        types,
        types.map((_, i) => i % 2 === 0 ? "acquired" : "released"),
      );
    }
  });

  tells("extended, by hand", async ({ on, key, label, told }) => {
    const lock = await acquireLock(on, key, { ttl: 5, label });
    await lock.extend(20);
    assertEquals(told.only("extended").ttlMs, 20_000);
    await lock.extend();
    assertEquals(told.types, ["acquired", "extended", "extended"]);
    await lock.release();
  });

  tellsOverTime("extended, in the background, with nobody looking", async ({
    on,
    key,
    label,
    told,
    pass,
  }) => {
    // Due is each after a third: with the fourth the first lease is over.
    const isRenewed = () => told.count("extended") >= 4;
    const options = { ttl: 1, label };
    await withLock(on, key, () => until(pass, isRenewed), options);
    const { types } = told;
    assertEquals([types.shift(), types.pop()], ["acquired", "released"]);
    assertEquals(told.count("extended"), types.length);
  });

  for (const looks of [false, true]) {
    const how = looks ? "with everybody looking" : "with nobody looking";
    tellsOverTime(`lost as expired, when it is, ${how}`, async ({
      on,
      key,
      label,
      told,
      pass,
    }) => {
      const lock = await acquireLock(on, key, { ttl: 0.4, label });
      const signal = looks ? lock.signal : undefined;
      const look = () => [lock.remainingMs, lock.isAcquired(), signal?.aborted];
      // It is due after 394 ms, before our last: a busy machine is late with
      // both, and has them in order all the same.
      for (let past = 0; past < 425; past += 25) {
        await pass(25);
        if (looks) look();
      }
      assertEquals(told.types, ["acquired", "lost"]);
      const { reason, error, heldMs } = told.only("lost");
      assertEquals(reason, "expired");
      assert(heldMs >= 393, `lost after ${heldMs} ms`);
      look();
      assertStrictEquals(lock.signal.reason, error);
      await assertRejects(() => lock.extend(), LockLostError);
      assertEquals(await lock.release(), false);
      assertEquals(told.types, ["acquired", "lost"], "told twice");
    });
  }

  for (const [how, reason] of [["take", "taken"], ["delete", "deleted"]]) {
    const others = async (on: Backend, { key, owner }: DistributedLock) => {
      assertEquals(await on.release({ key, owner }), "done");
      if (how === "delete") return;
      const claim = { key, owner: "somebody-else", ttlMs: 20_000 };
      assert((await on.tryAcquire(claim)).granted);
    };

    tells(`lost as ${reason}, by extend()`, async ({
      on,
      key,
      label,
      told,
    }) => {
      const lock = await acquireLock(on, key, { ttl: 10, label });
      await others(on, lock);
      const error = await assertRejects(() => lock.extend(), LockLostError);
      assertStrictEquals(told.only("lost").error, error);
      assertEquals(told.only("lost").reason, reason);
      assertEquals(await lock.release(), false);
      assertEquals(told.types, ["acquired", "lost"]);
    });

    tellsOverTime(`lost as ${reason}, by a renewal`, async ({
      on,
      key,
      label,
      told,
      pass,
    }) => {
      const options = { ttl: 0.9, label, autoExtend: true };
      const lock = await acquireLock(on, key, options);
      await others(on, lock);
      await until(pass, () => told.count("lost") > 0);
      assertEquals(told.types, ["acquired", "lost"]);
      assertEquals(told.only("lost").reason, reason);
      // Until the next renewal would have been due.
      await pass(350);
      assertEquals(await lock.release(), false);
      assertEquals(told.types, ["acquired", "lost"]);
    });
  }

  tellsOverTime("lost as max-hold, however often it was renewed", async ({
    on,
    key,
    label,
    told,
    pass,
  }) => {
    // More than two leases: it can't last so long without two renewals.
    const options = { ttl: 1, label, autoExtend: true, maxHoldMs: 2_050 };
    const lock = await acquireLock(on, key, options);
    await pass(2_100);
    const { reason, heldMs } = told.only("lost");
    assertEquals(reason, "max-hold", `lost after ${heldMs} ms`);
    assert(heldMs >= 2_050, `lost after ${heldMs} ms`);
    assert(told.count("extended") >= 2);
    assertEquals(told.types.at(-1), "lost");
    // The server lets go of it later: it was renewed for longer.
    await on.release(lock);
    assertEquals(await lock.release(), false);
    assertEquals(told.types.at(-1), "lost");
  });

  tellsOverTime("extend-failed for each try, then lost as unreachable", async ({
    on,
    key,
    label,
    told,
    pass,
    fail,
  }) => {
    const lock = await acquireLock(on, key, {
      ttl: 0.9,
      label,
      autoExtend: true,
    });
    await fail(true);
    await pass(950);
    const { reason, error, heldMs } = told.only("lost");
    assertEquals(reason, "unreachable");
    assertInstanceOf(error.cause, LockBackendError);
    assert(heldMs >= 885, `lost after ${heldMs} ms`);
    const { types } = told;
    assertEquals([types.shift(), types.pop()], ["acquired", "lost"]);
    assert(types.length >= 3, `tried ${types.length} times`);
    assertEquals(told.count("extend-failed"), types.length);
    await fail(false);
    await lock.release();
  });

  tells("extend-failed, by hand; the lock is held on", async ({
    on,
    key,
    label,
    told,
    fail,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 20, label });
    await fail(true);
    const error = await assertRejects(() => lock.extend(), LockBackendError);
    assertStrictEquals(told.only("extend-failed").error, error);
    assert(lock.isAcquired());
    await fail(false);
    assertEquals(await lock.release(), true);
    assertEquals(told.types, ["acquired", "extend-failed", "released"]);
  });

  tells("release-failed, then released by the next try", async ({
    on,
    key,
    label,
    told,
    fail,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 20, label });
    await fail(true);
    const error = await assertRejects(() => lock.release(), LockBackendError);
    assertStrictEquals(told.only("release-failed").error, error);
    await fail(false);
    assertEquals(await lock.release(), true);
    assertEquals(told.types, ["acquired", "release-failed", "released"]);
  });

  tells("release-failed once, where fn's outcome wins", async ({
    on,
    key,
    label,
    told,
    pass,
    fail,
  }) => {
    const options = { ttl: 20, label };
    const value = await withLock(on, key, async () => {
      await fail(true);
      return "done";
    }, options);
    assertEquals(value, "done");
    assertInstanceOf(told.only("release-failed").error, LockBackendError);
    await fail(false);
    // It is tried again in the background, which is no affair of the observer.
    const free = { key, owner: "somebody-else", ttlMs: 1_000 };
    while (!(await on.tryAcquire(free)).granted) await pass(10);
    await on.release(free);
    assertEquals(told.types, ["acquired", "release-failed"]);
  });

  tellsOverTime(
    "nothing after a release",
    async ({ on, key, label, told, pass }) => {
      const locks: DistributedLock[] = [];
      for (const autoExtend of [true, false]) {
        const lock = await acquireLock(on, key, {
          ttl: 0.4,
          label,
          autoExtend,
        });
        lock.signal;
        await lock.release();
        locks.push(lock);
      }
      const { length } = told.events;
      await pass(500);
      for (const lock of locks) {
        assertEquals([lock.remainingMs, lock.signal.aborted], [0, false]);
        await assertRejects(() => lock.extend());
        assertEquals(await lock.release(), false);
      }
      assertEquals(told.events.length, length);
    },
  );

  tellsOverTime(
    "nothing of a lock that was handed over, but by who has it",
    async ({
      on,
      key,
      label,
      told,
      pass,
    }) => {
      const options = { ttl: 1, label, autoExtend: true };
      const lock = await acquireLock(on, key, options);
      const resumed = await DistributedLock.resume(on, JSON.stringify(lock));
      assertEquals(told.types, ["acquired"]);
      // For more than the lease that was handed over.
      await until(pass, () => told.count("extended") >= 4);
      const renewals = told.count("extended");
      assertEquals(await lock.release(), false);
      assertEquals(await resumed.release(), true);
      assertEquals(told.types.at(-1), "released");
      assertEquals(told.events.length, renewals + 2);
    },
  );

  test.sideBySide(patient);
}

/** Lets time go by until it is so; gives up where it takes far too long. */
async function until(
  pass: (ms: number) => Promise<void>,
  isSo: () => boolean,
): Promise<void> {
  for (let pastMs = 0; !isSo(); pastMs += 10) {
    assert(pastMs < 10_000, `Not in ${pastMs} ms: ${isSo}`);
    await pass(10);
  }
}

/** The time by which durations of locks on `backend` are measured. */
function clockOf(backend: Backend): number {
  return backend.clock?.now() ?? performance.now();
}

/** Every owner that anything is asked of `backend` for, from now on. */
function ownersOf(backend: Backend): Set<string> {
  const owners = new Set<string>();
  const { tryAcquire, tryAcquireThen, tryAcquireFenced } = backend;
  backend.tryAcquire = (claim) => {
    owners.add(claim.owner);
    return tryAcquire.call(backend, claim);
  };
  backend.tryAcquireThen = tryAcquireThen && ((claim, then) => {
    owners.add(claim.owner);
    return Reflect.apply(tryAcquireThen, backend, [claim, then]);
  });
  backend.tryAcquireFenced = tryAcquireFenced && ((claim) => {
    owners.add(claim.owner);
    return tryAcquireFenced.call(backend, claim);
  });
  return owners;
}

/** All that a logger would write down of an event, errors and causes included. */
function textOf(event: LockEvent): string {
  const written = (_: string, value: unknown) =>
    value instanceof Error
      ? { ...value, text: value.stack, cause: said(value.cause) }
      : value;
  return JSON.stringify(event, written);
}

/** Of what a client threw, its text: the rest is between it and its user. */
function said(cause: unknown): unknown {
  if (!(cause instanceof Error)) return cause;
  return { text: `${cause.stack}`, cause: said(cause.cause) };
}
