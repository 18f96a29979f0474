/**
 * What is cleaned up after an attempt without an answer, and an owner that tries
 * again meanwhile: the caller of `new DistributedLock()` may choose it.
 */
import { assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  type CommandFunction,
  DistributedLock,
  LockBackendError,
  redis,
} from "@dreamer/utils/lock";
import { settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";
import { until } from "../../support/until.ts";

test("an owner that tries again is not freed by what cleans up after it", async () => {
  // A server to which requests come in any order, as by HTTP.
  const held = new Map<string, string>();
  let isFirst = true;
  const late: (() => void)[] = [];
  const send: CommandFunction = async ([name, ...args]) => {
    if (name === "SET") {
      if (isFirst) {
        isFirst = false;
        throw new Error("the request got lost");
      }
      const [key, owner] = args;
      if (held.has(key)) return null;
      held.set(key, owner);
      return "OK";
    }
    // Only releases are sent here: they take their time.
    await new Promise<void>((go) => late.push(go));
    const [, , key, , owner] = args;
    return held.get(key) === owner ? Number(held.delete(key)) : 0;
  };
  const lock = new DistributedLock(send, "k", "mine", 10);
  const failed = await lock.acquire().catch((error) => error.code);
  assertEquals(failed, "LOCK_BACKEND");
  const again = lock.acquire();
  while (late.length === 0) await settle();
  for (const go of late.splice(0)) go();
  assertEquals(await again, true);
  for (const go of late.splice(0)) go();
  await settle();
  assertEquals(held.get("k"), "mine");
});

test("nor is it where it draws a token, or waits over a quorum", async () => {
  for (const how of ["fenced", "noted"]) {
    const sent: string[] = [];
    const late: (() => void)[] = [];
    const send: CommandFunction = async ([, , count, ...args]) => {
      const isRelease = args.length === Number(count) + 1;
      sent.push(isRelease ? "release" : "acquire");
      if (isRelease) await new Promise<void>((go) => late.push(go));
      else if (sent.length === 1) throw new Error("the request got lost");
      return isRelease ? 0 : how === "fenced" ? [1, 7] : "1 9000 1 0 7";
    };
    const on = redis(send);
    const claim = { key: "k", owner: "mine", ttlMs: 10_000 };
    const acquire = () =>
      how === "fenced"
        ? on.tryAcquireFenced!(claim)
        : on.notices!.tryAcquire({ ...claim, tokens: 1 });
    await assertRejects(acquire, LockBackendError);
    while (late.length === 0) await settle();
    const again = acquire();
    await settle();
    assertEquals(sent, ["acquire", "release"]);
    for (const go of late.splice(0)) go();
    assertEquals((await again).granted, true);
    assertEquals(sent, ["acquire", "release", "acquire"]);
  }
});

test("an attempt that may yet be written, as in a transaction, is taken back", async () => {
  const released: string[] = [];
  const on = redis(([name, , count, ...args]) => {
    if (name === "SET") return Promise.resolve("QUEUED");
    released.push(args[Number(count)]);
    return Promise.resolve(1);
  });
  const claim = { key: "k", owner: "mine", ttlMs: 10_000 };
  await assertRejects(() => on.tryAcquire(claim), LockBackendError);
  while (released.length === 0) await settle();
  assertEquals(released, ["mine"]);
});

test("several keys whose grant got lost are all cleaned up", async () => {
  const held = new Map<string, string>();
  let isFirst = true;
  const send: CommandFunction = ([, , count, ...rest]) => {
    const keys = rest.slice(0, Number(count));
    const args = rest.slice(Number(count));
    if (isFirst) {
      isFirst = false;
      // Each with its line and its fence; for so long, and by whom.
      for (const [i, wish] of args.entries()) {
        held.set(keys[3 * i], wish.split(" ")[2]);
      }
      return Promise.reject(new Error("the answer got lost"));
    }
    const [key] = keys;
    const isOurs = held.get(key) === args[0];
    return Promise.resolve(isOurs ? Number(held.delete(key)) : 0);
  };
  const keys = ["a", "b", "c"];
  await assertRejects(() => acquireLock(send, keys), LockBackendError);
  await until("they are gone", () => held.size === 0);
});
