/** The watch over one hold, on a hand-cranked clock. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";

import { acquireLock, type LockEvent } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import type { Backend } from "../../../src/core/backend.ts";
import { moment } from "../../../src/core/clock.ts";
import { LockBackendError, LockLostError } from "../../../src/core/errors.ts";
import { Keeper } from "../../../src/core/keeper.ts";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

const TTL_MS = 10_000;
/** Ten seconds, less one percent and 2 ms. */
const VALID_MS = 9_898;
const HOUR_MS = 3_600_000;
const CLAIM = { key: "k", owner: "o", ttlMs: TTL_MS };
const PLAIN = { autoExtend: false, maxHoldMs: Infinity, fencing: false };

/** A hold on a server whose clock is the process's own. */
async function keep(terms: Partial<typeof PLAIN> = {}, ttlMs = TTL_MS) {
  const clock = new FakeClock();
  const backend = memory({ clock });
  const claim = { ...CLAIM, ttlMs };
  const asked = moment(clock);
  await backend.tryAcquire(claim);
  const keeper = new Keeper(backend, claim, asked, { ...PLAIN, ...terms });
  return { clock, backend, keeper };
}

test("Keeper counts from before the request, less the drift", () => {
  const clock = new FakeClock();
  const asked = moment(clock);
  clock.stall(3_000);
  const keeper = new Keeper(memory({ clock }), CLAIM, asked, PLAIN);
  assertEquals(keeper.remainingMs, VALID_MS - 3_000);
});

test("Keeper gives up before the server does, by timer", async () => {
  const { clock, keeper } = await keep();
  const { signal } = keeper;
  await clock.advance(VALID_MS - 1);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assert(signal.aborted);
  assertInstanceOf(signal.reason, LockLostError);
  assertEquals(clock.pending, 0);
});

test("Keeper sets no timer until somebody asks for the signal", async () => {
  const { clock, keeper } = await keep();
  assertEquals(keeper.remainingMs, VALID_MS);
  assertEquals(clock.pending, 0);
  keeper.signal;
  assertEquals(clock.pending, 1);
  keeper.release();
  assertEquals(clock.pending, 0);
});

for (
  const [what, go] of [
    ["a blocked event loop", (clock: FakeClock) => clock.stall(TTL_MS)],
    ["a stall that the wall clock never saw", (clock: FakeClock) => {
      clock.stall(TTL_MS);
      clock.stepWall(-HOUR_MS);
    }],
    ["a stall, and the wall clock set forward", (clock: FakeClock) => {
      clock.stall(TTL_MS);
      clock.stepWall(HOUR_MS);
    }],
  ] as const
) {
  const sentence = `after ${what} the first read says "lost", before any timer`;
  for (
    const [how, isLost] of [
      ["remainingMs", (keeper) => keeper.remainingMs === 0],
      ["loss", (keeper) => keeper.loss !== undefined],
      ["signal", (keeper) => keeper.signal.aborted],
      ["a signal at hand", (_, signal) => signal.aborted],
      ["the reason of one", (_, signal) => signal.reason !== undefined],
      ["throwIfAborted() of one", (_, signal) => {
        assertThrows(() => signal.throwIfAborted(), LockLostError);
        return true;
      }],
    ] as [string, (keeper: Keeper, signal: AbortSignal) => boolean][]
  ) {
    test(`Keeper: ${sentence}, by ${how}`, async () => {
      const { clock, keeper } = await keep();
      const { signal } = keeper;
      assertFalse(signal.aborted);
      go(clock);
      assert(isLost(keeper, signal));
      assertStrictEquals(keeper.loss, signal.reason);
      assertEquals(clock.pending, 0);
    });
  }
}

for (
  const [what, go] of [
    ["the wall clock is set an hour forward", (clock: FakeClock) => {
      clock.stepWall(HOUR_MS);
    }],
    ["the wall clock is set an hour back", (clock: FakeClock) => {
      clock.stepWall(-HOUR_MS);
    }],
    ["the machine slept for a little", (clock: FakeClock) => {
      clock.suspend(3_000);
    }],
  ] as const
) {
  test(`Keeper: when ${what} it is not held until the server says so`, async () => {
    const { clock, keeper } = await keep();
    const { signal } = keeper;
    clock.stall(1_000);
    go(clock);
    assertEquals(keeper.remainingMs, 0, "the first read");
    assert(keeper.isInDoubt);
    assertFalse(signal.aborted, "nobody knows yet");
    await settle();
    assertFalse(keeper.isInDoubt);
    // Of the 9 s that the server has left, 1 % and 2 ms are not counted on.
    assertEquals(keeper.remainingMs, 9_000 - 92);
    assertFalse(signal.aborted);
    await clock.advance(9_000 - 92);
    assert(signal.aborted, "watched on");
    assertEquals(clock.pending, 0);
  });
}

