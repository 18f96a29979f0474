/**
 * Promise 8 over a quorum: whichever majority a hold has, its token is greater
 * than that of every hold before.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  type Backend,
  inspectLock,
  LockBackendError,
  redlock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { settle } from "../../support/fake_clock.ts";
import { runtime, spawnScript } from "../../support/process.ts";
import { test } from "../../support/test.ts";

/** All of them under one runtime: arithmetic is the same under the others. */
const HOLDS = runtime === "deno" ? 100_000 : 10_000;
const SEED = 20_260_000;
const timeoutMs = 120_000;

/** So many holds, one after the other; see `fences.ts`. */
async function live(holds: number, how: string) {
  const script = new URL("./fences.ts", import.meta.url);
  await using living = spawnScript(script, [SEED, holds, how]);
  const sums = await living.next("done", timeoutMs);
  assertEquals(await living.exited, { code: 0, signal: null });
  return sums as Record<"held" | "fallen" | "failed" | "wiped", number>;
}

test(
  "random majorities, clocks off and servers wiped: tokens only rise",
  async () => {
    const { held, fallen, failed, wiped } = await live(HOLDS, "well");
    assertEquals(fallen, 0);
    assertEquals(held, HOLDS);
    // Neither all in reach nor none, or the majorities would be no test.
    assert(failed > HOLDS / 20 && wiped > HOLDS / 1_000, `${failed}, ${wiped}`);
  },
  { timeoutMs },
);

test(
  "the same falls where nothing is written back",
  async () => {
    const { fallen } = await live(HOLDS / 20, "forgetful");
    assert(fallen > HOLDS / 1_000, `${fallen} fell`);
  },
  { timeoutMs },
);

/** Three servers whose clocks say 100, 50 and 40 µs, and which can be away. */
function servers() {
  const away = new Set<number>();
  const raised: string[] = [];
  const members = [100, 50, 40].map((micros, i): Backend => {
    const on = memory({
      clock: {
        now: () => performance.now(),
        wall: () => micros / 1000,
        setTimer: () => () => {},
      },
    });
    const { tryAcquireFenced, raiseFence, release } = on;
    // Nobody waits here, and by `release` it can be away.
    Object.assign(on, { notices: undefined });
    const reach = <T>(fn: () => Promise<T>): Promise<T> =>
      away.has(i) ? Promise.reject(new LockBackendError("k", "away")) : fn();
    on.tryAcquireFenced = (claim) =>
      reach(() => tryAcquireFenced!.call(on, claim));
    on.release = (hold) => reach(() => release.call(on, hold));
    on.discard = (claim) => void on.release(claim).catch(() => {});
    on.raiseFence = (hold, token) => {
      raised.push(`${i + 1} to ${token}`);
      return reach(() => raiseFence!.call(on, hold, token));
    };
    return on;
  });
  return { members, away, raised };
}

for (const isWrittenBack of [true, false]) {
  const outcome = isWrittenBack ? "rises" : "falls without the write-back";
  test(`A draws 100 and 50, then B 51 and 40: the token ${outcome}`, async () => {
    const { members, away } = servers();
    if (!isWrittenBack) {
      for (const on of members) on.raiseFence = () => Promise.resolve("done");
    }
    const on = redlock(members);
    away.add(2);
    const a = await acquireLock(on, "k", { fencing: true });
    assertEquals(a.fencingToken, 100);
    await a.release();
    await settle();
    away.delete(2);
    away.add(0);
    const b = await acquireLock(on, "k", { fencing: true });
    assertEquals(b.fencingToken, isWrittenBack ? 101 : 51);
    await b.release();
  });
}

test("who remembers the token needs no reminding; stragglers do", async () => {
  const { members, raised } = servers();
  const lock = await acquireLock(redlock(members), "k", { fencing: true });
  await settle();
  assertEquals([lock.fencingToken, raised], [100, ["2 to 100", "3 to 100"]]);
  await lock.release();
});

test("a token that no majority remembers is none, and nothing is left", async () => {
  const { members, away } = servers();
  const on = redlock(members);
  for (const member of members.slice(1)) {
    member.raiseFence = () => Promise.reject(new LockBackendError("k", "away"));
  }
  const error = await assertRejects(
    () => acquireLock(on, "k", { fencing: true }),
    LockBackendError,
  );
  assertEquals(
    error.message,
    'Cannot acquire "k": servers 2 and 3 of 3 failed',
  );
  for (const verdict of ["absent", "taken"] as const) {
    for (const member of members.slice(1)) {
      member.raiseFence = () => Promise.resolve(verdict);
    }
    const lost = await acquireLock(on, "k", { fencing: true })
      .catch((error) => error.code);
    assertEquals(
      lost,
      verdict === "taken" ? "LOCK_NOT_ACQUIRED" : "LOCK_BACKEND",
    );
  }
  await settle();
  for (const member of members) {
    assertEquals((await member.inspect!("k")).owner, undefined);
  }
  assertEquals(away.size, 0);
});

test("what is told of a lock is its own token, whatever else was drawn", async () => {
  const { members } = servers();
  const [first] = members;
  const draw = first.tryAcquireFenced!;
  let answer = () => {};
  first.tryAcquireFenced = async (claim) => {
    const drawn = await draw(claim);
    await new Promise<void>((resolve) => answer = resolve);
    return drawn;
  };
  const on = redlock(members);
  const lock = await acquireLock(on, "k", { fencing: true });
  // The first drew 100, and was not waited for.
  assertEquals(lock.fencingToken, 50);
  assertEquals((await inspectLock(on, "k")).fencingToken, 50);
  answer();
  await settle();
  assertEquals((await inspectLock(on, "k")).fencingToken, 50);
  await lock.release();
  await settle();
  assertEquals((await inspectLock(on, "k")).fencingToken, 50);
});
