/**
 * A quorum of five real servers, by clients of as many kinds: one is killed,
 * two, three; one is stopped; one comes back empty; an answer is lost.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  inspectLock,
  LockBackendError,
  type LockEvent,
  redlock,
  withLock,
} from "@dreamer/utils/lock";
import { connect } from "../../src/connect.ts";
import { clients, type OpenClient } from "../support/clients.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { test, timersEnd, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";

const DAY_MS = 86_400_000;
const KINDS = ["ioredis", "redis", "ioredis5", "redis5", "redis pool"];

/** Five servers, and a quorum over them. */
class World implements AsyncDisposable {
  readonly servers: RedisServer[] = [];
  readonly events: LockEvent[] = [];
  on!: Backend;
  readonly #opened: OpenClient[] = [];

  static async open(): Promise<World> {
    const world = new World();
    const starting = KINDS.map(() => startRedis());
    world.servers.push(...await Promise.all(starting));
    world.on = await world.quorum();
    return world;
  }

  /** A quorum by clients of its own, as another process would have it. */
  async quorum(): Promise<Backend> {
    const opened = await Promise.all(
      this.servers.map(({ url }, i) =>
        clients.find(({ name }) => name === KINDS[i])!.open(url)
      ),
    );
    this.#opened.push(...opened);
    return redlock(opened.map(({ client }) => client), {
      onEvent: (event) => void this.events.push(event),
    });
  }

  /** On which servers, of those that can be asked, `key` is. */
  async having(key: string, asked = this.servers): Promise<number> {
    const answers = await Promise.all(
      asked.map(({ command }) => command("EXISTS", key)),
    );
    return answers.filter((answer) => answer === 1).length;
  }

  /** The key is, or is not, on so many servers by and by. */
  async comes(key: string, count: number, asked?: RedisServer[]) {
    await until(
      `${key} on ${count}`,
      async () => await this.having(key, asked) === count,
    );
  }

