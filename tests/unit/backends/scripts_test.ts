/** Scripts on their way to a server that has not seen them. */
import { assertEquals, assertRejects } from "@std/assert";

import { RELEASE, run } from "../../../src/backends/scripts.ts";
import type { Port } from "../../../src/clients/port.ts";
import { test } from "../../support/test.ts";

test("what may have been done is not sent again in full", async () => {
  const sent: string[] = [];
  const unseen = new Error("NOSCRIPT No matching script.");
  const answers: (() => Promise<unknown>)[] = [
    () => Promise.reject(unseen),
    () => Promise.reject(unseen),
    // By now the server has seen it: it does this, and the answer is lost.
    () => Promise.reject(new Error("Socket closed unexpectedly")),
  ];
  const port: Port = {
    setIfAbsent: () => Promise.reject(new Error("not asked for")),
    eval(_lua, [key]) {
      sent.push(`in full ${key}`);
      return Promise.resolve(1);
    },
    evalSha(_sha, [key]) {
      sent.push(key);
      return answers.shift()!();
    },
  };
  const release = (key: string) =>
    run(port, RELEASE, [key, `{${key}}:line`], ["owner"]);
  const [one, other] = [release("one"), release("other")];
  other.catch(() => {});
  assertEquals(await one, "done");
  await assertRejects(() => other, Error, "Socket closed");
  assertEquals(sent, ["one", "other", "in full one", "other"]);
});

test("a script whose bringer has no answer is brought by the next", async () => {
  const brought: string[] = [];
  const port: Port = {
    setIfAbsent: () => Promise.reject(new Error("not asked for")),
    // By requests of their own, of which one is lost.
    eval(_lua, [key]) {
      brought.push(key);
      return key === "lost" ? new Promise(() => {}) : Promise.resolve(1);
    },
    evalSha: () => Promise.reject(new Error("NOSCRIPT No matching script.")),
  };
  const release = (key: string) =>
    run(port, RELEASE, [key, `{${key}}:line`], ["owner"]);
  void release("lost");
  assertEquals(await release("next"), "done");
  assertEquals(brought, ["lost", "next"]);
});
