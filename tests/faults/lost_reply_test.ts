/**
 * The reply lost after the write: the server has done what it was asked, the
 * connection breaks, and nobody was told. ioredis then sends again by itself,
 * node-redis rejects; neither may leave a lock that nobody holds.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertMatch,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";
import { Redis } from "ioredis";

import {
  acquireLock,
  type IoredisClient,
  LockBackendError,
  type LockTarget,
  redis,
  withLock,
} from "@dreamer/utils/lock";
import { drawOwner } from "../../src/core/keys.ts";
import {
  type ClientKind,
  clients,
  type OpenOptions,
} from "../support/clients.ts";
import { type Proxy, startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";
import { worksAgain } from "../support/works_again.ts";

let server: RedisServer;
before(async () => {
  server = await startRedis();
  // The scripts are known to the server: what gets lost is what they did, and
  // not the word that one is not known.
  await using it = await clients[0].open(server.url);
  const lock = await acquireLock(it.client, "warm");
  await lock.extend();
  await acquireLock(it.client, "warm", { throwOnFail: false });
  await lock.release();
});
after(() => server.stop());

/** Runs a story with a client on a wire of its own. */
function story(
  sentence: string,
  { name, open }: ClientKind,
  fn: (it: { on: LockTarget; wire: Proxy; key: string }) => Promise<void>,
  options: OpenOptions = {},
): void {
  test(`${name}: ${sentence}`, async () => {
    await using wire = await startProxy(server.port);
    await using it = await open(wire.url, options);
    const key = `lost:${name}`;
    await fn({ on: it.client, wire, key });
    await worksAgain(it.client, key);
    assertEquals(await server.command("DBSIZE"), 0, "keys left behind");
  });
}

/** Those that send again, by themselves, what was left without an answer. */
const resending = clients.filter(({ resends }) => resends);
const rejecting = clients.filter((kind) => !resending.includes(kind));

