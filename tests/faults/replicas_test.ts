/**
 * A lock that counts as acquired only once replicas have it: with one that is
 * there, that is stopped, cut off, or was promoted behind everybody's back.
 */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  LockBackendError,
  LockError,
  LockReplicationError,
  type LockTarget,
  redlock,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { clients } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { startProxy } from "../support/proxy.ts";
import { startCluster } from "../support/redis_cluster.ts";
import {
  GROUP,
  type RedisGroup,
  startGroup,
} from "../support/redis_sentinel.ts";
import { startRedis } from "../support/redis_server.ts";
import { sentinelClients } from "../support/sentinel_clients.ts";
import { test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const stories: [name: string, fn: () => Promise<void>][] = [];
let shared: Promise<RedisGroup> | undefined;
const group = () => shared ??= startGroup();

/** Who can send WAIT behind a write on the same connection. */
const canAsk = ({ name }: { name: string }) => /^(io)?redis/.test(name);

/** The ways to a primary with a replica that can ask it. */
const ways = [
  ...clients.filter(canAsk).map(({ name, open }) => ({
    name,
    open: ({ primary }: RedisGroup) => open(primary.url),
  })),
  ...sentinelClients,
];

/** The error of one who wants more than there are, for a third of the ttl. */
async function notReplicated(
  on: LockTarget,
  key: string,
  replicas: number,
): Promise<LockReplicationError> {
  const options = { ttl: 3, replicas, throwOnFail: false } as const;
  const error = await assertRejects(
    () => acquireLock(on, key, options),
    LockReplicationError,
  );
  assert(error instanceof LockBackendError && error instanceof LockError);
  assertEquals(error.code, "LOCK_NOT_REPLICATED");
  assertEquals([error.key, error.replicas], [key, replicas]);
  const what = `${error.confirmed} of ${replicas} replicas confirmed it`;
  assertEquals(error.message, `Cannot acquire "${key}": ${what} in 1000 ms`);
  return error;
}

for (const { name, open } of ways) {
  stories.push([`${name}: a lock that a replica has`, async () => {
    const there = await group();
    const { primary, replica } = there;
    await using it = await open(there);
    const on = it.client;
    const key = `replicas:${name}`;
    const options = { ttl: 15, replicas: 1, waitMs: 10_000 };
    const lock = await acquireLock(on, key, options);
    assertEquals(await replica.command("GET", key), lock.owner);
    // A turn in line, and two keys.
    const next = withLock(on, key, async (lock) => {
      assertEquals(await replica.command("GET", key), lock.owner);
      lock.assertHeld();
      return "done";
    }, options);
    await until(
      "it stands in line",
      async () => await primary.command("ZCARD", `{${key}}:line`) === 1,
    );
    assertEquals(await lock.release(), true);
    assertEquals(await next, "done");
    const keys = [`${key}:1`, `${key}:2`];
    const both = await acquireLock(on, keys, options);
    assertEquals(await replica.command("EXISTS", ...keys), 2);
    assertEquals(await both.release(), true);

    // One more than there are; and an abort on the way.
    const ending = new AbortController();
    const { signal } = ending;
    const ended = acquireLock(on, keys[0], { ttl: 15, replicas: 2, signal })
      .catch((error) => error);
    const refused = notReplicated(on, key, 2);
    await until(
      "they are there",
      async () => await primary.command("EXISTS", key, keys[0]) === 2,
    );
    ending.abort("enough");
    assertStrictEquals(await ended, "enough");
    assertEquals((await refused).confirmed, 1);
    assertEquals(await primary.command("EXISTS", key, keys[0]), 0);
  }]);
}

stories.push(["a replica that is stopped has confirmed nothing", async () => {
  await using own = await startGroup();
  own.replica.freeze();
  await Promise.all(
    clients.filter(canAsk).map(async ({ name, open }) => {
      if (/[45]$/.test(name)) return;
      await using wire = await startProxy(own.primary.port);
      await using it = await open(wire.url);
      const refused = notReplicated(it.client, `stopped:${name}`, 1);
      // Who asks for none of that is not held up.
      await withLock(it.client, `plain:${name}`, () => {});
      assertEquals((await refused).confirmed, 0);

      // A new connection has written nothing, and all replicas have that: sent
      // again on one, WAIT would say so. So it is cut while it waits.
      let seen = wire.requests.length;
      const cutting = setInterval(() => {
        const isWaiting = wire.requests.slice(seen)
          .some(([word]) => /^wait$/i.test(word));
        if (isWaiting) wire.cut();
        seen = wire.requests.length;
      }, 6);
      try {
        for (let nth = 0; nth < 2; nth++) {
          const options = { replicas: 1, ttl: 1.5 };
          await assertRejects(
            () => acquireLock(it.client, `cut:${name}:${nth}`, options),
            LockBackendError,
          );
        }
      } finally {
        clearInterval(cutting);
      }
    }),
  );
  own.replica.thaw();
}]);

stories.push([
  "a replica far away is waited for, longer each time",
  async () => {
    await using primary = await startRedis();
    await using replica = await startRedis();
    await using wire = await startProxy(primary.port);
    await replica.command("REPLICAOF", wire.host, wire.port);
    await until(
      "it has all",
      async () =>
        /master_link_status:up/.test(
          await replica.command("INFO", "replication") as string,
        ),
    );
    wire.delayReplies(70);
    await Promise.all(
      clients.filter(canAsk).map(async ({ name, open }) => {
        await using it = await open(primary.url);
        const options = { replicas: 1, ttl: 15, waitMs: 10_000 } as const;
        const lock = await acquireLock(it.client, `far:${name}`, options);
        assertEquals(await replica.command("GET", lock.key), lock.owner);
        assertEquals(await lock.release(), true);
      }),
    );
  },
]);

stories.push(["one that is a primary no more grants nothing", async () => {
  await using own = await startGroup();
  const { primary, replica, sentinel } = own;
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using here = await open(primary.url);
  await using there = await open(replica.url);
  await sentinel.command("SENTINEL", "FAILOVER", GROUP);
  await own.promoted();
  // The old one goes on for seconds, as it has not been told yet.
  const plain = await acquireLock(here.client, "old");
  const second = await acquireLock(there.client, "old");
  assert(plain.isAcquired() && second.isAcquired(), "no two holders?");
  const error = await notReplicated(here.client, "new", 1);
  assertEquals(error.confirmed, 0);
}]);

stories.push(["a Cluster's keys are confirmed where they are", async () => {
  await using cluster = await startCluster();
  await Promise.all(
    clusterClients.filter(canAsk).map(async ({ name, open }) => {
      await using it = await open(cluster.urls);
      const keys = ["a", "b", "c"].map((key) => `${name}:${key}`);
      await Promise.all(keys.map(async (key) => {
        assertEquals((await notReplicated(it.client, key, 1)).confirmed, 0);
      }));
      const options = { replicas: 1, ttl: 3 };
      await assertRejects(
        () => acquireLock(it.client, keys, options),
        LockReplicationError,
      );
    }),
  );
  assertEquals(await cluster.command("DBSIZE"), [0, 0, 0]);
}]);

stories.push(["who can ask no replicas says so before anything", async () => {
  const { primary } = await group();
  const others = await Promise.all(
    clients.filter((kind) => !canAsk(kind)).map(({ open }) =>
      open(primary.url)
    ),
  );
  assert(others.length > 0);
  const quorum = redlock([memory(), memory(), memory()]);
  const what = 'Cannot acquire "k" as replicas must be 0 on';
  try {
    for (
      const [on, name] of [
        [memory(), "memory"],
        [quorum, "redlock"],
        ...others.map(({ client }) => [client, "redis"] as const),
      ] as const
    ) {
      const error = await assertRejects(
        () => acquireLock(on, "k", { replicas: 1 }),
        RangeError,
      );
      const text = `${what} ${name}, which can't ask any: current value is 1`;
      assertEquals(error.message, text);
      await withLock(on, "k", () => {}, { replicas: 0 });
    }
  } finally {
    for (const { close } of others) await close();
  }
  for (const replicas of [-1, 0.5, NaN, Infinity]) {
    await assertRejects(
      () => acquireLock(memory(), "k", { replicas }),
      RangeError,
      "replicas must be a whole number >= 0",
    );
  }
  await assertRejects(
    () => acquireLock(memory(), "k", { replicas: "1" as never }),
    TypeError,
    "replicas must be a number",
  );
}]);

test.sideBySide(stories, async () => {
  await (await group())[Symbol.asyncDispose]();
  await timersEnd();
});
