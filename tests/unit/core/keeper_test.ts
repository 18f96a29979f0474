/** The watch over one hold, on a hand-cranked clock. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";

import { moment } from "../../../src/core/clock.ts";
import { LockLostError } from "../../../src/core/errors.ts";
import { Keeper } from "../../../src/core/keeper.ts";
import { FakeClock } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

const TTL_MS = 10_000;
/** Ten seconds, less one percent and 2 ms. */
const VALID_MS = 9_898;

function keep(ttlMs = TTL_MS): { clock: FakeClock; keeper: Keeper } {
  const clock = new FakeClock();
  return { clock, keeper: new Keeper(clock, "k", moment(clock), ttlMs) };
}

test("Keeper counts from before the request, less the drift", () => {
  const clock = new FakeClock();
  const asked = moment(clock);
  clock.stall(3_000);
  const keeper = new Keeper(clock, "k", asked, TTL_MS);
  assertEquals(keeper.remainingMs, VALID_MS - 3_000);
});

test("Keeper gives up before the server does, by timer", async () => {
  const { clock, keeper } = keep();
  const { signal } = keeper;
  await clock.advance(VALID_MS - 1);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assert(signal.aborted);
  assertInstanceOf(signal.reason, LockLostError);
  assertEquals(clock.pending, 0);
});

test("Keeper sets no timer until somebody asks for the signal", () => {
  const { clock, keeper } = keep();
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
    ["a suspended machine", (clock: FakeClock) => clock.suspend(TTL_MS)],
    ["a wall clock set an hour forward", (clock: FakeClock) => {
      clock.stepWall(3_600_000);
    }],
    ["a stall that the wall clock never saw", (clock: FakeClock) => {
      clock.stall(TTL_MS);
      clock.stepWall(-3_600_000);
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
    test(`Keeper: ${sentence}, by ${how}`, () => {
      const { clock, keeper } = keep();
      const { signal } = keeper;
      assertFalse(signal.aborted);
      go(clock);
      assert(isLost(keeper, signal));
      assertStrictEquals(keeper.loss, signal.reason);
      assertEquals(clock.pending, 0);
    });
  }
}

test("Keeper keeps to the monotonic clock when the wall clock goes back", () => {
  const { clock, keeper } = keep();
  clock.stepWall(-3_600_000);
  clock.stall(4_000);
  assertEquals(keeper.remainingMs, VALID_MS - 4_000);
});

test("Keeper: a lost lock stays lost, whatever the clock or server says", () => {
  const { clock, keeper } = keep();
  clock.stepWall(3_600_000);
  const { loss } = keeper;
  assert(loss);
  clock.stepWall(-3_600_000);
  keeper.renewed(moment(clock), TTL_MS);
  keeper.lose("taken");
  keeper.release();
  assertEquals(keeper.remainingMs, 0);
  assertStrictEquals(keeper.loss, loss);
  assertStrictEquals(keeper.signal.reason, loss);
});

test("Keeper: a longer lease counts from when it was asked for", async () => {
  const { clock, keeper } = keep();
  const { signal } = keeper;
  clock.stall(5_000);
  const asked = moment(clock);
  keeper.expect(asked, TTL_MS);
  await clock.advance(1_000);
  assertEquals(keeper.remainingMs, VALID_MS - 6_000, "not before the answer");
  keeper.renewed(asked, TTL_MS);
  assertEquals(keeper.remainingMs, VALID_MS - 1_000);
  await clock.advance(VALID_MS - 1_001);
  assertFalse(signal.aborted);
  await clock.advance(1);
  assert(signal.aborted);
});

test("Keeper: a shorter lease counts before it is answered for", async () => {
  const { clock, keeper } = keep();
  const { signal } = keeper;
  keeper.expect(moment(clock), 1_000);
  assertEquals(keeper.remainingMs, 988);
  await clock.advance(988);
  assert(signal.aborted, "the server may have had it at once");
});

test("Keeper: drift never eats a lease of a few milliseconds whole", () => {
  assertEquals(keep(1).keeper.remainingMs, 0.5);
  assertEquals(keep(10).keeper.remainingMs, 7.9);
});

test("Keeper: a released lock is neither held nor lost", async () => {
  const { clock, keeper } = keep();
  const { signal } = keeper;
  keeper.release();
  keeper.lose("taken");
  await clock.advance(TTL_MS);
  assertEquals(keeper.remainingMs, 0);
  assertEquals(keeper.loss, undefined);
  assertFalse(signal.aborted);
  assert(keeper.isOver);
});
