/** The contracts in a Cluster of three masters, through every client of one. */
import { assert, assertEquals } from "@std/assert";

import { Cluster } from "ioredis";

import {
  acquireLock,
  inspectLock,
  listLocks,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { sameAsTheLast } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { keysLeft } from "../support/keys_left.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";
import { lockContract } from "./lock_contract.ts";
import { waitContract } from "./wait_contract.ts";
import { twoClients } from "./wait_worlds.ts";

let cluster: RedisCluster;
before(async () => void (cluster = await startCluster()));
after(async () => {
  await cluster.stop();
  await timersEnd();
});

/** A node-redis cluster does not tell that it was closed. */
const PATIENT = { allowTimers: "who waited listens on for a second" };

const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));

for (const { name, isCalled, open } of clusterClients) {
  lockContract(name, async () => {
    const { client, close } = await open(cluster.urls);
    return {
      on: client,
      pass,
      keysLeft: () => keysLeft(cluster),
      [Symbol.asyncDispose]: close,
    };
  });

  waitContract(
    name,
    isCalled ? "called" : "asking",
    () => twoClients(() => open(cluster.urls), cluster.commandFor),
  );

  test(`${name}: every legal key can be locked and waited for`, async () => {
    await using it = await open(cluster.urls);
    const keys = [
      "plain",
      "{tag}x",
      "a{b}c}",
      "a}b",
      "{}x",
      "x{",
      "}{",
      "{}",
      "tag",
      "{tag}",
    ];
    await Promise.all(keys.map(async (key) => {
      const lock = await acquireLock(it.client, key, { fencing: true });
      const next = acquireLock(it.client, key, {
        waitMs: 10_000,
        fencing: true,
      });
      await until("it is refused", async () => {
        const third = await acquireLock(it.client, key, { throwOnFail: false });
        return third === null;
      });
      assertEquals(await lock.release(), true);
      const second = await next;
      assert(second.fencingToken! > lock.fencingToken!);
      assertEquals(await second.release(), true);
    }));
    const [sizes, fences] = await Promise.all([
      cluster.command("DBSIZE"),
      cluster.command("KEYS", "*:fence"),
    ]);
    const sum = sizes.reduce<number>((sum, size) => sum + Number(size), 0);
    assertEquals(sum, fences.flat().length, "more than fences is left");
    await cluster.command("FLUSHALL");
  }, PATIENT);

  test(
    `${name}: who comes for one key in the same moment asks together`,
    async () => {
      await using it = await open(cluster.urls);
      const key = `together:${name}`;
      const options = {
        waitMs: 10_000,
        localTurns: 0,
        throwOnFail: true as const,
      };
      const inLine = (count: number) =>
        until(
          `${count} in line`,
          async () =>
            await cluster.commandFor(key, "ZCARD", `{${key}}:line`) === count,
        );
      const holder = await acquireLock(it.client, key);
      const first = acquireLock(it.client, key, options);
      await inLine(1);
      await cluster.command("CONFIG", "RESETSTAT");
      const others = Array.from(
        { length: 50 },
        () => acquireLock(it.client, key, options),
      );
      await inLine(51);
      const stats = await cluster.commandFor(key, "INFO", "commandstats");
      const [, calls] = /cmdstat_evalsha:calls=(\d+)/.exec(String(stats))!;
      assert(Number(calls) < 10, `${calls} scripts`);
      await holder.release();
      for (const next of [first, ...others]) await (await next).release();
    },
    PATIENT,
  );

  test(`${name}: listLocks() finds those of every master`, async () => {
    await using it = await open(cluster.urls);
    const keys = Array.from({ length: 30 }, (_, i) => `list:${name}:${i}`);
    const locks = await Promise.all(
      keys.map((key) => acquireLock(it.client, key)),
    );
    const found: string[] = [];
    for await (const { key } of listLocks(it.client, `list:${name}:*`)) {
      found.push(key);
    }
    assertEquals(found.sort(), keys.sort());
    await Promise.all(locks.map((lock) => lock.release()));
  }, PATIENT);

  test(
    `${name}: keys of several slots are taken together, or none`,
    async () => {
      await using it = await open(cluster.urls);
      const keys = ["slot:a", "slot:b", "slot:c"];
      const other = await acquireLock(it.client, "slot:c");
      const options = { throwOnFail: false } as const;
      assertEquals(await acquireLock(it.client, keys, options), null);
      const both = acquireLock(it.client, keys, { waitMs: 10_000 });
      await other.release();
      const lock = await both;
      assertEquals(lock.keys, keys);
      assertEquals(await lock.release(), true);
    },
    PATIENT,
  );

  test(`${name}: keys of one slot are taken in one script`, async () => {
    await using it = await open(cluster.urls);
    const [first, second] = [1, 2].map((nth) => `{slot:${name}}:${nth}`);
    const keys = [first, second];
    const scripts = async () => {
      const stats = await cluster.commandFor(first, "INFO", "commandstats");
      let sum = 0;
      for (const [, calls] of String(stats).matchAll(/eval\w*:calls=(\d+)/g)) {
        sum += Number(calls);
      }
      return sum;
    };
    const options = { ttl: 10, fencing: true } as const;
    const before = await acquireLock(it.client, keys, options);
    assertEquals(await before.release(), true);
    // By now every script is known there.
    const count = await scripts();
    const lock = await acquireLock(it.client, keys, options);
    assertEquals(await scripts(), count + 1);
    assert(lock.fencingToken! > before.fencingToken!);
    assertEquals(lock.keys, keys);
    assertEquals(await lock.release(), true);

    const other = await acquireLock(it.client, second);
    const refused = { ...options, throwOnFail: false } as const;
    assertEquals(await acquireLock(it.client, keys, refused), null);
    assertEquals(await cluster.commandFor(first, "EXISTS", first), 0);
    const both = acquireLock(it.client, keys, { ...options, waitMs: 10_000 });
    await until(
      "it waits",
      async () => (await inspectLock(it.client, second)).waiting === 1,
    );
    assertEquals(await other.release(), true);
    assertEquals(await (await both).release(), true);
  }, PATIENT);
}