test("Keeper: in doubt, with a server that does not answer, it is lost", async () => {
  const { clock, backend } = await keep();
  const mute = Object.assign(Object.create(backend) as Backend, {
    clock,
    inquire: () => new Promise(() => {}),
  });
  const keeper = new Keeper(mute, CLAIM, moment(clock), PLAIN);
  const { signal } = keeper;
  clock.stall(1_000);
  clock.stepWall(-HOUR_MS);
  assertEquals(keeper.remainingMs, 0);
  await clock.advance(VALID_MS - 1_001);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assertInstanceOf(signal.reason, LockLostError);
  assertEquals(clock.pending, 0);
});

test("Keeper: in doubt, of a hold that is no more the server says why", async () => {
  for (const reason of ["expired", "taken"]) {
    const { clock, backend, keeper } = await keep();
    const { signal } = keeper;
    await backend.release(CLAIM);
    if (reason === "taken") {
      await backend.tryAcquire({ ...CLAIM, owner: "another" });
    }
    clock.stepWall(HOUR_MS);
    assertEquals(keeper.remainingMs, 0);
    await settle();
    assertEquals((signal.reason as LockLostError).reason, reason);
  }
});

test("Keeper: small differences of the clocks cost time, not trust", async () => {
  const { clock, keeper } = await keep();
  clock.stepWall(90);
  assertEquals(keeper.remainingMs, VALID_MS - 90);
  clock.stepWall(-180);
  assertEquals(keeper.remainingMs, VALID_MS);
  assertFalse(keeper.isInDoubt);
});

test("Keeper: a lost lock stays lost, whatever the clock or server says", async () => {
  const { clock, keeper } = await keep();
  clock.stall(TTL_MS);
  const { loss } = keeper;
  assert(loss);
  const asked = keeper.asks(TTL_MS);
  keeper.answered("done", asked, TTL_MS);
  keeper.lose("taken");
  keeper.release();
  assertEquals(keeper.remainingMs, 0);
  assertStrictEquals(keeper.loss, loss);
  assertStrictEquals(keeper.signal.reason, loss);
});

test("Keeper: a longer lease counts from when it was asked for", async () => {
  const { clock, keeper } = await keep();
  const { signal } = keeper;
  clock.stall(5_000);
  const asked = keeper.asks(TTL_MS);
  await clock.advance(1_000);
  assertEquals(keeper.remainingMs, VALID_MS - 6_000, "not before the answer");
  keeper.answered("done", asked, TTL_MS);
  assertEquals(keeper.remainingMs, VALID_MS - 1_000);
  await clock.advance(VALID_MS - 1_001);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assert(signal.aborted);
});

test("Keeper: a shorter lease counts before it is answered for", async () => {
  const { clock, keeper } = await keep();
  const { signal } = keeper;
  keeper.asks(1_000);
  assertEquals(keeper.remainingMs, 988);
  await clock.advance(988);
  assert(signal.aborted, "the server may have had it at once");
});

test("Keeper: an older answer says nothing of a shorter lease sent after", async () => {
  const { clock, backend, keeper } = await keep();
  clock.stall(100);
  const renewal = keeper.asks(TTL_MS);
  clock.stall(1);
  // By hand, to one second: sent, and never answered.
  backend.extend = () => new Promise(() => {});
  void keeper.extend(1_000);
  await settle();
  keeper.answered("done", renewal, TTL_MS);
  assertEquals(keeper.remainingMs, 988);
});

test("Keeper: drift never eats a lease of a few milliseconds whole", async () => {
  assertEquals((await keep({}, 1)).keeper.remainingMs, 0.5);
  assertEquals((await keep({}, 10)).keeper.remainingMs, 7.9);
});

test("Keeper: a released lock is neither held nor lost", async () => {
  const { clock, keeper } = await keep();
  const { signal } = keeper;
  keeper.release();
  keeper.lose("taken");
  await clock.advance(TTL_MS);
  assertEquals(keeper.remainingMs, 0);
  assertEquals(keeper.loss, undefined);
  assertFalse(signal.aborted);
  assert(keeper.isOver);
});

