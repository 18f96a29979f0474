/** Waiting, in memory and through every client, with a real server behind. */
import { assertEquals } from "@std/assert";

import type { LockEvent } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { clients } from "../support/clients.ts";
import { FakeClock, settle } from "../support/fake_clock.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { stall } from "../support/stall.ts";
import { after, before, timersEnd } from "../support/test.ts";
import { waitContract } from "./wait_contract.ts";
import { twoClients } from "./wait_worlds.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(async () => {
  await server.stop();
  await timersEnd();
});

const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));
const noKeys = () => Promise.resolve(0);

/** One place for all: who is who is told by the label. */
function inMemory(clock?: FakeClock) {
  const events: LockEvent[] = [];
  const on = memory({
    ...clock && { clock },
    onEvent(event) {
      if (event.label === "patient" || event.type === "refused") {
        events.push(event);
      }
    },
  });
  return {
    here: { on, options: { label: "here" } },
    there: { on, options: { label: "there" } },
    observed: { on, events },
    keysLeft: noKeys,
  };
}

waitContract("memory", "called", () =>
  Promise.resolve({
    ...inMemory(),
    pass,
    stall,
    served: (waiting) => waiting,
    inLine: () => settle(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }));

waitContract("memory, fake clock", "called", () => {
  const clock = new FakeClock();
  return Promise.resolve({
    ...inMemory(clock),
    pass: (ms) => clock.advance(ms),
    stall: (ms) => clock.stall(ms),
    async served(waiting) {
      let isDone = false;
      const done = () => isDone = true;
      waiting.then(done, done);
      await settle();
      for (let ms = 0; !isDone; ms++) {
        if (ms > 20_000) throw new Error("Not served in 20 s by that clock");
        await clock.advance(1);
      }
      return await waiting;
    },
    inLine: () => settle(),
    async [Symbol.asyncDispose]() {
      // Who waited listens on for a second after the last of it.
      await clock.advance(3_000);
      assertEquals(clock.pending, 0, "timers left behind");
    },
  });
});

for (const { name, isCalled, open } of clients) {
  const way = isCalled ? "called" : "asking";
  waitContract(name, way, () =>
    twoClients(
      () => open(server.url),
      (_, ...args) => server.command(...args),
    ));
}
