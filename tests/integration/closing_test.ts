/** What is to be over when a client is closed, or a lock given away. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Buffer } from "node:buffer";

import {
  acquireLock,
  DistributedLock,
  listLocks,
  LockBackendError,
  type LockTarget,
  redlock,
} from "@dreamer/utils/lock";
import { clients, sameAsTheLast } from "../support/clients.ts";
import { spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";

const WAITER = new URL("../faults/waiter.ts", import.meta.url);
const LATE = { allowTimers: "who waited listens on for a second" };

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

for (const name of ["ioredis", "ioredis5", "redis", "redis5"]) {
  test(`${name}: a client that is closed while its server is away ends the waiting`, async () => {
    await using away = await startRedis();
    await away.command("SET", "k", "another", "PX", 60_000);
    await using script = spawnScript(WAITER, [name, away.url]);
    const options = { ttl: 10, waitMs: 600_000 };
    for (const localTurns of [0, 16]) {
      const id = `${localTurns}`;
      const all = { ...options, localTurns };
      script.send({ do: "acquire", id, key: "k", options: all });
    }
    await until(
      "both stand in line",
      async () => await away.command("ZCARD", "{k}:line") === 2,
    );
    await away.kill();
    // On its way back, and not just cut off.
    await new Promise((go) => setTimeout(go, 500));
    script.send({ do: "close" });
    for (const _ of ["first", "second"]) {
      const { name } = await script.next("failed");
      assertEquals(name, "LockBackendError");
    }
    assertEquals(await script.exited, { code: 0, signal: null });
    assertEquals(script.stderr, "", "nothing is printed");
  });
}

test(
  "who waits over a quorum is told that its clients were closed",
  async () => {
    const open = clients.find(({ name }) => name === "ioredis")!.open;
    const servers = await Promise.all([1, 2, 3].map(() => startRedis()));
    const urls = servers.map(({ url }) => url);
    const [here, there] = await Promise.all(
      [1, 2].map(() => Promise.all(urls.map((url) => open(url)))),
    );
    const holder = await acquireLock(
      redlock(there.map(({ client }) => client)),
      "closed",
    );
    const waiting = acquireLock(
      redlock(here.map(({ client }) => client)),
      "closed",
      { waitMs: Infinity },
    );
    const told = assertRejects(() => waiting, LockBackendError);
    await until(
      "it is noted",
      async () => await servers[0].command("EXISTS", "{closed}:watch") === 1,
    );
    await Promise.all(here.map(({ close }) => close()));
    await told;
    await holder.release();
    await Promise.all(there.map(({ close }) => close()));
    await Promise.all(servers.map((server) => server.stop()));
  },
  LATE,
);

test("who gave a lock away that came by a turn listens no more", async () => {
  const open = clients.find(({ name }) => name === "ioredis")!.open;
  await using here = await open(server.url);
  await using there = await open(server.url);
  const options = { ttl: 600, waitMs: 10_000 };
  const first = await acquireLock(here.client, "given", options);
  const waiting = acquireLock(here.client, "given", {
    ...options,
    localTurns: 0,
  });
  await until(
    "it stands in line",
    async () => await server.command("EXISTS", "{given}:line") === 1,
  );
  await first.release();
  const lock = await waiting;
  await lock.extend();
  const listening = async () =>
    / sub=[1-9]/.test(String(await server.command("CLIENT", "LIST")));
  assert(await listening());
  const given = await DistributedLock.resume(
    there.client,
    JSON.stringify(lock),
  );
  await until("nobody listens", async () => !await listening());
  assertEquals(await given.release(), true);
}, LATE);

test(
  "several keys without tokens have none, and can be gone on with",
  async () => {
    for (const { name, open } of clients) {
      await using it = await open(server.url);
      const lock = await acquireLock(it.client, [`${name}:1`, `${name}:2`]);
      assertEquals(lock.fencingToken, undefined, name);
      const json = JSON.stringify(lock);
      const again = await DistributedLock.resume(it.client, json);
      assertEquals(await again.release(), true, name);
    }
  },
  LATE,
);

test("node-redis: locks are listed whatever the client puts before them, or makes of them", async () => {
  const { createClient } = await import("redis");
  const all = [
    { keyPrefix: "app:" },
    { commandOptions: { typeMapping: { 36: Buffer } } },
  ];
  for (const settings of all) {
    const client = createClient({
      ...sameAsTheLast,
      ...settings,
      url: server.url,
    });
    await client.connect();
    const on = client as unknown as LockTarget;
    const lock = await acquireLock(on, "listed:1");
    const found: string[] = [];
    for await (const { key } of listLocks(on, "listed:*")) found.push(key);
    assertEquals(found, ["listed:1"]);
    await lock.release();
    client.destroy();
  }
});