test("Keeper: maxHoldMs ends a hold, and the signal says so", async () => {
  const { clock, keeper } = await keep({ autoExtend: true, maxHoldMs: 25_000 });
  const { signal } = keeper;
  await clock.advance(24_700);
  assertFalse(signal.aborted);
  assert(keeper.remainingMs <= 300);
  await clock.advance(300);
  assertEquals((signal.reason as LockLostError).reason, "max-hold");
  assertEquals(clock.pending, 0);
});

test("Keeper waits for an extension no longer than until the loss", async () => {
  const { clock, backend, keeper } = await keep();
  Object.assign(backend, { extend: () => new Promise(() => {}) });
  const extension = keeper.extend(TTL_MS).catch((error) => error);
  await clock.advance(VALID_MS - 1);
  assert(keeper.remainingMs > 0);
  await clock.advance(1);
  const loss = await extension;
  assertInstanceOf(loss, LockLostError);
  assertEquals(loss.reason, "unreachable");
  assertEquals(clock.pending, 0);
});

test("Keeper makes the short lease of a turn a full one, and leaves it at that", async () => {
  const clock = new FakeClock();
  const backend = memory({ clock });
  const short = { ...CLAIM, ttlMs: 2_000 };
  await backend.tryAcquire(short);
  const asked = moment(clock);
  const keeper = new Keeper(
    backend,
    CLAIM,
    asked,
    PLAIN,
    undefined,
    2_000,
    true,
  );
  assertEquals(keeper.remainingMs, 2_000 * 0.99 - 2);
  await clock.advance(700);
  assert(keeper.remainingMs > VALID_MS - 100, `${keeper.remainingMs}`);
  assertEquals(clock.pending, 0, "it is to be renewed once");
  await clock.advance(TTL_MS);
  assertEquals(keeper.loss?.reason, "expired");
});

for (const how of ["fails", "hangs"] as const) {
  test(`Keeper makes the short lease of a turn a full one, though a first try ${how}`, async () => {
    const clock = new FakeClock();
    const backend = memory({ clock });
    const long = { ...CLAIM, ttlMs: 60_000 };
    await backend.tryAcquire({ ...long, ttlMs: 2_000 });
    const asked = moment(clock);
    const short = [undefined, 2_000, true] as const;
    const keeper = new Keeper(backend, long, asked, PLAIN, ...short);
    const { extend } = backend;
    backend.extend = () => {
      backend.extend = extend;
      return how === "hangs"
        ? new Promise(() => {})
        : Promise.reject(new LockBackendError("k", "away"));
    };
    await clock.advance(1_950);
    assert(keeper.remainingMs > 50_000, `${keeper.remainingMs}`);
    keeper.release();
    assertEquals(clock.pending, 0);
  });
}

test("Keeper adds to the whole lease, not to the short one of a turn", async () => {
  const clock = new FakeClock();
  const backend = memory({ clock });
  await backend.tryAcquire({ ...CLAIM, ttlMs: 2_000 });
  const asked = moment(clock);
  const short = [undefined, 2_000, true] as const;
  const keeper = new Keeper(backend, CLAIM, asked, PLAIN, ...short);
  assert(await keeper.prolong(1_000));
  assertEquals(keeper.remainingMs, 11_000 * 0.99 - 2);
  assertEquals((await backend.inquire(CLAIM)).leftMs, 11_000);
  keeper.release();
});

test("a lock that is over before its release was lost, and whoever watches is told", async () => {
  const clock = new FakeClock();
  const told: string[] = [];
  const onEvent = ({ type }: LockEvent) => void told.push(type);
  for (const on of [memory({ clock }), memory({ clock, onEvent })]) {
    const lock = await acquireLock(on, "k", { ttl: 10 });
    const { signal } = lock;
    clock.stall(TTL_MS);
    assertEquals(await lock.release(), false);
    assertInstanceOf(signal.reason, LockLostError);
    assertEquals(signal.reason.reason, "expired");
  }
  const lock = await acquireLock(memory({ clock, onEvent }), "k", { ttl: 10 });
  clock.stall(TTL_MS);
  assertEquals(await lock.release(), false);
  assertEquals(told, ["acquired", "lost", "acquired", "lost"]);
});

test("Keeper: looked at late, it is lost for what came first", async () => {
  for (const [maxHoldMs, reason] of [[9_000, "max-hold"], [9_950, "expired"]]) {
    const { clock, keeper } = await keep({ maxHoldMs: Number(maxHoldMs) });
    clock.stall(60_000);
    assertEquals(keeper.loss?.reason, reason);
  }
});
