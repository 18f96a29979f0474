/** Whether a client of node-redis is spoken to by words, or by typed commands. */
import { assertEquals } from "@std/assert";

import { acquireLock, type NodeRedisClient } from "@dreamer/utils/lock";
import { test } from "../../support/test.ts";

/** A client that grants everything, and by which of its methods. */
function fakeClient(more: object) {
  const by: string[] = [];
  const answer = (name: string, reply: unknown) => () => {
    by.push(name);
    return Promise.resolve(reply);
  };
  const client = {
    isOpen: true,
    set: answer("set", "OK"),
    eval: answer("eval", 1),
    evalSha: answer("evalSha", 1),
    sendCommand: ([name]: string[]) => {
      by.push(name);
      return Promise.resolve(name === "SET" ? "OK" : 1);
    },
    duplicate: () => {},
    ...more,
  };
  return { client: client as NodeRedisClient, by };
}

async function wayTo(more: object): Promise<string[]> {
  const { client, by } = fakeClient(more);
  const lock = await acquireLock(client, "k");
  assertEquals(await lock.release(), true);
  return by;
}

const WORDS = ["SET", "EVALSHA"];
const TYPED = ["set", "evalSha"];
const plain = { destroy: () => {}, options: {} };

test("node-redis: a plain client is sent words", async () => {
  assertEquals(await wayTo(plain), WORDS);
});

test("node-redis: typed commands where they do more than that", async () => {
  const prefixed = { ...plain, options: { keyPrefix: "app:" } };
  assertEquals(await wayTo(prefixed), TYPED);
  // What withCommandOptions() gives.
  assertEquals(await wayTo({ ...plain, _commandOptions: {} }), TYPED);
  // Version 4, a pool, a Cluster.
  assertEquals(await wayTo({ options: {} }), TYPED);
  assertEquals(await wayTo({ ...plain, duplicate: undefined }), TYPED);
  assertEquals(await wayTo({ ...plain, masters: [] }), TYPED);
});
