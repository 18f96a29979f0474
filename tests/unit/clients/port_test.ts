/** What all clients share: masters that come and go, and prefixes of keys. */
import { assertEquals } from "@std/assert";

import { listLocks } from "@dreamer/utils/lock";

import { listenAtAll, type NodeListener } from "../../../src/clients/port.ts";
import { test } from "../../support/test.ts";
import { until } from "../../support/until.ts";

test("who listens at each master is ready with all, and follows them", async () => {
  let masters = ["a", "b"];
  const ears = new Map<string, NodeListener>();
  const closed: string[] = [];
  const heard: string[] = [];
  let ready = 0;
  const close = listenAtAll(
    () => masters.map((name) => [name, name] as const),
    (name, listener) => {
      ears.set(name, listener);
      return () => void closed.push(name);
    },
    {
      onMessage: (message) => void heard.push(message),
      onReady: () => void ready++,
      onFail: () => void heard.push("failed"),
      onCut: () => void heard.push("cut"),
      onClosed: () => void heard.push("closed"),
    },
  );
  assertEquals([...ears.keys()], ["a", "b"]);
  ears.get("a")!.onReady();
  assertEquals(ready, 0, "b could be missed");
  // Nobody waits for one that can't be reached.
  ears.get("b")!.onGone();
  assertEquals(ready, 1);
  ears.get("a")!.onMessage("hello");

  // Looked for again, with a third that has become one; and one is no more.
  ears.delete("b");
  masters = ["b", "c"];
  await until("it is looked for", () => ears.has("b") && ears.has("c"));
  assertEquals(closed, ["b", "a"]);
  ears.get("c")!.onReady();
  assertEquals(ready, 2, "told of each that is there from now on");
  ears.get("c")!.onMessage("again");
  // Not there a second time: that is no news.
  ears.get("b")!.onGone();
  assertEquals(ready, 2);
  const all = ["hello", "cut", "again"];
  assertEquals(heard, all);
  ears.get("c")!.onGone();
  assertEquals(heard, [...all, "cut"]);
  close();
  assertEquals(closed, ["b", "a", "b", "c"]);
  masters = ["d"];
  await new Promise((go) => setTimeout(go, 1_100));
  assertEquals(ears.has("d"), false);
});

test("the prefix of a client stands for itself in a pattern, whatever is in it", async () => {
  const keyPrefix = "a*[1]?\\:";
  const patterns: string[] = [];
  const never = () => Promise.reject(new Error("not asked"));
  const ioredis = {
    ...{ call: never, set: never, eval: never, evalsha: never },
    options: { keyPrefix },
    scan: (_cursor: string, _match: string, pattern: string) => {
      patterns.push(pattern);
      return Promise.resolve(["0", []]);
    },
  };
  const nodeRedis = {
    ...{ isOpen: true, set: never, eval: never, evalSha: never },
    _keyPrefix: keyPrefix,
    scan: (_cursor: string, { MATCH }: { MATCH: string }) => {
      patterns.push(MATCH);
      return Promise.resolve({ cursor: "0", keys: [] });
    },
  };
  for (const client of [ioredis, nodeRedis]) {
    for await (const { key } of listLocks(client, "lock:*")) {
      throw new Error(`found: ${key}`);
    }
  }
  const expected = "a\\*\\[1\\]\\?\\\\:lock:*";
  assertEquals(patterns, [expected, expected]);
});
