/** Releases that leave together: what goes out, in which order, and what fails. */
import { assertEquals, assertRejects } from "@std/assert";

import { LockBackendError } from "@dreamer/utils/lock";

import type { Verdict } from "../../../src/core/backend.ts";
import type { Port } from "../../../src/clients/port.ts";
import { RedisBackend } from "../../../src/backends/redis.ts";
import {
  prepare,
  RELEASE,
  RELEASE_ALL,
} from "../../../src/backends/scripts.ts";
import { test } from "../../support/test.ts";

await Promise.all([RELEASE, RELEASE_ALL].map(prepare));

/** What a server says to a command: its name and its keys. */
type Answer = (sent: string, keys: readonly string[]) => unknown;

/**
 * A backend whose port notes what is sent, and answers what it is told to; it has
 * just released many, so that the next of a moment are gathered.
 */
async function backendThat(answer: Answer) {
  const sent: string[] = [];
  let isReady = false;
  const port: Port = {
    setIfAbsent(key) {
      sent.push(`SET ${key}`);
      return Promise.resolve("OK");
    },
    eval: () => Promise.reject(new Error("by its digest, please")),
    evalSha(sha, keys, owners) {
      const isOne = sha === RELEASE.sha;
      const locks = keys.slice(0, isOne ? 1 : owners.length);
      const text = `${isOne ? "RELEASE" : "ALL"} ${locks.join(" ")}`;
      sent.push(text);
      // At once, as a client of which somebody has made something else may.
      const reply = isReady ? answer(text, keys) : undefined;
      return Promise.resolve(reply ?? (isOne ? 1 : owners.map(() => 1)));
    },
  };
  const backend = new RedisBackend(port);
  const release = (key: string) => backend.release({ key, owner: `of ${key}` });
  await Promise.all(["one", "two"].map(release));
  await undefined;
  isReady = true;
  sent.length = 0;
  return { backend, release, sent };
}

const names = (count: number) =>
  Array.from({ length: count }, (_, i) => `k${i}`);

test("releases of one moment leave together, by a hundred", async () => {
  const { release, sent } = await backendThat(() => undefined);
  const verdicts = await Promise.all(names(250).map(release));
  assertEquals(verdicts, Array.from({ length: 250 }, () => "done"));
  // But for the first, which may be alone.
  assertEquals(sent, [
    "RELEASE k0",
    `ALL ${names(101).slice(1).join(" ")}`,
    `ALL ${names(201).slice(101).join(" ")}`,
    `ALL ${names(250).slice(201).join(" ")}`,
  ]);
});

test("who has not released many of late sends each at once", async () => {
  const { release, sent } = await backendThat(() => undefined);
  await new Promise((go) => setTimeout(go, 50));
  const releasing = names(3).map(release);
  assertEquals(sent, ["RELEASE k0", "RELEASE k1", "RELEASE k2"]);
  assertEquals(await Promise.all(releasing), ["done", "done", "done"]);
});

test("several keys of one lock leave before release() returns", async () => {
  const { backend, sent } = await backendThat(() => undefined);
  await new Promise((go) => setTimeout(go, 50));
  const line = "line";
  const fail = (cause: unknown): never => {
    throw cause;
  };
  const leaving = names(3).map((key, i) =>
    backend.releaseThen({ key, owner: line }, i === 0, (it) => it, fail)
  );
  assertEquals(sent, []);
  backend.flush();
  assertEquals(sent, ["ALL k0 k1 k2"]);
  assertEquals(await Promise.all(leaving), ["done", "done", "done"]);
});

test("a release alone goes at once, and as it always did", async () => {
  const { release, sent } = await backendThat(() => undefined);
  for (const key of ["a", "b"]) {
    // Also right after a moment with many.
    const releasing = release(key);
    assertEquals(sent.splice(0), [`RELEASE ${key}`]);
    assertEquals(await releasing, "done");
  }
});