for (const kind of resending) {
  story("an acquire that is sent again finds its own lock", kind, async ({
    on,
    wire,
    key,
  }) => {
    const dropped = wire.dropRepliesAfter(key);
    const lock = await acquireLock(on, key, { ttl: 10 });
    await dropped;
    const sent = wire.requests.filter(([word]) => /^set$/i.test(word));
    assertEquals(sent.length, 2, "it was not sent again");
    assertEquals(sent[1], sent[0]);
    assertEquals(await server.command("GET", key), lock.owner);
    assert(lock.isAcquired());
    assertEquals(await lock.release(), true);
  });

  story("a release that is sent again frees nobody else's lock", kind, async ({
    on,
    wire,
    key,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    const dropped = wire.dropRepliesAfter(lock.owner);
    wire.refuse(true);
    const released = lock.release();
    await dropped;
    // Freed it was; before the client is back, somebody else takes the key.
    assertEquals(await server.command("SET", key, "next", "NX"), "OK");
    wire.refuse(false);
    assertEquals(await released, false, "this answer is the second sending's");
    assertEquals(await server.command("GET", key), "next");
    await server.command("DEL", key);
  });

  // Behind a mere wrapper nobody can see the reconnect: there, to be safe, a
  // lock that is not ours any more is told as lost.
  if (kind.resends === "unseen") continue;
  story(
    "withLock() does not mistake a resent release for a loss",
    kind,
    async ({
      on,
      wire,
      key,
    }) => {
      let dropped: Promise<void> | undefined;
      const value = await withLock(on, key, (lock) => {
        dropped = wire.dropRepliesAfter(lock.owner);
        return "done";
      });
      await dropped;
      assertEquals(value, "done");
    },
  );
}

for (const kind of rejecting) {
  story("an acquire whose reply is lost leaves no orphan", kind, async ({
    on,
    wire,
    key,
  }) => {
    const dropped = wire.dropRepliesAfter(key);
    const error = await assertRejects(
      () => acquireLock(on, key, { throwOnFail: false }),
      LockBackendError,
    );
    await dropped;
    assertStrictEquals(error.reply, undefined);
    assertMatch(error.message, /^Cannot acquire "lost:[^"]+": no answer/);
    assert(error.cause instanceof Error);
    await gone(server, key);
    assertEquals(await (await acquireLock(on, key)).release(), true);
  });

  story(
    "withLock() whose release got no answer passes on fn's value",
    kind,
    async ({
      on,
      wire,
      key,
    }) => {
      let dropped: Promise<void> | undefined;
      const value = await withLock(on, key, (lock) => {
        dropped = wire.dropRepliesAfter(lock.owner);
        return "done";
      });
      assertEquals(value, "done");
      await dropped;
    },
  );
}

for (const kind of clients) {
  story("a lock is held on while the server can't be asked", kind, async ({
    on,
    wire,
    key,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    wire.refuse(true);
    wire.cut();
    await assertRejects(() => lock.extend(), LockBackendError);
    assert(lock.isAcquired(), "ours until its time is up");
    await assertRejects(() => lock.release(), LockBackendError);
    assertFalse(lock.isAcquired(), "the release may have arrived");
    wire.refuse(false);
    let freed: boolean | undefined;
    while (freed === undefined) {
      await pause();
      freed = await lock.release().catch(() => undefined);
    }
    assertEquals(freed, true);
  }, { offline: "fail" });

  story("withLock() frees the lock once the server is back", kind, async ({
    on,
    wire,
    key,
  }) => {
    const value = await withLock(on, key, () => {
      wire.refuse(true);
      wire.cut();
      return "done";
    });
    assertEquals(value, "done");
    assertEquals(await server.command("EXISTS", key), 1);
    wire.refuse(false);
    await gone(server, key);
  }, { offline: "fail" });
}

/** A server that keeps what it wrote down keeps an orphan, too. */
const KEEPING = ["--appendonly", "yes", "--appendfsync", "always"];

for (const { name, open } of clients) {
  test(`${name}: an orphan is cleaned away once the server is back`, async () => {
    const key = `orphan:${name}`;
    await using keeping = await startRedis({ args: KEEPING });
    await using wire = await startProxy(keeping.port);
    await using it = await open(wire.url, { offline: "fail" });
    const dropped = wire.dropRepliesAfter(key);
    // Nobody gets through any more until the server has been away for a while.
    wire.refuse(true);
    await assertRejects(() => acquireLock(it.client, key), LockBackendError);
    await dropped;
    await keeping.kill();
    await keeping.restart();
    assertEquals(await keeping.command("EXISTS", key), 1, "there is no orphan");
    wire.refuse(false);
    await gone(keeping, key);
    await worksAgain(it.client, key);
  });
}

/** Waits until the server has forgotten `key`. */
async function gone(where: RedisServer, key: string): Promise<void> {
  while (await where.command("EXISTS", key) !== 0) await pause();
}

function pause(): Promise<void> {
  return new Promise((done) => setTimeout(done, 5));
}

for (const { name, open } of clients.filter(({ resends }) => resends)) {
  test(`${name}: an attempt that finds its own lock has the whole of its lease`, async () => {
    await using it = await open(server.url);
    const on = redis(it.client as IoredisClient);
    const claim = { key: `whole:${name}`, owner: drawOwner(), ttlMs: 20_000 };
    const { key } = claim;
    const attempts = {
      plain: () => on.tryAcquire(claim),
      fenced: () => on.tryAcquireFenced!(claim),
      together: () => on.tryAcquireAll!([claim], false),
      "together, fenced": () => on.tryAcquireAll!([claim], true),
    };
    for (const [how, attempt] of Object.entries(attempts)) {
      // By what may be a double one takes one key after the other.
      if (how.startsWith("together") && !on.tryAcquireAll) continue;
      const first = await attempt();
      await server.command("PEXPIRE", key, 5_000);
      const again = await attempt();
      assertEquals(again, first, `${how}: another token`);
      const leftMs = Number(await server.command("PTTL", key));
      assert(leftMs > 15_000, `${how}: ${leftMs} ms`);
      assertEquals(await on.release(claim), "done");
    }
    await on.tryAcquire(claim);
    await server.command("PEXPIRE", key, 60_000);
    await on.tryAcquire(claim);
    assert(
      Number(await server.command("PTTL", key)) > 20_000,
      "it is cut short",
    );
    assertEquals(await on.release(claim), "done");
    await server.command("DEL", `{${key}}:fence`);
  });
}

for (const { name, open } of clients.filter(({ resends }) => resends)) {
  test(`${name}: another name can be given twice`, async () => {
    await using it = await open(server.url);
    const on = redis(it.client as IoredisClient);
    const claim = { key: `name:${name}`, owner: drawOwner(), ttlMs: 20_000 };
    const another = drawOwner();
    await on.tryAcquire(claim);
    for (let times = 0; times < 2; times++) {
      assertEquals(await on.rename!(claim, another), "done");
    }
    assertEquals(await on.rename!(claim, drawOwner()), "taken");
    assertEquals(await on.release({ ...claim, owner: another }), "done");
  });
}

test("another end that is sent twice undoes nothing in between", async () => {
  const client = new Redis(server.url);
  const sent: string[][] = [];
  const on = redis(([command, ...words]) => {
    sent.push([command, ...words]);
    return client.call(command, ...words);
  });
  const claim = { key: "end", owner: drawOwner(), ttlMs: 20_000 };
  const leftMs = async () => Number(await server.command("PTTL", claim.key));
  await on.tryAcquire(claim);
  const { leftMs: longer } = await on.prolong!(claim, 10_000);
  assert(longer > 25_000, `${longer} ms`);
  const [command, ...words] = sent.at(-1)!;
  await on.extend([{ ...claim, ttlMs: 60_000 }]);
  await client.call(command, ...words);
  assert(await leftMs() > 50_000, `${await leftMs()} ms`);
  assertEquals(await on.release(claim), "done");
  client.disconnect();
});

for (const kind of resending) {
  if (kind.resends === "unseen") continue;
  test(
    `${kind.name}: a release of one who had it by a turn, and is sent again, is no loss`,
    async () => {
      await using wire = await startProxy(server.port);
      await using here = await kind.open(server.url);
      await using it = await kind.open(wire.url);
      const key = `turn:${kind.name}`;
      const holder = await acquireLock(here.client, key, { ttl: 10 });
      let dropped: Promise<void> | undefined;
      const running = withLock(it.client, key, (lock) => {
        dropped = wire.dropRepliesAfter(lock.owner);
        return "done";
      }, { waitMs: 10_000 });
      await until(
        "it is in line",
        async () => await server.command("ZCARD", `{${key}}:line`) === 1,
      );
      await holder.release();
      assertEquals(await running, "done");
      await dropped;
      assertEquals(await server.command("EXISTS", key), 0);
    },
    { allowTimers: "who waited listens on for a second" },
  );
}
