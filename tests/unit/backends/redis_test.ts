/** What a backend makes of answers that a real server can hardly be brought to. */
import { assertEquals, assertInstanceOf, assertRejects } from "@std/assert";

import { LockBackendError } from "@dreamer/utils/lock";

import { RedisBackend } from "../../../src/backends/redis.ts";
import type { Port } from "../../../src/clients/port.ts";
import { test } from "../../support/test.ts";
import { until } from "../../support/until.ts";

/** A Cluster, which says of each key how many replicas have it, or fails. */
function clusterThat(has: Record<string, number | Error>) {
  const extended: string[] = [];
  const asked: number[] = [];
  const port: Port = {
    isCluster: true,
    setIfAbsent: () => Promise.resolve("OK"),
    eval: (_lua, keys) => {
      extended.push(...keys);
      return Promise.resolve(keys.map(() => 1));
    },
    evalAndWait(_lua, keys, _args, _replicas, ms) {
      asked.push(ms);
      const answer = has[keys[0]];
      return answer instanceof Error
        ? Promise.reject(answer)
        : Promise.resolve([[1], answer]);
    },
  };
  const claims = Object.keys(has).map((key) => ({
    ...{ key, owner: `of ${key}`, ttlMs: 10_000 },
  }));
  const confirm = (ms = 20) => new RedisBackend(port).confirm!(claims, 2, ms);
  return { confirm, extended, asked };
}

test("of several keys in a Cluster it is the fewest replicas that count", async () => {
  for (const [a, b, c] of [[1, 2, 2], [2, 1, 2], [2, 2, 1]]) {
    assertEquals(await clusterThat({ a, b, c }).confirm(), 1);
  }
});

test("replicas are asked for a whole number of milliseconds, and never without end", async () => {
  const { confirm, asked } = clusterThat({ a: 2 });
  for (const ms of [0.3, 12.7]) await confirm(ms);
  assertEquals(asked, [1, 12]);
});

test("a key that has moved is asked for where the Cluster redirects to", async () => {
  for (const reply of ["MOVED", "NOPERM"]) {
    const error = new Error(`${reply} 7 elsewhere`);
    const { confirm, extended } = clusterThat({ a: error });
    await assertRejects(() => confirm(), LockBackendError, reply);
    assertEquals(extended, reply === "MOVED" ? ["a"] : []);
  }
});

test("who waits asks again where nobody knows to whom a lock was handed over", async () => {
  for (
    const handedOver of ["0", new Error("NOPERM this user"), "1 - - - - - - -"]
  ) {
    let gaps = 0;
    const port: Port = {
      setIfAbsent: () => Promise.resolve("OK"),
      // Somebody stands in line, and then the answer to the one or to another.
      eval: (lua) =>
        lua.includes("handOver")
          ? handedOver instanceof Error
            ? Promise.reject(handedOver)
            : Promise.resolve(handedOver)
          : Promise.resolve(2),
    };
    const backend = new RedisBackend(port);
    const never = () => {};
    void backend.line!.open({
      ...{ onTurn: never, onEnd: never, onReminder: never, onDeaf: never },
      ...{ onGap: () => void gaps++, onClosed: never },
    });
    await backend.release({ key: "k", owner: "o" }).catch(() => {});
    assertEquals(gaps, String(handedOver).startsWith("1") ? 0 : 1);
  }
});

test("a place in line that was asked for in passing is left where nobody answered", async () => {
  for (const isInPassing of [true, false]) {
    const left: string[] = [];
    const port: Port = {
      setIfAbsent: () => Promise.resolve("OK"),
      eval(_lua, _keys, args) {
        const [owner, , , leaving] = args;
        if (!owner.startsWith("o")) return Promise.reject(new Error("cut"));
        left.push(leaving);
        return Promise.resolve("0");
      },
    };
    const { line } = new RedisBackend(port);
    const wish = { key: "k", owner: "o1", ttlMs: 10_000, tokens: 0 };
    const [answer] = await line!.stand([wish], isInPassing);
    assertInstanceOf(answer, LockBackendError);
    // Who goes on by another name may stand there by both.
    if (!isInPassing) line!.leave({ ...wish, owner: "o2", former: "o3" });
    const expected = isInPassing
      ? ["10000 0 o1"]
      : ["10000 0 o2", "10000 0 o3"];
    await until("it is left", () => left.length >= expected.length);
    assertEquals(left, expected);
  }
});

test("a hand-over that a client sends again after a cut is no loss", async () => {
  for (const isCut of [true, false]) {
    let connection = "the first";
    const port: Port = {
      setIfAbsent: () => Promise.resolve("OK"),
      connection: () => connection,
      eval() {
        if (isCut) connection = "the second";
        return Promise.resolve("0");
      },
    };
    const { line } = new RedisBackend(port);
    const hold = { key: "k", owner: "o" };
    const { verdict } = await line!.handOver(hold, undefined);
    assertEquals(verdict, isCut ? "unclear" : "absent");
  }
});
