/**
 * Promise 2 against a hundred thousand random lives of a lock: whatever stalls,
 * sleeps, clock steps, slow and lost replies come, a lock is never "held" once
 * the server has let it go. A failure prints the seed that repeats it.
 */
import { assert, assertEquals } from "@std/assert";

import { moment } from "../../../src/core/clock.ts";
import { Keeper } from "../../../src/core/keeper.ts";
import { runtime, spawnScript } from "../../support/process.ts";
import { ProcessClock, World } from "../../support/sim.ts";
import { test } from "../../support/test.ts";

/** All of them under one runtime: arithmetic is the same under the others. */
const LIVES = runtime === "deno" ? 100_000 : 10_000;
const FIRST_SEED = 20_260_000;
const timeoutMs = 120_000;

test(
  "no schedule makes a lock say 'held' after the server let it go",
  async () => {
    const script = new URL("./lives.ts", import.meta.url);
    await using living = spawnScript(script, [FIRST_SEED, LIVES]);
    const { lost, longHeld } = await living.next("done", timeoutMs);
    // Neither all dead at once nor all alive, or the schedules would be no test.
    const fewest = Math.min(Number(lost), Number(longHeld));
    assert(fewest > LIVES / 10, `${lost}, ${longHeld}`);
    assertEquals(await living.exited, { code: 0, signal: null });
  },
  { timeoutMs },
);

test("after a long sleep the server is asked, and says that it is lost", async () => {
  const world = new World();
  const clock = new ProcessClock(world, 1);
  const claim = { key: "k", owner: "o", ttlMs: 10_000 };
  await world.server.tryAcquire(claim);
  const terms = { autoExtend: true, maxHoldMs: Infinity, fencing: false };
  const keeper = new Keeper(world.seenBy(clock), claim, moment(clock), terms);
  const { signal } = keeper;
  await clock.sleep(3_600_000);
  assertEquals([keeper.remainingMs, keeper.isInDoubt], [0, true]);
  await world.pass(1);
  assert(signal.aborted);
  assertEquals(signal.reason.reason, "expired");
});
