/** Who is in a hurry, on a real server: to leave, or to know. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Redis } from "ioredis";

import { acquireLock, LockBackendError } from "@dreamer/utils/lock";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { stall } from "../support/stall.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

const LATE = { allowTimers: "who waited listens on for a second" };

test("locks that are released before their client is closed are free", async () => {
  const keys = ["close:1", "close:2", "close:3"];
  for (const isOne of [false, true]) {
    const client = new Redis(server.url);
    // Scripts are known, and nothing is slow for the first time.
    for (let times = 0; times < 2; times++) {
      for (const key of [keys, keys[0]]) {
        const warm = await acquireLock(client, key);
        await warm.release();
        await new Promise((go) => setTimeout(go, 30));
      }
      const each = keys.map((key) => acquireLock(client, key));
      await Promise.all((await Promise.all(each)).map((it) => it.release()));
    }
    await new Promise((go) => setTimeout(go, 50));
    const locks = isOne
      ? [await acquireLock(client, keys)]
      : await Promise.all(keys.map((key) => acquireLock(client, key)));
    const leaving = Promise.all(locks.map((lock) => lock.release()));
    const closed = client.quit();
    assertEquals(await leaving, locks.map(() => true));
    await closed;
    assertEquals(await server.command("EXISTS", ...keys), 0);
  }
});

test(
  "an answer that came while the program was busy is no silence",
  async () => {
    const client = new Redis(server.url);
    const taken = await acquireLock(client, "busy:taken");
    const hurry = { waitMs: 50, throwOnFail: false } as const;
    for (
      const [keys, isFree] of [
        ["busy:free", true],
        [["busy:free", "busy:other"], true],
        [["busy:free", "busy:taken"], false],
      ] as const
    ) {
      // Warm, so that what is asked for goes out before the stall.
      const asking = acquireLock(client, keys, hurry);
      await undefined;
      stall(400);
      const lock = await asking;
      assertEquals(lock !== null, isFree, String(keys));
      await lock?.release();
    }
    await taken.release();
    client.disconnect();
  },
  LATE,
);

test(
  "who waits is served though a wrapper threw at the release of a turn",
  async () => {
    const client = new Redis(server.url);
    let isBroken = false;
    const breaker = new Proxy(client, {
      get(target, name) {
        const member = Reflect.get(target, name);
        if (typeof member !== "function") return member;
        return (...args: unknown[]) => {
          if (isBroken && ["eval", "evalsha"].includes(String(name))) {
            throw new Error("no more today");
          }
          return member.apply(target, args);
        };
      },
    });
    const options = { ttl: 1, waitMs: 10_000 };
    const holder = await acquireLock(breaker, "breaker", options);
    const waiting = acquireLock(breaker, "breaker", options);
    await until(
      "it stands in line",
      async () => await server.command("EXISTS", "{breaker}:line") === 1,
    );
    await holder.release();
    const second = await waiting;
    const last = acquireLock(breaker, "breaker", options);
    // Past its turn, so that the release is to stand in line for the last.
    stall(11);
    isBroken = true;
    const leaving = second.release();
    isBroken = false;
    await assertRejects(() => leaving, LockBackendError);
    const lock = await last;
    assert(lock.isAcquired());
    await lock.release();
    client.disconnect();
  },
  LATE,
);
