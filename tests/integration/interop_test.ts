/**
 * One lock to all: others who lock the same key with NX and an expiry exclude
 * us, and are excluded by us. The others are the real packages.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { Redis } from "ioredis";
import { randomUUID } from "node:crypto";
import { Mutex } from "redis-semaphore";
import Redlock, { ExecutionError } from "redlock";

import {
  acquireLock,
  type DistributedLock,
  LockLostError,
  LockNotAcquiredError,
} from "@dreamer/utils/lock";
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
/** Theirs: all of them speak through ioredis. */
let redis: Redis;

before(async () => {
  server = await startRedis();
  redis = new Redis(server.url);
});

after(async () => {
  redis.disconnect();
  await server.stop();
});

/** Gives back what somebody else had locked; harmless if he has it no more. */
type GiveBack = () => Promise<unknown>;

/** Somebody else's way to lock. */
interface Peer {
  name: string;
  /** What the key is called on the server that it locks under this name. */
  keyOf(name: string): string;
  /** Makes one attempt; null where it is taken. */
  take(name: string, ms: number): Promise<GiveBack | null>;
}

const peers: Peer[] = [
  {
    name: "redlock",
    keyOf: (name) => name,
    async take(name, ms) {
      const theirs = new Redlock([redis], { retryCount: 0 });
      try {
        const lock = await theirs.acquire([name], ms);
        return () => lock.release().catch(allow(ExecutionError));
      } catch (error) {
        return allow(ExecutionError)(error);
      }
    },
  },
  {
    name: "redis-semaphore",
    keyOf: (name) => `mutex:${name}`,
    async take(name, ms) {
      const theirs = new Mutex(redis, name, {
        lockTimeout: ms,
        refreshInterval: 0,
        acquireAttemptsLimit: 1,
      });
      return await theirs.tryAcquire() ? () => theirs.release() : null;
    },
  },
  {
    name: "SET NX PX by hand",
    keyOf: (name) => name,
    async take(name, ms) {
      const value = randomUUID();
      const reply = await redis.set(name, value, "PX", ms, "NX");
      const mine = `return redis.call("GET", KEYS[1]) == ARGV[1]
        and redis.call("DEL", KEYS[1])`;
      return reply && (() => redis.eval(mine, 1, name, value));
    },
  },
];

/** Turns an error of this kind into null, and passes on all others. */
function allow(kind: new (...args: never[]) => Error) {
  return (error: unknown): null => {
    if (error instanceof kind) return null;
    throw error;
  };
}

let serial = 0;

/** The others that take any command send the very words of one of these. */
const spoken = clients.filter(({ name }) => !/glide|function|bun/.test(name));

for (const peer of peers) {
  for (const { name: client, open } of spoken) {
    const couple = `${peer.name} and ours through ${client}`;

    test(`${couple}: whoever comes first excludes the other`, async () => {
      await using it = await open(server.url);
      const name = `interop:${++serial}`;
      const key = peer.keyOf(name);

      const giveBack = await peer.take(name, 60_000);
      const taken = await assertRejects(
        () => acquireLock(it.client, key),
        LockNotAcquiredError,
      );
      // A bare object can only be asked who has it.
      if (client !== "minimal") {
        const { retryAfterMs = 0 } = taken;
        assert(retryAfterMs > 0 && retryAfterMs <= 60_000, `${retryAfterMs}`);
      }
      await giveBack!();

      const ours = await acquireLock(it.client, key);
      assertEquals(await peer.take(name, 60_000), null);
      assert(ours.isAcquired());
      assertEquals(await server.command("GET", key), ours.owner);
      assertEquals(await ours.release(), true);

      const again = await peer.take(name, 60_000);
      assertNotEquals(again, null);
      await again!();
      assertEquals(await server.command("DBSIZE"), 0);
    });

    test(`${couple}: what expired of theirs is ours, and their late release leaves it so`, async () => {
      await using it = await open(server.url);
      const name = `interop:${++serial}`;
      const key = peer.keyOf(name);

      const giveBack = await peer.take(name, 50);
      let ours: DistributedLock | null = null;
      await until("theirs has expired", async () => {
        ours = await acquireLock(it.client, key, { throwOnFail: false });
        return ours !== null;
      });
      const { owner } = ours! as DistributedLock;
      await giveBack!();
      assertEquals(await server.command("GET", key), owner);
      assertEquals(await (ours! as DistributedLock).release(), true);
      assertEquals(await server.command("DBSIZE"), 0);
    });

    test(`${couple}: what expired of ours is theirs, and our late release leaves it so`, async () => {
      await using it = await open(server.url);
      const name = `interop:${++serial}`;
      const key = peer.keyOf(name);

      const ours = await acquireLock(it.client, key, { ttl: 0.4 });
      let giveBack: GiveBack | null = null;
      await until("ours has expired", async () => {
        giveBack = await peer.take(name, 60_000);
        return giveBack !== null;
      });
      // We knew before the server did.
      assertFalse(ours.isAcquired());
      const value = await server.command("GET", key);
      await assertRejects(() => ours.extend(), LockLostError);
      assertEquals(await ours.release(), false);
      assertEquals(await server.command("GET", key), value);
      await (giveBack! as GiveBack)();
      assertEquals(await server.command("DBSIZE"), 0);
    });
  }
}

test("a key that somebody set for ever is taken, until nobody knows when", async () => {
  for (const { open } of clients) {
    await using it = await open(server.url);
    await server.command("SET", "interop:for-ever", "locked");
    const taken = await assertRejects(
      () => acquireLock(it.client, "interop:for-ever"),
      LockNotAcquiredError,
    );
    assertEquals(taken.retryAfterMs, undefined);
    assertEquals(await server.command("GET", "interop:for-ever"), "locked");
    await server.command("DEL", "interop:for-ever");
    await (await acquireLock(it.client, "interop:for-ever")).release();
  }
});
