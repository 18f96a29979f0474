/**
 * A Cluster gives slots from one master to another while locks are held and
 * waited for. Between the two, a script of several keys is refused (TRYAGAIN)
 * unless all of them are there, and those that don't exist are not: so as a rule
 * it is refused for as long as the slot is open.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  type DistributedLock,
  LockBackendError,
  type LockOptions,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { clusterClients } from "../support/cluster_clients.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const PATIENT = { ttl: 10, waitMs: 15_000, localTurns: 0 } as const;

let cluster: RedisCluster;
before(async () => {
  cluster = await startCluster();
  // A slot that is not served is one story's, and not everybody's.
  await cluster.command("CONFIG", "SET", "cluster-require-full-coverage", "no");
});
after(() => cluster.stop());

interface Scene {
  readonly name: string;
  readonly key: string;
  readonly line: string;
  readonly fence: string;
  /** Two clients, as of two processes. */
  readonly on: readonly [LockTarget, LockTarget];
}

const stories: [name: string, fn: () => Promise<void>][] = [];

function story(sentence: string, fn: (scene: Scene) => Promise<void>): void {
  for (const { name, open } of clusterClients) {
    stories.push([`${name}: ${sentence}`, async () => {
      await using here = await open(cluster.urls);
      await using there = await open(cluster.urls);
      const key = `slot:${name}:${sentence}`;
      const [line, fence] = [`{${key}}:line`, `{${key}}:fence`];
      await fn({ name, key, line, fence, on: [here.client, there.client] });
      await until("no key is left", async () => {
        for (const master of cluster.masters) {
          // Whoever has not got the slot answers MOVED.
          const left = await master.command("EXISTS", key, line).catch(() => 0);
          if (left !== 0) return false;
        }
        return true;
      });
    }]);
  }
}

/** Lets those who ask meet with a slot that is between two masters. */
const REFUSED_MS = 150;
const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));

function inLine(line: string, count: number): Promise<void> {
  return until(
    `${count} in line`,
    async () => await cluster.commandFor(line, "ZCARD", line) === count,
  );
}

/** Waits for `key`, and is looked at later. */
function wait(on: LockTarget, key: string, options: LockOptions = {}) {
  const all = { ...PATIENT, ...options, throwOnFail: true } as const;
  const waiting = acquireLock(on, key, all);
  waiting.catch(() => {});
  return waiting;
}

story("a lock moves with all who wait for it", async (scene) => {
  const { key, line, fence, on } = scene;
  const holder = await acquireLock(on[0], key, { fencing: true });
  const order: number[] = [];
  const all: Promise<DistributedLock>[] = [];
  for (const nth of [0, 1, 2, 3]) {
    const waiting = wait(on[nth % 2], key, { fencing: true });
    waiting.then(() => order.push(nth), () => {});
    all.push(waiting);
    await inLine(line, all.length);
  }
  const move = await cluster.move(key);
  await move.keys(key);
  const released = holder.release();
  await pass(REFUSED_MS);
  await move.keys(line);
  await move.keys(fence);
  assertEquals(await released, true);
  let token = holder.fencingToken!;
  for (const [nth, waiting] of all.entries()) {
    const lock = await waiting;
    assertEquals(order.length, nth + 1, "two holders");
    assert(lock.fencingToken! > token, "the tokens fell");
    token = lock.fencingToken!;
    if (nth === 1) await move.finish();
    lock.assertHeld();
    assertEquals(await lock.release(), true);
  }
  assertEquals(order, [0, 1, 2, 3]);
});

story("one who comes to an open slot is served in the end", async (scene) => {
  const { key, line, on } = scene;
  const holder = await acquireLock(on[0], key, { ttl: 10 });
  const move = await cluster.move(key);
  let isServed = false;
  const waiting = wait(on[1], key);
  waiting.then(() => isServed = true, () => {});
  await pass(REFUSED_MS);
  await move.finish();
  await inLine(line, 1);
  assert(!isServed, "two holders");
  holder.assertHeld();
  assertEquals(await holder.release(), true);
  assertEquals(await (await waiting).release(), true);
});

