/** The older APIs on a client of a Cluster, which the originals take for one. */
import { assert, assertEquals, assertRejects } from "@std/assert";

import { inspectLock } from "@dreamer/utils/lock";
import { LockedError, RedisMutex } from "@dreamer/utils/lock/redis-mutex";
import { Redlock } from "@dreamer/utils/lock/redlock";
import { Debounce, Lock } from "@dreamer/utils/lock/upstash";

import { clusterClients } from "../support/cluster_clients.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { sleep } from "./worlds.ts";

let cluster: RedisCluster;
before(async () => void (cluster = await startCluster()));
after(() => cluster.stop());

/** One for each master, whatever order the slots are in. */
const keysOf = (name: string) => ["a", "b", "c"].map((key) => `${name} ${key}`);

test.sideBySide(
  clusterClients.flatMap(({ name, open }) => [
    [`${name}: a Lock of @upstash/lock`, async () => {
      await using here = await open(cluster.urls);
      await using there = await open(cluster.urls);
      const [lock, other] = [here, there].map(({ client }) =>
        new Lock({ id: `upstash ${name}`, redis: client, lease: 8_000 })
      );
      assertEquals(await lock.acquire(), true);
      assertEquals(await other.acquire({ retry: { attempts: 1 } }), false);
      assertEquals(await lock.extend(2_000), true);
      const { remainingMs } = await inspectLock(here.client, `upstash ${name}`);
      assert(remainingMs! > 8_000, `${remainingMs}`);
      assertEquals(await lock.release(), true);
      assertEquals(await other.getStatus(), "FREE");
    }],
    [`${name}: a Debounce of two instances runs once`, async () => {
      await using here = await open(cluster.urls);
      await using there = await open(cluster.urls);
      const id = `debounce ${name}`;
      // A client connects to a master when it is first asked for a key there:
      // a call that waits for that is not the last to come.
      for (const { client } of [here, there]) await inspectLock(client, id);
      const ran: number[] = [];
      const [one, two] = [here, there].map(({ client }) =>
        new Debounce({
          ...{ id, redis: client, wait: 600 },
          callback: (nth: number) => void ran.push(nth),
        })
      );
      const calls: Promise<void>[] = [];
      for (const nth of [0, 1, 2, 3]) {
        calls.push((nth % 2 ? one : two).call(nth));
        await sleep(20);
      }
      await Promise.all(calls);
      assertEquals(ran, [3]);
    }],
    [`${name}: a Redlock over keys of several slots`, async () => {
      await using here = await open(cluster.urls);
      await using there = await open(cluster.urls);
      const keys = keysOf(`redlock ${name}`);
      const lock = new Redlock([here.client]);
      const other = new Redlock([there.client], { maxRetryAttempts: 0 });
      const held = await lock.acquire(keys, 8_000);
      assert(held?.isValid);
      assertEquals(await other.acquire(keys[1], 8_000), null);
      assert(await held.extend(9_000));
      assert(await held.release());
      assertEquals(await other.withLock(keys, 8_000, () => "done"), "done");
    }],
    [`${name}: a RedisMutex over resources of several slots`, async () => {
      await using here = await open(cluster.urls);
      await using there = await open(cluster.urls);
      const names = keysOf(`mutex ${name}`);
      const [mutex, other] = [here, there].map(({ client }) =>
        new RedisMutex({ client, retryOptions: { retries: 0 } })
      );
      const held = await mutex.lock(names);
      await assertRejects(() => other.lock(names[2]), LockedError);
      await held.extend();
      await held.unlock();
      await other.withLock(names, () => Promise.resolve());
      await other.checkLock(names);
    }],
  ]),
  timersEnd,
);
