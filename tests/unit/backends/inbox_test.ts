/** Where one is called, while the connection to listen by comes and goes. */
import { assert, assertEquals } from "@std/assert";

import { Inbox } from "../../../src/backends/inbox.ts";
import { RedisBackend } from "../../../src/backends/redis.ts";
import type { Listener, Port } from "../../../src/clients/port.ts";
import { drawOwner } from "../../../src/core/keys.ts";
import { test } from "../../support/test.ts";
import { until } from "../../support/until.ts";

/** A port that listens when it is told to, and what was asked of it. */
function listening() {
  const it = {
    listener: undefined as Listener | undefined,
    channels: [] as string[],
    hungUp: 0,
    /** What the server says of those who hear a test. */
    heard: 1,
  };
  const port: Port = {
    setIfAbsent: () => Promise.reject(new Error("not asked for")),
    eval: (_lua, _keys, [, inbox]) =>
      Promise.resolve([
        "0 30000 1 0 5 1 0",
        ...inbox ? [`test ${it.heard}`] : [],
      ]),
    listen(channel, listener) {
      it.channels.push(channel);
      it.listener = listener;
      return () => void it.hungUp++;
    },
  };
  return { it, port };
}

/** An open one, and what its owner was told. */
async function opened() {
  const { it, port } = listening();
  const inbox = new Inbox(port);
  const told: string[] = [];
  const opening = inbox.open({
    onMessage: (message) => told.push(message),
    onGap: () => told.push("gap"),
    onDeaf: () => told.push("deaf"),
    onClosed: () => told.push("closed"),
  });
  it.listener!.onReady();
  assertEquals(await opening, true);
  assert(inbox.name !== undefined);
  return { it, inbox, told };
}

test("who is cut off for long can't be called, until it is heard again", async () => {
  const { it, inbox, told } = await opened();
  const { name } = inbox;
  it.listener!.onCut();
  assertEquals(inbox.name, name, "most are back at once");
  await until("it is told", () => told.length > 0);
  assertEquals([inbox.name, told], [undefined, ["deaf"]]);
  it.listener!.onReady();
  assertEquals([inbox.name, told], [name, ["deaf", "gap"]]);
  inbox.close();
});

test("who is heard again at once is called by the same name all the while", async () => {
  const { it, inbox, told } = await opened();
  const { name } = inbox;
  it.listener!.onCut();
  it.listener!.onReady();
  // One that is cut off after it, and for long.
  const other = await opened();
  other.it.listener!.onCut();
  await until("the other is told", () => other.told.includes("deaf"));
  assertEquals([inbox.name, told], [name, ["gap"]]);
  inbox.close();
  other.inbox.close();
});

test("who can't listen any more hangs up, and is called no more", async () => {
  const { it, inbox, told } = await opened();
  it.listener!.onFail(new Error("NOPERM"));
  assertEquals([inbox.name, inbox.isOpen, it.hungUp], [undefined, false, 1]);
  assertEquals(told, ["deaf"]);
});

test("who listens by another connection is called by it, or asks", async () => {
  const { it, inbox, told } = await opened();
  const { name } = inbox;
  inbox.again();
  assertEquals(it.hungUp, 1);
  assertEquals(it.channels, Array(2).fill(it.channels[0]));
  // As long as that has no answer nobody knows.
  await until("it is told", () => told.length > 0);
  assertEquals([inbox.name, told], [undefined, ["deaf"]]);
  it.listener!.onReady();
  assertEquals(inbox.name, name);
  inbox.close();
  assertEquals(it.hungUp, 2);
});

/** A line before a key, of which one asks again and again. */
async function asking() {
  const { it, port } = listening();
  const line = new RedisBackend(port).line!;
  let tests = 0;
  const { eval: run } = port;
  port.eval = (lua, keys, args) => {
    if (args[1]) tests++;
    return run(lua, keys, args);
  };
  const ignore = () => {};
  const opening = line.open({
    ...{ onTurn: ignore, onEnd: ignore, onReminder: ignore },
    ...{ onGap: ignore, onDeaf: ignore, onClosed: ignore },
  });
  it.listener!.onReady();
  await opening;
  const wish = { key: "k", owner: drawOwner(), ttlMs: 1_000, tokens: 0 };
  const ask = (what: string, isEnough: () => boolean) =>
    until(what, async () => {
      await line.stand([{ ...wish, ticket: 5 }]);
      return isEnough();
    });
  return { it, line, ask, tests: () => tests };
}

test("whom nobody hears for, as the server says, listens anew at once", async () => {
  const { it, line, ask, tests } = await asking();
  it.heard = 0;
  await ask("it is tested", () => tests() > 0);
  assertEquals([it.channels.length, it.hungUp], [2, 1]);
  line.close!();
});

test("who hears its tests no more listens anew; who may send none does not", async () => {
  const [deaf, mute] = await Promise.all([asking(), asking()]);
  mute.it.heard = -1;
  await Promise.all(
    [deaf, mute].map(({ ask, tests }) =>
      ask("it is tested", () => tests() === 3)
    ),
  );
  assertEquals(deaf.it.channels.length, 2);
  assertEquals(mute.it.channels.length, 1);
  deaf.line.close!();
  mute.line.close!();
});
