import { assertEquals } from "@std/assert";

import { acquireLock } from "@dreamer/utils/lock";
import { test } from "../../support/test.ts";

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
    evalsha: () => (tell("release"), Promise.resolve(1)),
  };
  return { client, told, tell };
}

const KEYS = ["a", "b", "c"];

test("ioredis: what is sent in the same moment goes out in one write", async () => {
  const { client, told } = fakeClient("ready");
  const locks = await Promise.all(KEYS.map((key) => acquireLock(client, key)));
  const sets = KEYS.map((key) => `set ${key}`);
  assertEquals(told.splice(0), ["cork", ...sets, "uncork"]);
  await locks[0].release();
  assertEquals(told.splice(0), ["cork", "release", "uncork"]);
  await Promise.all(locks.map((lock) => lock.release()));
  assertEquals(told, ["cork", "release", "release", "uncork"]);
});

test("ioredis: a socket that was exchanged meanwhile is not held back for ever", async () => {
  const { client, told, tell } = fakeClient("ready");
  const acquiring = acquireLock(client, "a");
  client.stream = { cork: () => tell("no"), uncork: () => tell("no") };
  await acquiring;
  assertEquals(told, ["cork", "set a", "uncork"]);
});

test("ioredis: a socket that is not connected is left alone", async () => {
  for (const status of ["wait", "connecting", "reconnecting", "end"]) {
    const { client, told } = fakeClient(status);
    await acquireLock(client, "a");
    assertEquals(told, ["set a"]);
  }
});
