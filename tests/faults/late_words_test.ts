/** Words that come late to a real server, or to another owner of the lock. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";

import {
  acquireLock,
  DistributedLock,
  LockError,
  LockLostError,
  redis,
} from "@dreamer/utils/lock";
import { Lock } from "@dreamer/utils/lock/upstash";
import { clients } from "../support/clients.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));
const left = async (key: string) => Number(await server.command("PTTL", key));

for (const { name, open } of clients) {
  if (name !== "ioredis" && name !== "redis") continue;

  test(`${name}: a renewal from before a hand-over shortens nothing`, async () => {
    await using proxy = await startProxy(server.port);
    await using here = await open(proxy.url);
    await using there = await open(server.url);
    const key = `handed over by ${name}`;
    const options = { ttl: 3, autoExtend: true };
    const lock = await acquireLock(here.client, key, options);
    const first = await left(key);
    proxy.hold(true);
    // By then its renewal is under way.
    await until("it is overdue", async () => await left(key) < first - 1_200);
    const json = JSON.stringify(lock);
    const resumed = await DistributedLock.resume(there.client, json);
    await resumed.extend(60);
    proxy.hold(false);
    // It comes before this one, by the same connection.
    await acquireLock(here.client, `${key}, then`);
    assert(await left(key) > 50_000, `${await left(key)} ms`);
    assert(await resumed.release());
  });

  test(`${name}: no hand-over while an extension is under way, however late`, async () => {
    await using proxy = await startProxy(server.port);
    await using here = await open(proxy.url);
    const lock = await acquireLock(here.client, `busy at ${name}`, { ttl: 6 });
    proxy.hold(true);
    const first = lock.extend();
    const second = lock.extend(5);
    await sleep(1_000);
    proxy.hold(false);
    await first;
    // The second has waited for the first, and is under way by now.
    proxy.hold(true);
    await sleep(1_500);
    assertThrows(() => lock.toJSON(), LockError, "is being extended");
    proxy.hold(false);
    await second;
    assert(await lock.release());
  });

  test(`${name}: tried again by the same owner it has a whole lease`, async () => {
    await using proxy = await startProxy(server.port);
    await using it = await open(proxy.url, { offline: "fail" });
    const key = `tried again by ${name}`;
    const lock = new DistributedLock(it.client, key, crypto.randomUUID(), 20);
    // As if its first attempt had been heard by the server alone, long ago.
    await server.command("SET", key, lock.owner, "PX", 5_000);
    assert(await lock.acquire());
    const leftMs = await left(key);
    assert(leftMs > 15_000 && lock.remainingMs <= leftMs, `${leftMs} ms`);
    await lock.release();
  });

  test(`${name}: a short extension needs no right to the line`, async () => {
    const user = `alone-${name}`;
    await server.command(
      ...["ACL", "SETUSER", user, "on", ">word", "+@all", "~lone*"],
    );
    const { host, port } = server;
    await using it = await open(`redis://${user}:word@${host}:${port}`);
    const lock = await acquireLock(it.client, `lone:${name}`);
    await lock.extend(1.1);
    assert(await left(lock.key) <= 1_100);
    assert(lock.isAcquired());
    await server.command("DEL", lock.key);

    const id = `lone:old:${name}`;
    const old = new Lock({ id, redis: it.client, lease: 30_000 });
    assert(await old.acquire());
    assert(await old.extend(-29_000));
    assert(await left(id) <= 1_000);
    await server.command("DEL", id);
  });

  test(`${name}: what is forbidden for one key loses no other`, async () => {
    await server.command(
      ...["ACL", "SETUSER", name, "on", ">word", "+@all", "allchannels"],
      ...["~a*", "~{a*", "~b*", "~{b*"],
    );
    const { host, port } = server;
    await using it = await open(`redis://${name}:word@${host}:${port}`);
    const extended: string[] = [];
    const on = redis(it.client as Parameters<typeof redis>[0], {
      onEvent: ({ type, key }) => type === "extended" && extended.push(key),
    });
    const options = { ttl: 3, autoExtend: true };
    const [a, b] = await Promise.all(
      ["a", "b"].map((key) => acquireLock(on, `${key}:${name}`, options)),
    );
    await server.command(
      ...["ACL", "SETUSER", name, "resetkeys", "~a*", "~{a*"],
    );
    await until("the other is lost", () => b.signal.aborted);
    assertEquals(a.signal.aborted, false);
    assertEquals([...new Set(extended)], [a.key]);
    assert(await a.release());
  });
}

test("several keys that are not all held any more are none", async () => {
  await using proxy = await startProxy(server.port);
  await using it = await clients[0].open(proxy.url);
  const keys = ["s:1", "s:2", "s:3"];
  const lock = await acquireLock(it.client, keys, { ttl: 0.6 });
  await lock.release();
  // The first is over by the time of the last.
  proxy.delayReplies(250);
  await assertRejects(() => lock.acquire(), LockLostError);
  proxy.delayReplies(0);
  assertEquals(lock.isAcquired(), false);
  await until(
    "all are freed",
    async () => await server.command("EXISTS", ...keys) === 0,
  );
});

test("what was added to a lease, or taken off it, changes no later one", async () => {
  await using it = await clients[0].open(server.url);
  const { client } = it;
  const command = client as unknown as {
    call(...words: string[]): Promise<unknown>;
  };
  const isMoment = (word: string) => /^\d{13}$/.test(word);
  let late: string[] | undefined;
  let isLate = false;
  // As over HTTP: the second of its questions is given up, and arrives.
  const on = redis((words) => {
    if (/^EVAL/.test(words[0]) && isLate && words.some(isMoment)) {
      isLate = false;
      late = [...words];
      return Promise.reject(new Error("The operation timed out"));
    }
    return command.call(...words);
  });
  const lock = new Lock({ id: "added to", redis: on, lease: 30_000 });
  assert(await lock.acquire());
  assert(await lock.extend(-500), "the script is known");
  isLate = true;
  await assertRejects(() => lock.extend(-28_000));
  assert(await lock.extend(20_000));
  const leftMs = await left("added to");
  assert(leftMs > 40_000, `${leftMs} ms`);
  await command.call(...late!);
  assert(await left("added to") > 40_000, "cut short");
  await lock.release();
});
