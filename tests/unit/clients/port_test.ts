/** Listening at each master of a Cluster, with masters that come and go. */
import { assertEquals } from "@std/assert";

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
