/** Listening by Bun's client, which loses its subscriptions without a word. */
import { assertEquals, assertRejects } from "@std/assert";

import { bun, type BunClient } from "../../../src/clients/bun.ts";
import { test, timersLeft } from "../../support/test.ts";
import { until } from "../../support/until.ts";

/** A connection as Bun has it: listeners add up, across reconnects too. */
class FakeEar implements BunClient {
  connected = true;
  isClosed = false;
  subscriptions = 0;
  onconnect: (() => void) | null = null;
  onclose: ((reason: unknown) => void) | null = null;
  readonly #listeners: ((message: string) => void)[] = [];

  send(): Promise<unknown> {
    return Promise.reject(new Error("NOPERM"));
  }

  connect(): Promise<void> {
    this.connected = true;
    this.onconnect?.();
    return Promise.resolve();
  }

  duplicate(): Promise<unknown> {
    throw new Error("It was called");
  }

  subscribe(_: string, listener: (message: string) => void): Promise<void> {
    this.#listeners.push(listener);
    this.subscriptions++;
    return Promise.resolve();
  }

  close(): void {
    this.isClosed = true;
    this.onclose?.(new Error("Connection closed"));
  }

  publish(message: string): void {
    for (const listener of this.#listeners) listener(message);
  }
}

function listening(isConnected = true) {
  const ears: FakeEar[] = [];
  const heard: string[] = [];
  const client: BunClient = {
    connected: true,
    send: () => Promise.reject(new Error("It was called")),
    duplicate() {
      const ear = new FakeEar();
      ear.connected = isConnected;
      ears.push(ear);
      return Promise.resolve(ear);
    },
  };
  const close = bun(client).listen!("channel", {
    onMessage: (message) => heard.push(message),
    onReady: () => heard.push("ready"),
    onFail: () => heard.push("failed"),
    onCut: () => heard.push("cut"),
    onClosed: () => heard.push("closed"),
  });
  const ready = (times: number) =>
    until(
      `ready ${times} times`,
      () => heard.filter((what) => what === "ready").length === times,
    );
  return { ears, heard, close, ready };
}

test("Bun's client: after a reconnect it subscribes again, and hears each message once", async () => {
  const { ears, heard, close, ready } = listening();
  await ready(1);
  ears[0].publish("one");
  for (const times of [2, 3]) {
    ears[0].onconnect!();
    await ready(times);
  }
  ears[0].publish("two");
  assertEquals(heard, ["ready", "one", "ready", "ready", "two"]);
  assertEquals([ears.length, ears[0].subscriptions], [1, 3]);
  close();
  assertEquals(ears[0].isClosed, true);
  assertEquals(timersLeft(), 0);
});

test("Bun's client: a connection that gave up is followed by another", async () => {
  const { ears, heard, close, ready } = listening();
  await ready(1);
  ears[0].onclose!(new Error("Connection has failed"));
  await ready(2);
  ears[1].publish("heard");
  assertEquals(heard, ["ready", "cut", "ready", "heard"]);
  assertEquals(ears[0].isClosed, true);
  close();
  assertEquals(ears[1].isClosed, true);
  assertEquals([ears.length, timersLeft()], [2, 0]);
});

test("Bun's client: a duplicate that is not connected yet is, and subscribed once", async () => {
  const { ears, heard, close, ready } = listening(false);
  await ready(1);
  assertEquals([heard, ears[0].subscriptions], [["ready"], 1]);
  close();
});

test("Bun's client: one that is not wanted any more when it comes is closed", async () => {
  const { ears, heard, close } = listening();
  close();
  await until("it is closed", () => ears[0].isClosed);
  assertEquals([heard, ears[0].subscriptions], [[], 0]);
});

test("Bun's client counts as closed once it has failed, until it is connected again", async () => {
  const client = {
    connected: true,
    send: () => Promise.reject(new Error("Connection has failed")),
    duplicate: () => Promise.reject(new Error("Connection has failed")),
  };
  const port = bun(client);
  assertEquals(port.isClosed!(), false);
  client.connected = false;
  assertEquals(port.isClosed!(), false, "it may come back by itself");
  await assertRejects(async () => await port.setIfAbsent("k", "o", "EX", 1));
  assertEquals(port.isClosed!(), true);
  client.connected = true;
  assertEquals(port.isClosed!(), false);
});
