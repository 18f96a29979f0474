/** One lock, several processes: stopped, killed, and in each other's way. */
import { assert, assertEquals } from "@std/assert";

import { Redis } from "ioredis";

import { acquireLock, type DistributedLock } from "@dreamer/utils/lock";
import { spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";

const HOLDER = new URL("./holder.ts", import.meta.url);
let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

/** Tries until the lock is free; the test's own limit ends what never is. */
async function acquireSoon(redis: Redis, key: string) {
  let lock: DistributedLock | null = null;
  while (lock === null) {
    await new Promise((done) => setTimeout(done, 5));
    lock = await acquireLock(redis, key, { throwOnFail: false });
  }
  return lock;
}

test("a stopped process says 'lost' at its first look, before any timer", async () => {
  const redis = new Redis(server.url);
  await using holder = spawnScript(HOLDER, ["stare", server.url, "stopped"]);
  await holder.next("held");
  holder.kill("SIGSTOP");
  const lock = await acquireSoon(redis, "stopped");
  const acquiredAt = Date.now();
  holder.kill("SIGCONT");
  const { lastHeld, aborted } = await holder.next("lost");
  assert(Number(lastHeld) <= acquiredAt, "two holders at one time");
  assertEquals(aborted, true, "its signal was read before it was told");
  assertEquals(await lock.release(), true);
  redis.disconnect();
});

test("a killed holder costs the others its ttl, and no more", async () => {
  const redis = new Redis(server.url);
  await using holder = spawnScript(HOLDER, ["die", server.url, "killed"]);
  await holder.next("held");
  holder.kill("SIGKILL");
  const lock = await acquireSoon(redis, "killed");
  assertEquals(await lock.release(), true);
  redis.disconnect();
});

test("processes take turns, one at a time, and end by themselves", async () => {
  const args = ["take", server.url, "turns", 50];
  const workers = Array.from({ length: 4 }, () => spawnScript(HOLDER, args));
  // All at once, or the first could be done before the last has begun.
  for (const worker of workers) await worker.next("ready");
  await server.command("RPUSH", "turns:go", ...workers.map((_, i) => i));
  let refused = 0;
  for (const worker of workers) {
    const result = await worker.next("done");
    assertEquals(result.crowded, 0);
    refused += Number(result.refused);
    assertEquals(await worker.exited, { code: 0, signal: null });
    assertEquals(worker.stderr, "", "nothing is printed");
  }
  assert(refused > 0, "they never met");
  assertEquals(await server.command("EXISTS", "turns"), 0);
});