test("each is told its own answer", async () => {
  const { release } = await backendThat((sent) =>
    sent.startsWith("ALL") ? [1, -1, 0, 1] : undefined
  );
  const verdicts = await Promise.all(["x", "a", "b", "c", "d"].map(release));
  const all: Verdict[] = ["done", "done", "taken", "absent", "done"];
  assertEquals(verdicts, all);
});

test("no attempt on a key overtakes its release", async () => {
  const { backend, release, sent } = await backendThat(() => undefined);
  const acquire = (key: string) =>
    backend.tryAcquire({ key, owner: "next", ttlMs: 1_000 });
  const first = [release("x"), release("a"), release("b")];
  const all = [...first, acquire("c"), acquire("b")];
  // Of an owner that was lost before, and of the one after it.
  await Promise.all([...all, release("c"), release("d"), release("c")]);
  assertEquals(sent, [
    "RELEASE x",
    "SET c",
    "ALL a b",
    "SET b",
    "ALL c d",
    "RELEASE c",
  ]);
});

test("what is there and is no lock is asked about alone", async () => {
  const error = new Error("WRONGTYPE Operation against a key");
  const { release, sent } = await backendThat((sent) =>
    sent.startsWith("ALL")
      ? [1, -2]
      : sent.endsWith("list")
      ? Promise.reject(error)
      : undefined
  );
  const outcomes = await Promise.allSettled(["x", "a", "list"].map(release));
  assertEquals(outcomes.map(({ status }) => status), [
    ...["fulfilled", "fulfilled", "rejected"],
  ]);
  assertEquals(sent, ["RELEASE x", "ALL a list", "RELEASE list"]);
});

test("what the server refuses together is asked one by one", async () => {
  const refused = new Error("NOPERM No permissions to access a key");
  const { release, sent } = await backendThat((sent) =>
    sent.includes("secret") ? Promise.reject(refused) : undefined
  );
  const all = ["x", "a", "secret", "b"];
  const outcomes = await Promise.allSettled(all.map(release));
  assertEquals(
    outcomes.map((it) => it.status === "fulfilled" && it.value),
    ["done", "done", false, "done"],
  );
  sent.length = 0;
  await Promise.all(["x", "a", "b"].map(release));
  const each = ["RELEASE x", "RELEASE a", "RELEASE b"];
  assertEquals(sent, each, "it is not tried again");
});

test("what has no answer is sent once, and each is told", async () => {
  const cut = Object.assign(new Error("cut"), { code: "ECONNRESET" });
  const { release, sent } = await backendThat(() => {
    throw cut;
  });
  const outcomes = await Promise.allSettled(["x", "a", "b"].map(release));
  assertEquals(outcomes.map(({ status }) => status), [
    ...["rejected", "rejected", "rejected"],
  ]);
  assertEquals(sent, ["RELEASE x", "ALL a b"]);
});

test("a client's wrapper that throws makes a release reject", async () => {
  const { release } = await backendThat(() => {
    throw new Error("no more today");
  });
  await new Promise((go) => setTimeout(go, 50));
  let releasing: Promise<Verdict> | undefined;
  try {
    releasing = release("alone");
  } catch {
    // Below.
  }
  assertEquals(releasing instanceof Promise, true);
  await assertRejects(() => releasing!, LockBackendError);
});

test("where the server isn't ready, each is sent again", async () => {
  let times = 0;
  const loading = new Error("LOADING Redis is loading the dataset in memory");
  const { release, sent } = await backendThat((text) =>
    text === "ALL a b" && times++ === 0 ? Promise.reject(loading) : undefined
  );
  const verdicts = await Promise.all(["x", "a", "b"].map(release));
  assertEquals(verdicts, ["done", "done", "done"]);
  assertEquals(sent.slice(0, 2), ["RELEASE x", "ALL a b"]);
  assertEquals(sent.slice(2).join(" ").match(/\b[ab]\b/g)?.sort(), ["a", "b"]);
});
