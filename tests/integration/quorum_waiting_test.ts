/**
 * Waiting over three real servers: many who wait, of as many processes, one of
 * which is killed; words that are lost, and what an undisturbed lock costs.
 */
import { assert, assertEquals } from "@std/assert";

import {
  acquireLock,
  type Backend,
  type DistributedLock,
  redlock,
} from "@dreamer/utils/lock";
import { clients, type OpenClient } from "../support/clients.ts";
import { ledgerHere, overlap } from "../support/overlap.ts";
import { spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const OVERLAPPER = new URL("../faults/overlapper.ts", import.meta.url);

let servers: RedisServer[];
before(async () => {
  servers = await Promise.all([1, 2, 3].map(() => startRedis()));
});
after(() => Promise.all(servers.map((server) => server.stop())));

/** As many processes as are wanted, as far as the servers can tell. */
class Processes implements AsyncDisposable {
  readonly #opened: OpenClient[] = [];

  async open(kind = clients[0]): Promise<Backend> {
    const opened = await Promise.all(servers.map(({ url }) => kind.open(url)));
    this.#opened.push(...opened);
    return redlock(opened.map(({ client }) => client));
  }

  async [Symbol.asyncDispose]() {
    for (const { close } of this.#opened) await close();
    await timersEnd();
    await until("no key is left", async () => {
      for (const { command } of servers) {
        const keys = await command("KEYS", "*") as string[];
        if (keys.some((key) => !key.endsWith(":fence"))) return false;
      }
      return true;
    }, 15_000);
  }
}

/** So many are noted at a majority by now: who was last to listen may be later. */
async function noted(key: string, count: number): Promise<void> {
  await until(`${count} are noted`, async () => {
    const counts = await Promise.all(
      servers.map(({ command }) => command("ZCARD", `{${key}}:watch`)),
    );
    return counts.filter((found) => Number(found) >= count).length >= 2;
  });
}

const wait = (on: Backend, key: string) =>
  acquireLock(on, key, { ttl: 10, waitMs: 15_000, throwOnFail: true });

test("twenty who wait over a quorum are served in their order, and one at a time", async () => {
  await using processes = new Processes();
  let holder = await wait(await processes.open(), "k0");
  const served: number[] = [];
  const waiting: Promise<DistributedLock>[] = [];
  for (let i = 0; i < 20; i++) {
    const on = await processes.open(clients[i % 2]);
    const one = wait(on, "k0");
    one.then(() => served.push(i), () => {});
    waiting.push(one);
    await noted("k0", i + 1);
  }
  for (const next of waiting) {
    assert(await holder.release());
    holder = await next;
  }
  await holder.release();
  assertEquals(served, served.toSorted((a, b) => a - b));
  assertEquals(served.length, 20);
});

test("who waits over a quorum gets it though every word of it is lost", async () => {
  await using processes = new Processes();
  const holder = await wait(await processes.open(), "k1");
  const waiting = wait(await processes.open(), "k1");
  await noted("k1", 1);
  let isCut = true;
  const cutting = (async () => {
    while (isCut) {
      for (const { command } of servers) {
        await command("CLIENT", "KILL", "TYPE", "pubsub");
      }
    }
  })();
  try {
    await holder.release();
    const lock = await waiting;
    assert(lock.isAcquired());
    await lock.release();
  } finally {
    isCut = false;
    await cutting;
  }
});

test("who waits over a quorum gets what another library deletes", async () => {
  await using processes = new Processes();
  for (const { command } of servers) {
    await command("SET", "k2", "theirs", "PX", 10_000);
  }
  const waiting = wait(await processes.open(), "k2");
  await noted("k2", 1);
  for (const { command } of servers) await command("DEL", "k2");
  await (await waiting).release();
});

test("one who is killed as it waits is not waited for, and leaves no key", async () => {
  await using processes = new Processes();
  const on = await processes.open();
  const holder = await wait(on, "overlap:0");
  const rest: DistributedLock[] = [];
  for (let i = 1; i < 12; i++) rest.push(await wait(on, `overlap:${i}`));
  const urls = servers.map(({ url }) => url).join();
  await using other = spawnScript(OVERLAPPER, [
    ...["quorum", urls, servers[0].url, 7, 30, 60],
  ]);
  await noted("overlap:0", 1);
  const waiting = wait(await processes.open(), "overlap:0");
  await noted("overlap:0", 2);
  other.kill("SIGKILL");
  await other.exited;
  await holder.release();
  await (await waiting).release();
  for (const lock of rest) await lock.release();
});

test("a lock over a quorum that nobody else wants costs two commands a server, and no word", async () => {
  await using processes = new Processes();
  const on = await processes.open();
  // Scripts are known by then.
  await (await wait(on, "k4")).release();
  const calls = async (server: RedisServer) => {
    const stats = String(await server.command("INFO", "commandstats"));
    return Object.fromEntries(
      [...stats.matchAll(/cmdstat_(\S+):calls=(\d+)/g)].map((
        [, name, calls],
      ) => [name, Number(calls)]),
    );
  };
  for (const { command } of servers) await command("CONFIG", "RESETSTAT");
  for (let i = 0; i < 10; i++) {
    const lock = await acquireLock(on, "k4", { waitMs: 1_000 });
    assert(await lock?.release());
  }
  for (const server of servers) {
    await until("all are done", async () => (await calls(server)).set === 10);
    await until("freed", async () => (await calls(server)).evalsha === 10);
    const { set, evalsha, eval: evals, publish } = await calls(server);
    assertEquals([set, evalsha, evals, publish], [
      10,
      10,
      undefined,
      undefined,
    ]);
  }
});

test("overlapping sets over a quorum never meet, nor wait for each other", async () => {
  await using processes = new Processes();
  const outcome = await overlap({
    on: [await processes.open(), await processes.open(clients[1])],
    clients: 30,
    seconds: 1,
    prefix: "sets",
    waitMs: 15_000,
    ttl: 5,
    random: Math.random,
    ledger: ledgerHere(),
  });
  assertEquals(outcome.strange, []);
  assert(outcome.served >= 30, `${outcome.served} served`);
});
