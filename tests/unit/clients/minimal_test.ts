/** Objects with four methods, which say what they like. */
import { assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  DistributedLock,
  inspectLock,
  LockLostError,
} from "@dreamer/utils/lock";

import { test } from "../../support/test.ts";

test("the double of a unit test may say true and false for 1 and 0", async () => {
  const locks = new Map<string, unknown>();
  const double = {
    set(key: string, owner: string) {
      if (locks.has(key)) return Promise.resolve(null);
      locks.set(key, owner);
      return Promise.resolve("OK");
    },
    get: (key: string) => Promise.resolve(locks.get(key) ?? null),
    del: (key: string) => Promise.resolve(locks.delete(key)),
    eval: (_lua: string, _count: number, key: string, owner: string) =>
      Promise.resolve(locks.get(key) === owner && locks.delete(key)),
  };
  const lock = await acquireLock(double, "k");
  const other = new DistributedLock(double, "k", "another", 10);
  assertEquals(await other.acquire(), false);
  assertEquals(await lock.release(), true);
  assertEquals(await other.acquire(), true);
  locks.clear();
  await assertRejects(() => other.extend(), LockLostError);
  assertEquals(await other.release(), false);
});

test("a free lock is free by a client that gives undefined for nothing, too", async () => {
  const double = {
    ...{ set: () => Promise.resolve("OK"), get: () => Promise.resolve(null) },
    del: () => Promise.resolve(0),
    eval: () => Promise.resolve([undefined, -2, undefined, "1", "0", 0, []]),
  };
  const { held, fencingToken } = await inspectLock(double, "k");
  assertEquals({ held, fencingToken }, {
    held: false,
    fencingToken: undefined,
  });
});
