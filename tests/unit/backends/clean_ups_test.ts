/** What is owed to a server that is away: little is asked of it until it is back. */
import { assert, assertEquals } from "@std/assert";

import { CleanUps } from "../../../src/backends/clean_up.ts";
import { settle } from "../../support/fake_clock.ts";
import { test, timersEnd } from "../../support/test.ts";
import { until } from "../../support/until.ts";

/** Things to undo, and how often each was tried, while nobody answers. */
function away(count: number) {
  let isAway = true;
  const tries = new Map<string, number>();
  const cleanUps = new CleanUps(() => false);
  const names = Array.from({ length: count }, (_, i) => `${i}`);
  const owe = (name: string, forMs = 60_000) =>
    cleanUps.add(name, forMs, () => {
      tries.set(name, (tries.get(name) ?? 0) + 1);
      most = Math.max(most, ++inOneGo);
      void Promise.resolve().then(() => inOneGo = 0);
      return isAway ? Promise.reject(new Error("away")) : Promise.resolve();
    });
  /** How many were tried in one go, at most, since the last look. */
  let inOneGo = 0;
  let most = 0;
  const busiest = () => {
    const was = most;
    most = 0;
    return was;
  };
  const sum = () => [...tries.values()].reduce((sum, one) => sum + one, 0);
  return {
    cleanUps,
    names,
    tries,
    owe,
    sum,
    busiest,
    back: () => isAway = false,
  };
}

test("a server that is away is asked for one thing at a time", async () => {
  const { names, owe, sum, busiest, back, cleanUps } = away(50);
  for (const name of names) owe(name);
  assertEquals(busiest(), 50);
  await until("it was asked again", () => sum() >= 53);
  // Each in its turn, with a pause before the next.
  assertEquals(busiest(), 1);
  back();
  await until("all is done", () => cleanUps.isEmpty);
  await timersEnd();
});

test("once it answers all is done at once", async () => {
  const { names, tries, owe, sum, busiest, back, cleanUps } = away(20);
  for (const name of names) owe(name);
  await until("it was asked again", () => sum() > 20);
  busiest();
  back();
  await until("all is done", () => cleanUps.isEmpty);
  assertEquals(busiest(), 19, "all but the one that was answered");
  for (const name of names) assert(tries.get(name)! <= 5);
});

test("what has undone itself is asked for no more", async () => {
  const { cleanUps, owe, tries } = away(2);
  owe("soon", 30);
  owe("later");
  await until("the first is over", () => tries.get("later")! > 6);
  const asked = tries.get("soon")!;
  await until("the other is asked for", () => tries.get("later")! > 8);
  assertEquals(tries.get("soon"), asked);
  cleanUps.callOff("later");
  assert(cleanUps.isEmpty);
  await timersEnd();
});

test("what has undone itself while it was tried is let go of as that fails", async () => {
  const { cleanUps } = away(0);
  let fail = (_: Error) => {};
  const isOver = new Promise((go) => setTimeout(go, 20));
  cleanUps.add("k", 10, () => new Promise((_, reject) => fail = reject));
  await isOver;
  fail(new Error("away"));
  await settle();
  assert(cleanUps.isEmpty);
  await timersEnd();
});

test("a client that was closed is asked for nothing more", async () => {
  let isClosed = false;
  let tries = 0;
  const cleanUps = new CleanUps(() => isClosed);
  cleanUps.add("k", 600_000, () => {
    tries++;
    return Promise.reject(new Error("away"));
  });
  await until("it was asked again", () => tries > 1);
  isClosed = true;
  const sofar = tries;
  await until("it is let go of", () => cleanUps.isEmpty);
  assertEquals(tries, sofar);
  await timersEnd();
});

test("one that is never answered does not keep the others waiting", async () => {
  const { cleanUps, owe, back, tries } = away(0);
  let isSilent = false;
  cleanUps.add(
    "silent",
    60_000,
    () => isSilent ? new Promise(() => {}) : Promise.reject(new Error("away")),
  );
  isSilent = true;
  owe("other");
  back();
  await until("the other is done", () => tries.get("other")! >= 2);
  cleanUps.callOff("silent");
  await timersEnd();
});

test("a try that is never answered is made again, and waited for by who calls it off", async () => {
  const { cleanUps } = away(0);
  let times = 0;
  let answer = () => {};
  cleanUps.add("k", 60_000, () => {
    times++;
    return new Promise((go) => answer = go);
  });
  const first = answer;
  await until("it is made again", () => times === 2);
  const calledOff = cleanUps.callOff("k");
  let isSettled = false;
  void calledOff!.then(() => isSettled = true);
  answer();
  await settle();
  assertEquals(isSettled, false, "the first may be done yet");
  first();
  await calledOff;
  await timersEnd();
});