test("ioredis Cluster: a release that is sent again is no loss", async () => {
  const client = new Cluster([cluster.urls[0]]);
  client.on("error", () => {});
  await (await acquireLock(client, "again")).release();
  const value = await withLock(client, "again", () => {
    // The answers to what is sent from here on are never heard.
    for (const { stream } of client.nodes("master")) {
      stream?.removeAllListeners("data");
    }
    void until(
      "it was released",
      async () => await cluster.commandFor("again", "EXISTS", "again") === 0,
    ).then(() => {
      for (const { stream } of client.nodes("master")) stream?.destroy();
    });
    return "done";
  });
  assertEquals(value, "done");
  client.disconnect();
}, PATIENT);

for (const kind of ["ioredis", "redis"]) {
  test(
    `${kind}: what is kept beside a key is found behind a prefix, too`,
    async () => {
      const open = async (): Promise<[LockTarget, () => unknown]> => {
        if (kind === "ioredis") {
          const client = new Cluster([cluster.urls[0]], { keyPrefix: "app:" });
          client.on("error", () => {});
          return [client, () => client.disconnect()];
        }
        const { createCluster } = await import("redis");
        const client = createCluster({
          ...sameAsTheLast,
          keyPrefix: "app:",
          rootNodes: cluster.urls.map((url) => ({ url })),
        });
        client.on("error", () => {});
        await client.connect();
        return [client as unknown as LockTarget, () => client.destroy()];
      };
      const [on, close] = await open();
      for (const key of ["job", "{job}:1", "job:2"]) {
        const options = { ttl: 10, fencing: true } as const;
        const lock = await acquireLock(on, key, options);
        assert(lock.fencingToken !== undefined);
        const next = acquireLock(on, key, { ...options, waitMs: 10_000 });
        assertEquals(await lock.release(), true);
        assertEquals(await (await next).release(), true);
        const plain = await acquireLock(on, key);
        assertEquals(await plain.release(), true);
      }
      // Of one slot by their tags, and not with what is put before them.
      const both = await acquireLock(on, ["alike", "{alike}"], { waitMs: 500 });
      assertEquals(await both.release(), true);
      await close();
    },
    PATIENT,
  );
}
