/** Promise 8 against a real server: nothing makes a fencing token fall. */
import { assert, assertEquals, assertRejects } from "@std/assert";

import { Redis } from "ioredis";

import {
  acquireLock,
  type CommandFunction,
  fencedSet,
  LockBackendError,
  redis,
} from "@dreamer/utils/lock";
import { drawOwner } from "../../src/core/keys.ts";
import { startProxy } from "../support/proxy.ts";
import { startRedis } from "../support/redis_server.ts";
import { test } from "../support/test.ts";
import { until } from "../support/until.ts";

const DAY_MS = 86_400_000;

/** Acquires, and gives the token that was drawn and the held lock. */
async function draw(redis: Redis, key = "k") {
  const lock = await acquireLock(redis, key, { ttl: 10, fencing: true });
  const token = lock.fencingToken;
  assert(token !== undefined && Number.isSafeInteger(token));
  return { lock, token };
}

test("tokens grow past deletion and eviction of the counter, and restarts", async () => {
  await using keeping = await startRedis({
    args: ["--appendonly", "yes", "--appendfsync", "always"],
  });
  await using empty = await startRedis();
  for (const server of [keeping, empty]) {
    const redis = new Redis(server.url, { retryStrategy: () => 20 });
    redis.on("error", () => {});
    const drawn: number[] = [];
    const turn = async () => {
      const { lock, token } = await draw(redis);
      drawn.push(token);
      await lock.release();
    };
    await turn();
    await turn();
    await server.command("DEL", "{k}:fence");
    await turn();
    await server.restart();
    await turn();
    await server.command("FLUSHALL");
    await turn();
    // A server whose clock is behind what it has drawn goes on from there.
    const ahead = 2 ** 52;
    await server.command("SET", "{k}:fence", ahead);
    await turn();
    assertEquals(drawn.at(-1), ahead + 1, "digits were lost");
    const sorted = [...new Set(drawn)].sort((a, b) => a - b);
    assertEquals(drawn, sorted);
    redis.disconnect();
  }
});

test("a fence is kept for a day after its last use, and nothing else", async () => {
  await using server = await startRedis();
  const redis = new Redis(server.url);
  for (
    const [key, fence] of [["k", "{k}:fence"], ["a:{b}", "{b}:a:{b}:fence"]]
  ) {
    const { lock } = await draw(redis, key);
    await lock.release();
    assertEquals(await server.command("KEYS", "*"), [fence]);
    const leftMs = Number(await server.command("PTTL", fence));
    assert(leftMs > DAY_MS - 60_000 && leftMs <= DAY_MS);
    await server.command("FLUSHALL");
  }
  redis.disconnect();
});

test("the token comes in the same round trip, also if it is sent again", async () => {
  await using server = await startRedis();
  await using wire = await startProxy(server.port);
  const redis = new Redis(wire.url, { retryStrategy: () => 20 });
  redis.on("error", () => {});
  await (await draw(redis)).lock.release();
  const before = wire.requests.length;
  const { lock } = await draw(redis);
  assertEquals(wire.requests.length - before, 1);
  await lock.release();
  const dropped = wire.dropRepliesAfter("evalsha");
  const again = await draw(redis);
  await dropped;
  assertEquals(
    await server.command("GET", "{k}:fence"),
    String(again.token),
    "another one was drawn for the second sending",
  );
  assertEquals(await again.lock.release(), true);
  redis.disconnect();
});

test("fencedSet() keeps a stopped holder's late write out", async () => {
  await using server = await startRedis();
  const redis = new Redis(server.url);
  const late = await draw(redis, "lock");
  await server.command("DEL", "lock");
  const next = await draw(redis, "lock");
  assertEquals(await fencedSet(redis, "doc", "new", next.token), true);
  assertEquals(await fencedSet(redis, "doc", "old", late.token), false);
  assertEquals(await server.command("GET", "doc"), "new");
  await server.command("DEL", "doc");
  await server.command("LPUSH", "doc", "a list of somebody's");
  assertEquals(await fencedSet(redis, "doc", "x", next.token), true);
  await server.command("DEL", "doc:seen", "{doc}:seen");
  await server.command("LPUSH", "{doc}:seen", "no token");
  await assertRejects(
    () => fencedSet(redis, "doc", "y", next.token),
    LockBackendError,
  );
  await next.lock.release();
  redis.disconnect();
});

test("a turn given in silence has its token, though the fence was evicted", async () => {
  await using server = await startRedis();
  const redis = new Redis(server.url);
  // It can't be called, and asks for its turn.
  const send: CommandFunction = ([name, ...words]) =>
    redis.call(name, ...words);
  const options = { ttl: 10, fencing: true, waitMs: 10_000 } as const;
  const first = await acquireLock(send, "k", options);
  const waiting = acquireLock(send, "k", options);
  await until(
    "it stands in line",
    async () => await server.command("ZCARD", "{k}:line") === 1,
  );
  // In one step, or it could have asked in between.
  const keys = ["k", "{k}:line", "{k}:fence"];
  const owner = await server.command("EVAL", TAKE_ON, 3, ...keys);
  const next = await waiting;
  assertEquals(next.owner, owner);
  assert(next.fencingToken! > first.fencingToken!);
  await next.release();
  const last = await acquireLock(send, "k", options);
  assert(last.fencingToken! > next.fencingToken!);
  await last.release();
  redis.disconnect();
});

/** Gives the lock to the first in line, and forgets the fence. */
const TAKE_ON = `local head = redis.call("ZPOPMIN", KEYS[2])[1]
local owner = string.match(head, "^%d+ %d+ (.*)$")
redis.call("SET", KEYS[1], owner, "PX", 5000)
redis.call("DEL", KEYS[3])
return owner`;

test("all tokens of a turn are used up, also by a server whose clock is behind", async () => {
  await using server = await startRedis();
  const client = new Redis(server.url);
  const on = redis(client);
  const wish = { key: "k", owner: drawOwner(), ttlMs: 10_000, tokens: 3 };
  const ahead = 2 ** 52;
  await server.command("SET", "{k}:fence", ahead);
  // Asked again, as where the answer was lost, it has the same.
  for (let times = 0; times < 2; times++) {
    const [turn] = await on.line!.stand([wish]);
    assert("granted" in turn && turn.granted);
    assertEquals(turn.fencingToken, ahead + 1);
  }
  assertEquals(await on.release(wish), "done");
  assertEquals((await draw(client)).token, ahead + 4);
  client.disconnect();
});

test("the fence of a turn is kept for a day, too", async () => {
  await using server = await startRedis();
  const client = new Redis(server.url);
  const { line } = redis(client);
  const wish = { key: "k", owner: drawOwner(), ttlMs: 10_000, tokens: 3 };
  // As it is given, and as its tokens are drawn anew.
  for (let times = 0; times < 2; times++) {
    const [turn] = await line!.stand([wish]);
    assert("granted" in turn && turn.granted);
    const leftMs = Number(await server.command("PTTL", "{k}:fence"));
    assert(leftMs > DAY_MS - 60_000 && leftMs <= DAY_MS, `${leftMs} ms`);
    await server.command("DEL", "{k}:fence");
  }
  client.disconnect();
});