  async [Symbol.asyncDispose]() {
    for (const { close } of this.#opened) await close();
    await timersEnd();
    for (const server of this.servers) await server.stop();
  }
}

/** All that can be done with a lock, by who has it and by others. */
async function live(on: Backend, key: string): Promise<void> {
  const lock = await acquireLock(on, key, { fencing: true, label: "first" });
  const taken = await acquireLock(on, key, { throwOnFail: false });
  assertStrictEquals(taken, null);
  await lock.extend(60);
  assert(lock.remainingMs > 50_000);
  const { held, label } = await inspectLock(on, key);
  assertEquals([held, label], [true, "first"]);
  const waiting = acquireLock(on, key, { waitMs: 15_000, fencing: true });
  assertEquals(await lock.release(), true);
  const next = await waiting;
  assert(next.fencingToken! > lock.fencingToken!);
  assertEquals(await next.release(), true);
}

for (const killed of [1, 2]) {
  test(`${killed} of five servers killed: all goes on, and it is claimed again`, async () => {
    await using world = await World.open();
    const { servers, on } = world;
    const [away, here] = [servers.slice(0, killed), servers.slice(killed)];
    for (const server of away) await server.kill();
    await live(on, "k");
    await world.comes("k", 0, here);
    const lock = await acquireLock(on, "k", { ttl: 3, autoExtend: true });
    for (const server of away) await server.restart();
    // By the claim that waited for it, or by a renewal.
    await world.comes("k", 5);
    assert(lock.isAcquired());
    assertEquals(await lock.release(), true);
    await world.comes("k", 0);
  });
}

test("three of five servers killed: an error with a cause per server", async () => {
  await using world = await World.open();
  const { servers, on } = world;
  const lock = await acquireLock(on, "held", { ttl: 2, autoExtend: true });
  const { signal } = lock;
  for (const server of servers.slice(0, 3)) await server.kill();
  for (const options of [{}, { throwOnFail: false }, { waitMs: 15_000 }]) {
    const error = await assertRejects(
      () => acquireLock(on, "k", options),
      LockBackendError,
    );
    assertEquals(
      error.message,
      'Cannot acquire "k": servers 1, 2 and 3 of 5 failed',
    );
    const { cause } = error;
    assertInstanceOf(cause, AggregateError);
    assertEquals(cause.errors.length, 3);
    for (const each of cause.errors) assertInstanceOf(each, LockBackendError);
  }
  await world.comes("k", 0, servers.slice(3));
  // What is held can't be renewed, and ends in time.
  await until("it is lost", () => signal.aborted);
  assertEquals(signal.reason.reason, "unreachable");
  assert(world.events.some(({ type }) => type === "extend-failed"));
  // The last extension had no answer yet: nobody waits for it for long.
  await timersEnd();
});

test("a stopped server costs nothing: all is answered while it is stopped", async () => {
  await using world = await World.open();
  const { servers, on } = world;
  for (const index of [0, 1, 4]) {
    const stopped = servers[index];
    stopped.freeze();
    let isStopped = true;
    const key = `stopped:${index}`;
    await live(on, key);
    const held = await acquireLock(on, key, { ttl: 20 });
    await withLock(on, `${key}:with`, () => {}, { fencing: true });
    await held.release();
    assert(isStopped, "somebody waited for it");
    isStopped = false;
    stopped.thaw();
    // What it was asked all the while is done by now, in vain.
    await stopped.command("PING");
    await world.comes(key, 0);
    await world.comes(`${key}:with`, 0);
  }
});

test("a server that comes back empty takes no lock away", async () => {
  await using world = await World.open();
  const { servers, on } = world;
  const other = await world.quorum();
  const lock = await acquireLock(on, "k", { ttl: 20 });
  await world.comes("k", 5);
  for (const { command } of servers.slice(1, 3)) await command("FLUSHALL");
  const refused = await acquireLock(other, "k", { throwOnFail: false });
  assertStrictEquals(refused, null);
  await world.comes("k", 3);
  await lock.extend();
  await world.comes("k", 5);
  for (const { command } of servers.slice(0, 2)) await command("FLUSHALL");
  lock.assertHeld();
  assertEquals(await lock.release(), true);
  await world.comes("k", 0);
});

test("an answer that is lost leaves no key behind", async () => {
  await using world = await World.open();
  const { servers } = world;
  for (const kind of clients.filter(({ name }) => name !== "minimal")) {
    const wire = await startProxy(servers[0].port);
    const far = await kind.open(wire.url);
    const near = await Promise.all(
      servers.slice(1, 3).map(({ url }) => clients[0].open(url)),
    );
    const on = redlock([far, ...near].map(({ client }) => client));
    const key = `lost:${kind.name}`;
    const dropped = wire.dropRepliesAfter(key);
    const lock = await acquireLock(on, key, { ttl: 20 });
    await dropped;
    lock.assertHeld();
    assertEquals(await lock.release(), true);
    await world.comes(key, 0);
    // Not every client shows that it was closed: what is asked behind the last
    // attempt is answered after it.
    await until("all is cleaned up", async () => {
      await inspectLock(far.client, key);
      return timersLeft() === 0;
    });
    for (const { close } of [far, ...near]) await close();
    await wire.stop();
  }
});

test("a fence is raised by the owner only, in full digits, for a day", async () => {
  await using server = await startRedis();
  for (const kind of clients) {
    await using opened = await kind.open(server.url);
    const on = connect(opened.client);
    const claim = { key: "k", owner: "o", ttlMs: 20_000 };
    assertEquals(await on.raiseFence!(claim, 7), "absent");
    await on.tryAcquire(claim);
    assertEquals(await on.raiseFence!({ ...claim, owner: "p" }, 7), "taken");
    assertEquals(await server.command("EXISTS", "{k}:fence"), 0);
    const great = 2 ** 53 - 1;
    for (const token of [great - 1, great, 5]) {
      assertEquals(await on.raiseFence!(claim, token), "done");
    }
    assertEquals(await server.command("GET", "{k}:fence"), String(great));
    const leftMs = Number(await server.command("PTTL", "{k}:fence"));
    assert(leftMs > DAY_MS - 60_000 && leftMs <= DAY_MS);
    await server.command("FLUSHALL");
    await server.command("LPUSH", "k", "no lock");
    const error = await assertRejects(
      () => on.raiseFence!(claim, 7),
      LockBackendError,
    );
    assertEquals(error.reply, "WRONGTYPE");
    await server.command("FLUSHALL");
  }
});

test(
  "of many who want it, one at a time has it, whatever befalls a server",
  async () => {
    await using world = await World.open();
    const { servers } = world;
    const quorums = await Promise.all([1, 2, 3].map(() => world.quorum()));
    let inside = 0;
    let crowded = 0;
    let done = 0;
    let last = 0;
    let fallen = 0;
    const rounds = 6;
    const befalls = [
      () => servers[1].freeze(),
      () => servers[1].thaw(),
      () => servers[3].kill(),
      () => servers[3].restart(),
    ];
    const work = async (on: Backend) => {
      for (let round = 0; round < rounds; round++) {
        await withLock(on, "k", async (lock) => {
          if (++inside !== 1) crowded++;
          if (lock.fencingToken! <= last) fallen++;
          last = lock.fencingToken!;
          if (done++ % 6 === 5) await befalls.shift()?.();
          await new Promise((go) => setTimeout(go, 1));
          lock.assertHeld();
          inside--;
        }, { ttl: 20, waitMs: 18_000, fencing: true });
      }
    };
    const workers = quorums.flatMap((on) => [work(on), work(on)]);
    await Promise.all(workers);
    assertEquals([crowded, fallen, done], [0, 0, workers.length * rounds]);
    assertEquals(befalls.length, 0);
    assertFalse(world.events.some(({ type }) => type === "lost"));
    await world.comes("k", 0);
  },
  { timeoutMs: 40_000 },
);