story("a lock is taken and freed in a slot that stays open", async (scene) => {
  const { key, on } = scene;
  const options = { ttl: 20, throwOnFail: true } as const;
  const holder = await acquireLock(on[0], key, options);
  const move = await cluster.move(key);
  assertEquals(await holder.release(), true);
  const second = await acquireLock(on[1], key, options);
  const refused = { throwOnFail: false, ttl: 10 } as const;
  assertEquals(await acquireLock(on[0], key, refused), null);
  // Nobody can stand in line there: that is no word on who has the lock.
  await assertRejects(
    () => acquireLock(on[0], key, { ...refused, waitMs: 1_500 }),
    LockBackendError,
  );
  await second.extend();
  // Who waits is to know of so short a lease: that is another command.
  await second.extend(1);
  await second.extend();
  assertEquals(await second.release(), true);
  await move.finish();
});

story("a lock that is renewed is kept on the way", async (scene) => {
  const { key, on } = scene;
  let losses = 0;
  await withLock(on[0], key, async (lock) => {
    lock.signal.addEventListener("abort", () => losses++);
    for (let times = 0; times < 2; times++) {
      const move = await cluster.move(key);
      await pass(500);
      await move.keys(key);
      await pass(500);
      await move.finish();
    }
    lock.assertHeld();
    assert(lock.remainingMs > 0);
  }, { ttl: 4.5 });
  assertEquals(losses, 0);
});

story("never two inside while the slot goes round and round", async (scene) => {
  const { name, key, line, on } = scene;
  let inside = 0;
  let done = 0;
  let isMoving = true;
  const work = async (nth: number) => {
    while (isMoving) {
      await withLock(on[nth % 2], key, async (lock) => {
        assertEquals(++inside, 1, "two inside");
        await pass(nth % 3);
        lock.assertHeld();
        inside--;
        done++;
      }, { ...PATIENT, fencing: true, localTurns: nth < 3 ? 16 : 0 }).catch(
        (error) => {
          // GLIDE gives up by itself after a quarter of a second.
          const isItsOwn = error instanceof LockBackendError &&
            error.reply === undefined;
          if (!name.startsWith("glide") || !isItsOwn) throw error;
        },
      );
    }
  };
  const all = Promise.all([0, 1, 2, 3, 4, 5].map(work));
  all.catch(() => {});
  try {
    for (let times = 0; times < 6; times++) {
      const before = done;
      await until("it goes on", () => done > before);
      const move = await cluster.move(key);
      await pass(times * 10);
      if (times % 2 === 0) await move.keys(line);
      else await move.keys(key);
      await pass(30);
      await move.finish();
    }
  } finally {
    // Whatever went wrong: a client that is closed then refuses at once, and
    // who tries it again and again lets nobody else run.
    isMoving = false;
  }
  await all;
});

story("a slot that nobody serves for a while loses nothing", async (scene) => {
  const { key, line, on } = scene;
  const slot = Number(
    await cluster.masters[0].command("CLUSTER", "KEYSLOT", key),
  );
  const home = await (async () => {
    for (const master of cluster.masters) {
      const slots = await master.command("GET", key).then(
        () => true,
        () => false,
      );
      if (slots) return master;
    }
    throw new Error("Nobody has it");
  })();
  const holder = await acquireLock(on[0], key, { ttl: 10 });
  const next = wait(on[1], key);
  await inLine(line, 1);
  await home.command("CLUSTER", "DELSLOTS", slot);
  const options = { ttl: 10, throwOnFail: false } as const;
  const error = await assertRejects(
    () => acquireLock(on[1], key, options),
    LockBackendError,
  );
  // ioredis tells of the last of many tries, at whichever master that was.
  assert(/^(CLUSTERDOWN|MOVED|ASK)$/.test(error.reply!), error.reply);
  const later = wait(on[0], key);
  const released = holder.release();
  await pass(200);
  await home.command("CLUSTER", "ADDSLOTS", slot);
  assertEquals(await released, true);
  const order: string[] = [];
  next.then(() => order.push("next"), () => {});
  later.then(() => order.push("later"), () => {});
  assertEquals(await (await next).release(), true);
  assertEquals(await (await later).release(), true);
  assertEquals(order, ["next", "later"]);
});

test.sideBySide(
  stories,
  () => timersEnd(),
);
