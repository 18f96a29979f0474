import { assertEquals, assertRejects } from "@std/assert";

import { acquireLock, type DistributedLock } from "@dreamer/utils/lock";
import {
  prepare,
  RELEASE,
  RELEASE_ALL,
} from "../../../src/backends/scripts.ts";
import { ioredis } from "../../../src/clients/ioredis.ts";
import { test } from "../../support/test.ts";

// Or their first time takes longer than a moment.
await Promise.all([RELEASE, RELEASE_ALL].map(prepare));

/** A client that grants everything, and what it and its socket were told. */
function fakeClient(status: string) {
  const told: string[] = [];
  const tell = (what: string) => void told.push(what);
  const client = {
    status,
    stream: {
      cork: () => tell("cork"),
      uncork: () => tell("uncork"),
    },
    call: () => Promise.resolve("OK"),
    set: (key: string) => (tell(`set ${key}`), Promise.resolve("OK")),
    eval: () => Promise.resolve(1),
    evalsha(_sha: string, _keys: number, ...words: string[]) {
      tell("release");
      // A lock, a line and an owner each.
      const count = words.length / 3;
      return Promise.resolve(count === 1 ? 1 : Array(count).fill(1));
    },
  };
  return { client, told, tell };
}

const KEYS = ["a", "b", "c"];

test("ioredis: what is sent in the same moment goes out in one write", async () => {
  const { client, told } = fakeClient("ready");
  const acquire = () =>
    Promise.all(KEYS.map((key) => acquireLock(client, key)));
  const release = async (locks: readonly DistributedLock[]) =>
    void await Promise.all(locks.map((lock) => lock.release()));
  // The first might have been alone: it is on its way when the others come.
  const locks = await acquire();
  const [first, ...others] = KEYS.map((key) => `set ${key}`);
  assertEquals(told.splice(0), [first, "cork", ...others, "uncork"]);
  // From then on it is held back as well.
  await release(locks);
  const three = ["release", "release", "release"];
  assertEquals(told.splice(0), ["cork", ...three, "uncork"]);
  const again = await acquire();
  assertEquals(told.splice(0), ["cork", first, ...others, "uncork"]);
  // Of those who leave right after so many, all but the first go in one command.
  await release(again);
  assertEquals(told.splice(0), ["cork", "release", "release", "uncork"]);
});

test("ioredis: one command alone is not held back", async () => {
  const { client, told } = fakeClient("ready");
  for (const key of KEYS) {
    const lock = await acquireLock(client, key);
    await lock.release();
    assertEquals(told.splice(0), [`set ${key}`, "release"]);
  }
  // After several at once, one is held back for once.
  await Promise.all(KEYS.map((key) => acquireLock(client, key)));
  told.length = 0;
  await acquireLock(client, "a");
  assertEquals(told.splice(0), ["cork", "set a", "uncork"]);
  await acquireLock(client, "a");
  assertEquals(told, ["set a"]);
});

test("ioredis: a socket that was exchanged meanwhile is not held back for ever", async () => {
  const { client, told, tell } = fakeClient("ready");
  const acquiring = KEYS.map((key) => acquireLock(client, key));
  client.stream = { cork: () => tell("no"), uncork: () => tell("no") };
  await Promise.all(acquiring);
  assertEquals(told, ["set a", "cork", "set b", "set c", "uncork"]);
});

test("ioredis: a socket that is not connected is left alone", async () => {
  for (const status of ["wait", "connecting", "reconnecting", "end"]) {
    const { client, told } = fakeClient(status);
    await Promise.all(KEYS.map((key) => acquireLock(client, key)));
    assertEquals(told, ["set a", "set b", "set c"]);
  }
});

test("ioredis: of a chain what fails is an error, and no answer", async () => {
  const error = new Error("READONLY a replica");
  for (const replies of [[[error], [null, 1]], [[null, [1]], [error]]]) {
    const { client } = fakeClient("ready");
    const pipeline = () => ({ exec: () => Promise.resolve(replies) });
    const port = ioredis(Object.assign(client, { pipeline }));
    await assertRejects(
      () => port.evalAndWait!("return 1", ["k"], [], 1, 5),
      Error,
      "READONLY",
    );
  }
});
