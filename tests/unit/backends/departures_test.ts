/** Releases that leave together: what goes out, in which order, and what fails. */
import { assertEquals } from "@std/assert";

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

/** A backend whose port notes what is sent, and answers what it is told to. */
function backendThat(answer: Answer) {
  const sent: string[] = [];
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
      const reply = answer(text, keys);
      return Promise.resolve(reply ?? (isOne ? 1 : owners.map(() => 1)));
    },
  };
  const backend = new RedisBackend(port);
  const release = (key: string) => backend.release({ key, owner: `of ${key}` });
  return { backend, release, sent };
}

const names = (count: number) =>
  Array.from({ length: count }, (_, i) => `k${i}`);

/** All that is under way is over. */
const calm = () => new Promise((go) => setTimeout(go));

test("releases of one moment leave together, by a hundred", async () => {
  const { release, sent } = backendThat(() => undefined);
  // Two moments: the first can't tell whether there is more to come.
  for (const _ of ["first", "then"]) {
    sent.length = 0;
    const verdicts = await Promise.all(names(250).map(release));
    assertEquals(verdicts, Array.from({ length: 250 }, () => "done"));
    await calm();
  }
  assertEquals(sent, [
    `ALL ${names(100).join(" ")}`,
    `ALL ${names(200).slice(100).join(" ")}`,
    `ALL ${names(250).slice(200).join(" ")}`,
  ]);
});

test("a release alone goes at once, and as it always did", async () => {
  const { release, sent } = backendThat(() => undefined);
  for (const key of ["a", "b"]) {
    const releasing = release(key);
    assertEquals(sent.splice(0), [`RELEASE ${key}`]);
    assertEquals(await releasing, "done");
    await calm();
  }
});

test("each is told its own answer", async () => {
  const { release } = backendThat((sent) =>
    sent.startsWith("ALL") ? [1, -1, 0, 1] : undefined
  );
  const verdicts = await Promise.all(["x", "a", "b", "c", "d"].map(release));
  const all: Verdict[] = ["done", "done", "taken", "absent", "done"];
  assertEquals(verdicts, all);
});

test("nothing that is asked of a key overtakes its release", async () => {
  const { backend, release, sent } = backendThat(() => undefined);
  const acquire = (key: string) =>
    backend.tryAcquire({ key, owner: "next", ttlMs: 1_000 });
  await Promise.all(["a", "b", "c"].map(release));
  await calm();
  sent.length = 0;
  const all = [release("a"), release("b"), acquire("c"), acquire("b")];
  // Of an owner that was lost before, and of the one after it.
  await Promise.all([...all, release("c"), release("d"), release("c")]);
  assertEquals(sent, [
    "SET c",
    "ALL a b",
    "SET b",
    "ALL c d",
    "RELEASE c",
  ]);
});

test("what the server refuses together is asked one by one", async () => {
  const refused = new Error("NOPERM No permissions to access a key");
  const { release, sent } = backendThat((sent) =>
    sent.includes("secret") ? Promise.reject(refused) : undefined
  );
  const all = ["x", "a", "secret", "b"];
  const outcomes = await Promise.allSettled(all.map(release));
  assertEquals(outcomes.map((it) => it.status === "fulfilled" && it.value), [
    ...["done", "done"],
    ...[false, "done"],
  ]);
  await calm();
  sent.length = 0;
  await Promise.all([release("a"), release("b")]);
  assertEquals(sent, ["RELEASE a", "RELEASE b"], "it is not tried again");
});

test("what has no answer is sent once, and each is told", async () => {
  const cut = Object.assign(new Error("cut"), { code: "ECONNRESET" });
  const { release, sent } = backendThat((text) => {
    if (text === "RELEASE x") return undefined;
    throw cut;
  });
  const outcomes = await Promise.allSettled(["x", "a", "b"].map(release));
  assertEquals(outcomes.map(({ status }) => status), [
    ...["fulfilled", "rejected", "rejected"],
  ]);
  assertEquals(sent, ["RELEASE x", "ALL a b"]);
});

test("where the server isn't ready, each is sent again", async () => {
  let times = 0;
  const loading = new Error("LOADING Redis is loading the dataset in memory");
  const { release, sent } = backendThat((text) =>
    text === "ALL a b" && times++ === 0 ? Promise.reject(loading) : undefined
  );
  const verdicts = await Promise.all(["x", "a", "b"].map(release));
  assertEquals(verdicts, ["done", "done", "done"]);
  assertEquals(sent, ["RELEASE x", "ALL a b", "RELEASE a", "RELEASE b"]);
});
