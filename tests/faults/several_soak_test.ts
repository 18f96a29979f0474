/**
 * Several keys at once under everything: a hundred clients in four processes
 * take random overlapping sets, while one process after the other is killed and
 * replaced. No deadlock, no two with one key, nothing left.
 *
 * SOAK_SECONDS makes each longer (`deno task soak` runs for ten minutes in all),
 * SOAK_SEED repeats the choices, if not the timing.
 */
import { assert, assertEquals } from "@std/assert";
import process from "node:process";

import { randomBy } from "../support/overlap.ts";
import { type Script, spawnScript } from "../support/process.ts";
import { startCluster } from "../support/redis_cluster.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { test } from "../support/test.ts";
import { until } from "../support/until.ts";

const OVERLAPPER = new URL("./overlapper.ts", import.meta.url);
const isSoak = process.env.SOAK_SECONDS !== undefined;
const seconds = Number(process.env.SOAK_SECONDS ?? 2);
const PROCESSES = 4;
const CLIENTS = 100;

/** Some servers, and who ends them. */
interface World extends AsyncDisposable {
  readonly servers: readonly RedisServer[];
}

const WORLDS: Record<string, () => Promise<World>> = {
  async server() {
    const server = await startRedis();
    return { servers: [server], [Symbol.asyncDispose]: () => server.stop() };
  },
  async cluster() {
    const cluster = await startCluster();
    return {
      servers: cluster.masters,
      [Symbol.asyncDispose]: () => cluster.stop(),
    };
  },
  async quorum() {
    const servers = await Promise.all([1, 2, 3].map(() => startRedis()));
    return {
      servers,
      async [Symbol.asyncDispose]() {
        for (const server of servers) await server.stop();
      },
    };
  },
};

// One of them is enough to see that it works; the others take their time.
for (const name of isSoak ? Object.keys(WORLDS) : ["server"]) {
  test(
    `${name}: overlapping sets never meet, nor wait for ever, though processes are killed`,
    () => soak(name, seconds),
    { timeoutMs: (seconds + 60) * 1_000 },
  );
}

async function soak(name: string, seconds: number): Promise<void> {
  const seed = Number(process.env.SOAK_SEED ?? Math.random() * 2 ** 31 | 0);
  const random = randomBy(seed);
  await using world = await WORLDS[name]();
  await using ledger = await startRedis();
  const urls = world.servers.map(({ url }) => url).join(",");
  const endsAt = performance.now() + seconds * 1_000;
  const start = () =>
    spawnScript(OVERLAPPER, [
      ...[name, urls, ledger.url, random() * 2 ** 31 | 0],
      ...[
        CLIENTS / PROCESSES,
        Math.max(0.5, (endsAt - performance.now()) / 1_000),
      ],
    ]);
  const running: Script[] = Array.from({ length: PROCESSES }, start);
  let killed = 0;
  try {
    for (const one of running) await one.next("ready");
    for (;;) {
      const restMs = 500 + random() * (isSoak ? 10_000 : 500);
      const leftMs = endsAt - performance.now();
      if (leftMs < restMs && killed > 0) break;
      await new Promise((done) => setTimeout(done, restMs));
      const at = Math.floor(random() * PROCESSES);
      running[at].kill("SIGKILL");
      await running[at].exited;
      killed++;
      running[at] = start();
    }
    let longestMs = 0;
    for (const one of running) {
      const done = await one.next("done", (seconds + 45) * 1_000);
      assertEquals(done.strange, [], `seed ${seed}`);
      longestMs = Math.max(longestMs, Number(done.longestMs));
      assertEquals(await one.exited, { code: 0, signal: null });
    }
    const served = Number(await ledger.command("GET", "served"));
    assert(killed > 0 && served >= CLIENTS, `${served} served, seed ${seed}`);
    // Who was killed may have been in line: that is forgotten in a while.
    await until(
      isSoak ? "no key is left" : "no key is left for good",
      () => isEmpty(world.servers),
      15_000,
    );
    if (isSoak) {
      const told = { served, longestMs: Math.round(longestMs), killed, seed };
      console.log(`${name}: ${JSON.stringify(told)}`);
    }
  } finally {
    for (const one of running) await one[Symbol.asyncDispose]();
  }
}

/** Whether no key is there; in a short run, none without an expiry. */
async function isEmpty(servers: readonly RedisServer[]): Promise<boolean> {
  for (const { command } of servers) {
    for (const key of await command("KEYS", "*") as string[]) {
      if (isSoak || Number(await command("PTTL", key)) === -1) return false;
    }
  }
  return true;
}
