/** Several keys as one lock: all or none, and no two wait for each other. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { Buffer } from "node:buffer";

import {
  acquireLock,
  DistributedLock,
  forceRelease,
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { clients, type OpenClient } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { ledgerHere, overlap } from "../support/overlap.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
let cluster: RedisCluster;
before(async () => {
  [server, cluster] = await Promise.all([startRedis(), startCluster()]);
});
after(() => Promise.all([server.stop(), cluster.stop()]));

let serial = 0;

/** One test over each kind of client, and over `memory()`. */
function holds(
  sentence: string,
  fn: (
    on: LockTarget,
    keys: readonly [string, string, string],
  ) => Promise<void>,
): void {
  const newKeys = () => {
    const name = `several:${++serial}`;
    return [`${name}:a`, `${name}:b`, `${name}:c`] as const;
  };
  test(`memory: several keys: ${sentence}`, () => fn(memory(), newKeys()));
  for (const kind of clients) {
    test(`${kind.name}: several keys: ${sentence}`, async () => {
      const keys = newKeys();
      {
        await using it = await kind.open(server.url);
        await fn(it.client, keys);
      }
      await timersEnd();
      const left = await server.command("KEYS", `*${keys[0].slice(0, -2)}:*`);
      assertEquals(
        (left as string[]).filter((key) => !key.endsWith(":fence")),
        [],
        "keys left behind",
      );
    });
  }
}

holds("taken all, each once and sorted, and freed all", async (on, keys) => {
  const [a, b, c] = keys;
  const lock = await acquireLock(on, [c, a, b, a]);
  assertEquals(lock.keys, [a, b, c]);
  assertEquals(lock.key, a);
  assert(lock.isAcquired() && lock.remainingMs > 29_000);
  for (const key of keys) {
    assertEquals(await acquireLock(on, key, { throwOnFail: false }), null);
  }
  assertEquals(await lock.release(), true);
  assertEquals(await lock.release(), false);
  await (await acquireLock(on, keys)).release();
});

holds("none where one is taken", async (on, [a, b, c]) => {
  const other = await acquireLock(on, b);
  const refusal = await assertRejects(
    () => acquireLock(on, [a, b, c]),
    LockNotAcquiredError,
  );
  assertEquals(refusal.key, b);
  assertEquals(await acquireLock(on, [c, b], { throwOnFail: false }), null);
  await assertRejects(
    () => acquireLock(on, [a, b, c], { waitMs: 40 }),
    LockNotAcquiredError,
  );
  // A busy machine may still give back what it took.
  const free = await acquireLock(on, [c, a], { waitMs: 5_000 });
  await free.release();
  await other.release();
});

holds("lost as one, and told by one signal", async (on, [a, b]) => {
  const lock = await acquireLock(on, [a, b], { ttl: 20 });
  const { signal } = lock;
  assertFalse(signal.aborted);
  if ("tryAcquire" in on) await forceRelease(on, b);
  else await server.command("DEL", b);
  const loss = await assertRejects(() => lock.extend(), LockLostError);
  assertEquals(loss.key, b);
  assert(signal.aborted && signal.reason === loss);
  assertFalse(lock.isAcquired());
  assertEquals(lock.remainingMs, 0);
  assertEquals(await lock.release(), false);
});

holds("waited for, and had once all are free", async (on, [a, b, c]) => {
  const first = await acquireLock(on, [a, b]);
  const second = await acquireLock(on, c);
  const both = withLock(on, [c, b, a], (lock) => lock.isAcquired(), {
    waitMs: Infinity,
  });
  await second.release();
  await first.release();
  assertEquals(await both, true);
});

holds("an abort while waiting gives back what it had", async (on, [a, b]) => {
  const other = await acquireLock(on, b);
  const abort = new AbortController();
  const waiting = acquireLock(on, [a, b], {
    waitMs: Infinity,
    signal: abort.signal,
  }).catch((reason) => reason);
  await until(
    "the first of both is had",
    async () => {
      const lock = await acquireLock(on, a, { throwOnFail: false });
      await lock?.release();
      return lock === null;
    },
  );
  abort.abort("enough");
  assertEquals(await waiting, "enough");
  await until("it is given back", async () => {
    const lock = await acquireLock(on, a, { throwOnFail: false });
    await lock?.release();
    return lock !== null;
  });
  await other.release();
});

test("several keys: each has to be one, and there must be any", async () => {
  const on = memory();
  for (
    const [keys, kind, text] of [
      [[], RangeError, "there must be at least one key"],
      [["a", ""], RangeError, "key must not be empty"],
      [["a", 7], TypeError, "key must be a string: current value is 7"],
    ] as [string[], ErrorConstructor, string][]
  ) {
    const refused = await assertRejects(() => acquireLock(on, keys), kind);
    assertStringIncludes(refused.message, text);
  }
  assert(await acquireLock(on, "a", { throwOnFail: false }));
});

