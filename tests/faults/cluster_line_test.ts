/**
 * The waiting line in a Cluster, where a message is heard at every master and
 * counted at one only: who died in line must not cost the others a lease each.
 */
import { assert, assertEquals } from "@std/assert";
import { Redis } from "ioredis";
import process from "node:process";

import { acquireLock, type IoredisClient, redis } from "@dreamer/utils/lock";
import { drawOwner } from "../../src/core/keys.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { areInLine } from "../support/line.ts";
import { spawnScript } from "../support/process.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const WAITER = new URL("./waiter.ts", import.meta.url);
const PATIENT = { ttl: 30, waitMs: 20_000, localTurns: 0 } as const;
/** Less than one short lease, which is what one of the dead could cost (2 s). */
const LIMIT_MS = 1_500;

let cluster: RedisCluster;
before(async () => void (cluster = await startCluster()));
after(() => cluster.stop());

/** Who can't listen asks, and may have died: that costs the others a lease. */
const called = clusterClients.filter(({ name }) => name !== "glide cluster");

const stories = called.map(({ name, open }) =>
  [`${name}: those before one are killed in line`, async () => {
    await using it = await open(cluster.urls);
    const key = `dead:${name}`;
    const inLine = (count: number) =>
      until(
        `${count} in line`,
        async () =>
          areInLine(
            await cluster.commandFor(key, "ZRANGE", `{${key}}:line`, 0, -1),
            count,
          ),
      );
    const dying = await Promise.all([1, 2].map(async () => {
      const script = spawnScript(WAITER, [name, ...cluster.urls]);
      await script.next("ready");
      return script;
    }));
    const holder = await acquireLock(it.client, key);
    for (const [i, script] of dying.entries()) {
      script.send({ do: "acquire", id: "it", key, options: PATIENT });
      await inLine(i + 1);
    }
    const next = acquireLock(it.client, key, PATIENT);
    await inLine(3);
    for (const script of dying) {
      script.kill();
      await script.exited;
    }
    const releasedAt = performance.now();
    assertEquals(await holder.release(), true);
    const lock = await next;
    const tookMs = performance.now() - releasedAt;
    if (process.env.LINE_DELAYS) {
      const told = `two killed in line (${name}): ${Math.round(tookMs)} ms`;
      process.stderr.write(`DELAY ${told}\n`);
    }
    assert(tookMs < LIMIT_MS, `${tookMs} ms after two dead ones`);
    assertEquals(await lock.release(), true);
    await inLine(0);
  }] as const
);

test.sideBySide(
  stories,
  () => timersEnd(),
);

test("who is passed over at one master is not called by way of another", async () => {
  const [{ open }] = clusterClients;
  await using it = await open(cluster.urls);
  const on = redis(it.client as IoredisClient);
  const key = "passed over at one";
  const channel = `lock:inbox:${drawOwner().slice(0, 16)}*`;
  const inbox = channel.slice("lock:inbox:".length);
  const [hold, first, second] = [undefined, inbox, undefined].map((inbox) => ({
    ...{ key, owner: drawOwner(undefined, inbox), ttlMs: 30_000, tokens: 0 },
  }));
  assert((await on.tryAcquire(hold)).granted);
  // As one that has lost its connection to the master of the key, and no other.
  const answers = await Promise.allSettled(
    cluster.masters.map((master) => master.command("GET", key)),
  );
  const home = answers.findIndex(({ status }) => status === "fulfilled");
  const [elsewhere] = cluster.masters.filter((_, i) => i !== home);
  const ear = new Redis(elsewhere.url);
  const heard: string[] = [];
  ear.on("message", (_channel, word) => heard.push(word));
  await ear.subscribe(channel);
  await on.line!.stand([first]);
  await on.line!.stand([second]);
  assertEquals((await on.line!.handOver(hold, undefined)).verdict, "done");
  assertEquals((await on.inquire!(second)).verdict, "done");
  // Behind whatever was called out before.
  await cluster.masters[home].command("PUBLISH", channel, "the end");
  await until("it hears that", () => heard.includes("the end"));
  assertEquals(heard, ["the end"], "two have the key");
  assertEquals(await on.release(second), "done");
  ear.disconnect();
});
