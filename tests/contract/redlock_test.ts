/** The contracts over a quorum: of memories, and of real servers. */
import { assertEquals } from "@std/assert";

import { type LockEvent, redlock } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { clients, type OpenClient } from "../support/clients.ts";
import { FakeClock, settle } from "../support/fake_clock.ts";
import { FlakyServer } from "../support/flaky.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { stall } from "../support/stall.ts";
import { after, before } from "../support/test.ts";
import { until } from "../support/until.ts";
import { eventContract } from "./event_contract.ts";
import { lockContract } from "./lock_contract.ts";
import { waitContract } from "./wait_contract.ts";

const SIZE = 3;
let servers: RedisServer[];
before(async () => {
  servers = await Promise.all(Array.from({ length: SIZE }, () => startRedis()));
});
after(() => Promise.all(servers.map((server) => server.stop())));

const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));
const noKeys = () => Promise.resolve(0);
const memories = (clock?: FakeClock) =>
  Array.from({ length: SIZE }, () => memory(clock && { clock }));
const nothing = () => Promise.resolve();

/** What closes a world on `clock`: nobody may wait for it any more. */
function closing(clock: FakeClock) {
  return () => {
    assertEquals(clock.pending, 0, "timers left behind");
    return Promise.resolve();
  };
}

/** A client for each of the servers. */
async function openAll(name: string) {
  const kind = clients.find((kind) => kind.name === name)!;
  const opened: OpenClient[] = [];
  for (const { url } of servers) opened.push(await kind.open(url));
  const targets = opened.map(({ client }) => client);
  return {
    targets,
    close: async () => void await Promise.all(opened.map((it) => it.close())),
  };
}

/** How many keys like that are on all servers: who is last is waited for. */
async function keysOn(pattern: string): Promise<number> {
  const count = async () => {
    let keys = 0;
    for (const { command } of servers) {
      for (const key of await command("KEYS", pattern) as string[]) {
        if (!/:fence$/.test(key)) keys++;
        else if (Number(await command("PTTL", key)) < 0) keys++;
      }
    }
    return keys;
  };
  await until("no key is left", async () => await count() === 0)
    .catch(() => {});
  return await count();
}

lockContract("redlock of memories", () =>
  Promise.resolve({
    on: redlock(memories()),
    pass,
    keysLeft: noKeys,
    [Symbol.asyncDispose]: nothing,
  }));

lockContract("redlock of memories, fake clock", () => {
  const clock = new FakeClock();
  return Promise.resolve({
    on: redlock(memories(clock)),
    pass: (ms: number) => clock.advance(ms),
    keysLeft: noKeys,
    [Symbol.asyncDispose]: closing(clock),
  });
});

lockContract("redlock of memories, one away", () => {
  const clock = new FakeClock();
  const away = new FlakyServer({ clock });
  away.state = "frozen";
  const [a, b] = memories(clock);
  return Promise.resolve({
    on: redlock([a, b, away.on]),
    pass: (ms: number) => clock.advance(ms),
    keysLeft: noKeys,
    [Symbol.asyncDispose]: closing(clock),
  });
});

for (const name of ["ioredis", "redis"]) {
  lockContract(`redlock of ${name}`, async () => {
    const { targets, close } = await openAll(name);
    return {
      // Many begin at once, on a machine that may be busy.
      on: redlock(targets, { serverTimeoutMs: 10_000 }),
      pass,
      keysLeft: () => keysOn(`*contract:redlock of ${name}:*`),
      [Symbol.asyncDispose]: close,
    };
  });
}

eventContract("redlock of memories", (onEvent) => {
  const clock = new FakeClock();
  const flaky = Array.from({ length: SIZE }, () => new FlakyServer({ clock }));
  return Promise.resolve({
    on: redlock(flaky.map(({ on }) => on), { onEvent }),
    pass: (ms: number) => clock.advance(ms),
    async fail(isDown: boolean) {
      for (const it of flaky) it.state = isDown ? "down" : "well";
      await settle();
    },
    [Symbol.asyncDispose]: closing(clock),
  });
});

waitContract("redlock of memories", "no line", () => {
  const on = memories();
  const events: LockEvent[] = [];
  const onEvent = (event: LockEvent) => void events.push(event);
  return Promise.resolve({
    here: { on: redlock(on) },
    there: { on: redlock(on) },
    observed: { on: redlock(on, { onEvent }), events },
    pass,
    stall,
    served: (waiting) => waiting,
    inLine: () => pass(15),
    keysLeft: noKeys,
    [Symbol.asyncDispose]: nothing,
  });
});

waitContract("redlock of ioredis", "no line", async () => {
  const [here, there] = [await openAll("ioredis"), await openAll("redis")];
  const events: LockEvent[] = [];
  const onEvent = (event: LockEvent) => void events.push(event);
  return {
    here: { on: redlock(here.targets, { serverTimeoutMs: 10_000 }) },
    there: { on: redlock(there.targets, { serverTimeoutMs: 10_000 }) },
    observed: { on: redlock(here.targets, { onEvent }), events },
    pass,
    stall,
    served: (waiting) => waiting,
    inLine: () => pass(15),
    keysLeft: keysOn,
    async [Symbol.asyncDispose]() {
      await Promise.all([here.close(), there.close()]);
    },
  };
});
