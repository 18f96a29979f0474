/** The contract in memory, on the machine's clock and on a hand-cranked one. */
import { assertEquals } from "@std/assert";

import { acquireLock, listLocks } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock } from "../support/fake_clock.ts";
import { test } from "../support/test.ts";
import { lockContract } from "./lock_contract.ts";

const noKeys = () => Promise.resolve(0);

lockContract("memory", () =>
  Promise.resolve({
    on: memory(),
    pass: (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
    keysLeft: noKeys,
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }));

lockContract("memory, fake clock", () => {
  const clock = new FakeClock();
  return Promise.resolve({
    on: memory({ clock }),
    pass: (ms: number) => clock.advance(ms),
    keysLeft: noKeys,
    [Symbol.asyncDispose]() {
      assertEquals(clock.pending, 0, "timers left behind");
      return Promise.resolve();
    },
  });
});

test("memory() reads what is between brackets as Redis does", async () => {
  const on = memory();
  const names = [..."abdz5]-"];
  for (const name of names) await acquireLock(on, `l:${name}`);
  const found = async (pattern: string) => {
    const keys: string[] = [];
    for await (const { key } of listLocks(on, pattern)) keys.push(key);
    return keys.map((key) => key.slice(2)).sort().join("");
  };
  // Found so with a server of version 7.0.
  assertEquals(await found("l:[z-a]"), "abdz");
  assertEquals(await found("l:[\\d]"), "d");
  assertEquals(await found("l:[\\w]"), "");
  assertEquals(await found("l:[\\]]"), "]");
  assertEquals(await found("l:[^a-d]"), "-5]z");
});

test("memory() makes a world of its own each time", async () => {
  const [here, there] = [memory(), memory()];
  await acquireLock(here, "k");
  await acquireLock(there, "k");
});

test("memory() forgets locks that nobody asks for again", async () => {
  const clock = new FakeClock();
  const here = memory({ clock });
  for (let i = 0; i < 10_000; i++) {
    await acquireLock(here, `k${i}`, { ttl: 1 });
    clock.stall(100);
  }
  // What it keeps is visible only to a debugger; what can be seen is that the
  // sweep dropped nothing that is still held.
  const last = await acquireLock(here, "k9999", { throwOnFail: false });
  assertEquals(last, null);
  assertEquals((await acquireLock(here, "k0")).isAcquired(), true);
});

test("memory() lowers no fence, and renews nothing to less", async () => {
  const on = memory({ clock: new FakeClock(0) });
  const claim = { key: "k", owner: "o", ttlMs: 1_000 };
  await on.tryAcquire({ ...claim, ttlMs: 60_000 });
  for (const token of [70, 7]) {
    assertEquals(await on.raiseFence!(claim, token), "done");
  }
  assertEquals((await on.inspect!("k")).fencingToken, 70);
  assertEquals(await on.extend([claim], true), ["done"]);
  assertEquals((await on.inspect!("k")).leftMs, 60_000);
  assertEquals(await on.extend([claim]), ["done"]);
  assertEquals((await on.inspect!("k")).leftMs, 1_000);
});

test("memory() shortens nothing by an attempt that finds its own lock", async () => {
  const on = memory({ clock: new FakeClock() });
  const claim = { key: "k", owner: "o", ttlMs: 60_000 };
  for (const [ttlMs, leftMs] of [[60_000, 60_000], [1_000, 60_000]]) {
    assertEquals((await on.tryAcquire({ ...claim, ttlMs })).granted, true);
    assertEquals((await on.inspect!("k")).leftMs, leftMs);
  }
  await on.tryAcquire({ ...claim, ttlMs: 90_000 });
  assertEquals((await on.inspect!("k")).leftMs, 90_000);
});

test("listLocks() tells of none twice, though a scan may", async () => {
  const on = memory();
  await acquireLock(on, "k");
  on.scan = async function* () {
    yield* ["k", "free", "k"];
  };
  const keys: string[] = [];
  for await (const { key } of listLocks(on, "*")) keys.push(key);
  assertEquals(keys, ["k"]);
});
