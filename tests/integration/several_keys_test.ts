/** Several keys as one lock: all or none, and no two wait for each other. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import process from "node:process";

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
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

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
      await until("nobody listens any more", () => timersLeft() === 0);
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
  await assertRejects(() => acquireLock(on, [a, b, c]), LockNotAcquiredError);
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

const seconds = Number(process.env.SOAK_SECONDS ?? 2);

test(
  "several keys: overlapping sets never meet, and never wait for each other",
  async () => {
    const kind = clients[0];
    const open = await Promise.all(
      [1, 2, 3, 4].map(() => kind.open(server.url)),
    );
    const inside = new Map<string, DistributedLock>();
    const strange: string[] = [];
    const endsAt = performance.now() + seconds * 1_000;
    let served = 0;
    const random = (most: number) => Math.floor(Math.random() * most);
    await Promise.all(Array.from({ length: 100 }, async (_, i) => {
      const on = open[i % open.length].client;
      while (performance.now() < endsAt) {
        const keys = Array.from(
          { length: 2 + random(5) },
          () => `overlap:${random(12)}`,
        );
        const lock = await acquireLock(on, keys, { waitMs: Infinity, ttl: 5 });
        for (const key of lock.keys) {
          if (inside.get(key)?.isAcquired()) strange.push(key);
          inside.set(key, lock);
        }
        if (random(3) === 0) await new Promise((done) => setTimeout(done, 2));
        lock.assertHeld();
        for (const key of lock.keys) inside.delete(key);
        await lock.release();
        served++;
      }
    }));
    assertEquals(strange, []);
    assert(served >= 100, `${served} served`);
    assertEquals(await server.command("KEYS", "*overlap*"), []);
    await Promise.all(open.map((it) => it.close()));
    await until("nobody listens any more", () => timersLeft() === 0);
  },
  { timeoutMs: (seconds + 30) * 1_000 },
);
