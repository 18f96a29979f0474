/** A thousand held locks: what they cost while nobody does anything to them. */
import { assert, assertEquals } from "@std/assert";

import { acquireLock, type DistributedLock } from "@dreamer/utils/lock";
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersLeft } from "../support/test.ts";

const LOCKS = 1_000;
const TTL = 3;
/** A lock is renewed after a third of its lease. */
const PERIOD_MS = TTL * 1000 / 3;
const MOST_PER_PERIOD = 10;

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** How many scripts clients have run since the last `CONFIG RESETSTAT`. */
async function scriptsRun(): Promise<number> {
  const stats = String(await server.command("INFO", "commandstats"));
  const calls = stats.matchAll(/^cmdstat_eval(?:sha)?:calls=(\d+)/gm);
  return [...calls].reduce((sum, [, calls]) => sum + Number(calls), 0);
}

for (const kind of clients) {
  if (kind.name !== "ioredis" && kind.name !== "redis") continue;

  test(`${kind.name}: a thousand locks are renewed by a few commands`, async () => {
    const timers = timersLeft();
    await using opened = await kind.open(server.url);
    const on = opened.client;
    // Spread over two periods, so that no two waves fall due at once.
    const waves = 20;
    const locks: DistributedLock[] = [];
    for (let wave = 0; wave < waves; wave++) {
      const keys = Array.from(
        { length: LOCKS / waves },
        (_, i) => `batch:${wave}:${i}`,
      );
      const options = { ttl: TTL, autoExtend: true };
      locks.push(
        ...await Promise.all(keys.map((key) => acquireLock(on, key, options))),
      );
      await pause(2 * PERIOD_MS / waves);
    }
    const signals = locks.map(({ signal }) => signal);

    await server.command("CONFIG", "RESETSTAT");
    const begunAt = performance.now();
    // More than a lease, so that all of them were renewed.
    await pause(4 * PERIOD_MS);
    const run = await scriptsRun();
    const periods = (performance.now() - begunAt) / PERIOD_MS;
    assert(run / periods <= MOST_PER_PERIOD, `${run} in ${periods} periods`);

    assertEquals(signals.filter(({ aborted }) => aborted).length, 0, "lost");
    assertEquals(await server.command("DBSIZE"), LOCKS);
    const freed = await Promise.all(locks.map((lock) => lock.release()));
    assertEquals(freed.filter(Boolean).length, LOCKS);
    assertEquals(await server.command("DBSIZE"), 0);
    assertEquals(timersLeft(), timers);
  });
}
