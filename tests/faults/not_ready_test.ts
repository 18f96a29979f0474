/**
 * A server that is up, and not ready: a replica, or one that still reads its
 * data. Who has patience tries again, and is never told that the lock is taken;
 * who has none is told what the server said.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";

import {
  acquireLock,
  LockBackendError,
  type LockOptions,
  withLock,
} from "@dreamer/utils/lock";
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const PATIENT = { ttl: 10, waitMs: 10_000, localTurns: 0 } as const;
const WORDS = [
  "LOADING",
  "MASTERDOWN",
  "NOREPLICAS",
  "CLUSTERDOWN",
  "TRYAGAIN",
];

/** What a primary becomes that was told so, of one that is not there. */
const beReplica = (server: RedisServer) =>
  server.command("REPLICAOF", "127.0.0.1", 1);
const bePrimary = (server: RedisServer) =>
  server.command("REPLICAOF", "NO", "ONE");

const stories: [name: string, fn: () => Promise<void>][] = [];

// One for each way to send commands, or a machine has too much to do at a time.
const kinds = clients.filter(({ name }) =>
  ["ioredis", "redis", "upstash", "bun", "minimal"].includes(name)
);

for (const { name, open } of kinds) {
  stories.push([`${name}: a server that is a replica for a while`, async () => {
    await using server = await startRedis();
    await using here = await open(server.url);
    await using there = await open(server.url);
    const key = `not-ready:${name}`;
    const line = `{${key}}:line`;
    const inLine = (count: number) =>
      until(
        `${count} in line`,
        async () => await server.command("ZCARD", line) === count,
      );
    const holder = await acquireLock(here.client, key, { ttl: 10 });
    const order: string[] = [];
    const wait = (who: string, options: LockOptions = {}) =>
      withLock(there.client, key, (lock) => {
        lock.assertHeld();
        order.push(who);
      }, { ...PATIENT, ...options });
    const first = wait("first");
    await inLine(1);
    await beReplica(server);

    // No patience, some, and enough.
    const words: (string | undefined)[] = [];
    for (const waitMs of [0, 150]) {
      // Should it have had no answer, it is cleaned up after for this long.
      const options = { ttl: 3, waitMs, throwOnFail: false } as const;
      const error = await assertRejects(
        () => acquireLock(there.client, `${key}:other`, options),
        LockBackendError,
      );
      words.push(error.reply);
    }
    // A busy machine may have had no answer for the other by then.
    assertEquals(words[0], "READONLY");
    const later = wait("later");
    const several = acquireLock(there.client, [`${key}:1`, `${key}:2`], {
      ...PATIENT,
    });
    let isReleased = false;
    const released = holder.release().finally(() => isReleased = true);
    await new Promise((go) => setTimeout(go, 250));
    assertEquals([isReleased, order.length], [false, 0]);
    await bePrimary(server);

    assertEquals(await released, true);
    await Promise.all([first, later]);
    assertEquals(order, ["first", "later"]);
    assertEquals(await (await several).release(), true);
    await until(
      "no key is left",
      async () => await server.command("DBSIZE") === 0,
    );
  }]);
}

for (const { name, open } of kinds) {
  stories.push([`${name}: a release is told as failed in the end`, async () => {
    await using server = await startRedis();
    await using it = await open(server.url);
    const lock = await acquireLock(it.client, "late", { ttl: 10 });
    const scoped = withLock(it.client, "scoped", async () => {
      await beReplica(server);
      return "done";
    }, { ttl: 10 });
    // What fn returned comes out, whatever becomes of the lock.
    assertEquals(await scoped, "done");
    const error = await assertRejects(() => lock.release(), LockBackendError);
    assertEquals(error.reply, "READONLY");
    await bePrimary(server);
    assertEquals(await lock.release(), true);
    await until(
      "what fn had is cleaned away",
      async () => await server.command("DBSIZE") === 0,
    );
  }]);
}

for (const { name, open } of clients) {
  // The others have other ways to send a command, or one that can't be stopped.
  if (!/^(io)?redis/.test(name)) continue;
  stories.push([
    `${name}: whatever a server says that isn't ready`,
    async () => {
      await using server = await startRedis();
      for (const word of WORDS) {
        await using it = await open(server.url);
        let left = 0;
        refuse(it.client, () => left-- > 0, `${word} come back later`);
        // The attempt, the one in passing, and two in line.
        left = 4;
        const lock = await acquireLock(it.client, "key", PATIENT);
        lock.assertHeld();
        assert(left < 0, word);
        left = 2;
        assertEquals(await lock.release(), true, word);
        assert(left < 0, word);
        assertEquals(await server.command("DBSIZE"), 0);
      }
    },
  ]);
}

/** Has the client reject what is asked of it for as long as `isRefused`. */
function refuse(client: object, isRefused: () => boolean, message: string) {
  const commands = client as Record<string, (...args: unknown[]) => unknown>;
  const names = ["set", "eval", "evalsha", "evalSha"];
  // In words, where it is one of node-redis.
  if ("isOpen" in client) names.push("sendCommand");
  for (const name of names) {
    const command = commands[name];
    if (typeof command !== "function") continue;
    commands[name] = (...args) =>
      isRefused()
        ? Promise.reject(new Error(message))
        : command.apply(client, args);
  }
}

stories.push(["one that tells of it from within a script", async () => {
  // As those before version 7 put it, with the script's digest and line.
  const said = "ERR Error running script (call to f_9ab3): @user_script:5: " +
    "@user_script: 5: -READONLY You can't write against a read only replica.";
  const nobody = {
    set: () => Promise.resolve(null),
    get: () => Promise.reject(new Error(said)),
    del: () => Promise.resolve(0),
    eval: () => Promise.reject(new Error(said)),
  };
  const error = await assertRejects(
    () => acquireLock(nobody, "key"),
    LockBackendError,
  );
  assertEquals(error.reply, "READONLY");
}]);

test.sideBySide(
  stories,
  () => timersEnd(),
);