test("several keys: a fencing token for each, and all go to another process", async () => {
  const on = memory();
  const lock = await acquireLock(on, ["b", "a"], { fencing: true, ttl: 20 });
  assertEquals([...lock.fencingTokens.keys()], ["a", "b"]);
  const tokens = [...lock.fencingTokens];
  const json = JSON.stringify(lock);
  assertFalse(lock.isAcquired());
  const resumed = await DistributedLock.resume(on, json);
  assertEquals([...resumed.fencingTokens], tokens);
  assertEquals(resumed.keys, ["a", "b"]);
  const again = JSON.stringify(resumed);
  await forceRelease(on, "a");
  await assertRejects(() => DistributedLock.resume(on, again), LockLostError);
  // What was left of it is held by nobody.
  assert(await acquireLock(on, ["a", "b"], { throwOnFail: false }));
});

test("several keys: acquired again, all or none", async () => {
  const on = memory();
  const lock = await acquireLock(on, ["a", "b"]);
  await lock.release();
  const other = await acquireLock(on, "b");
  assertEquals(await lock.acquire(), false);
  assert(
    await acquireLock(on, "a", { throwOnFail: false }).then(async (it) => {
      await it?.release();
      return it;
    }),
  );
  await other.release();
  assertEquals(await lock.acquire(), true);
  assertEquals(await acquireLock(on, "b", { throwOnFail: false }), null);
  await lock.release();
});

test("several keys: taken by one command and freed by one, however many", async () => {
  await using opened = await clients[0].open(server.url);
  const keys = Array.from({ length: 7 }, (_, i) => `counted:${i}`);
  const hold = () => withLock(opened.client, keys, () => {});
  const twice = async () => {
    await (await acquireLock(opened.client, keys)).release();
    await hold();
  };
  await twice();
  await server.command("CONFIG", "RESETSTAT");
  await twice();
  const stats = String(await server.command("INFO", "commandstats"));
  assertStringIncludes(stats, "cmdstat_evalsha:calls=4,");
  assertFalse(/cmdstat_eval:/.test(stats));
  // One that is not ours any more is told, and keeps nobody else's.
  const lock = await acquireLock(opened.client, keys);
  await server.command("SET", keys[3], "another's");
  assertEquals(await lock.release(), false);
  assertEquals(
    await server.command("EXISTS", ...keys),
    1,
  );
  await server.command("DEL", keys[3]);
});

holds("a signal of another make will do", async (on, keys) => {
  const polyfill = Object.assign(new EventTarget(), { aborted: false });
  const signal = polyfill as unknown as AbortSignal;
  const lock = await acquireLock(on, keys, { signal, waitMs: 50 });
  assertEquals(await lock.release(), true);
});

test("several keys: they have tokens, and where replies are bytes none by mistake", async () => {
  const { createClient } = await import("redis");
  const client = createClient({
    url: server.url,
    // Of what type each reply is: bulk strings, by their sign.
    commandOptions: { typeMapping: { 36: Buffer } },
  });
  await client.connect();
  const keys = ["bytes:a", "bytes:b"];
  for (const fencing of [false, true]) {
    const lock = await acquireLock(client, keys, { fencing });
    const tokens = [...lock.fencingTokens.values()];
    assertEquals(tokens.map(Number.isSafeInteger), fencing ? [true, true] : []);
    await lock.release();
  }
  client.destroy();
});

/** A hundred who want overlapping sets, through several clients of one kind. */
function neverMeet(
  name: string,
  open: () => Promise<OpenClient>,
  command: (...args: string[]) => Promise<unknown>,
): void {
  test(`${name}: several keys: overlapping sets never meet, and never wait for each other`, async () => {
    const opened = await Promise.all([1, 2, 3, 4].map(open));
    const prefix = `overlap:${name}`;
    const { served, strange } = await overlap({
      on: opened.map(({ client }) => client),
      clients: 100,
      seconds: 1.5,
      prefix,
      waitMs: 15_000,
      ttl: 5,
      random: Math.random,
      ledger: ledgerHere(),
    });
    assertEquals(strange, []);
    assert(served >= 100, `${served} served`);
    const left = await command("KEYS", `*${prefix}*`) as unknown[];
    assertEquals(left.flat(), []);
    await Promise.all(opened.map((it) => it.close()));
    await timersEnd();
  });
}

neverMeet(
  clients[0].name,
  () => clients[0].open(server.url),
  (...args) => server.command(...args),
);
neverMeet(
  clusterClients[0].name,
  () => clusterClients[0].open(cluster.urls),
  (...args) => cluster.command(...args),
);
