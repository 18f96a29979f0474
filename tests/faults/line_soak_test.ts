/**
 * The line under everything at once: many who wait through several clients,
 * and leave, hold too long or never give back, while connections are cut and
 * scripts, lines and all keys are deleted. Whatever happens: no two inside, no
 * token out of order, nobody forgotten, nothing left.
 *
 * Each run prints its seed where it fails; SOAK_SEED repeats its choices, if
 * not its timing, and SOAK_SECONDS makes it longer.
 */
import { assert, assertEquals } from "@std/assert";
import process from "node:process";

import { acquireLock, LockLostError, redis } from "@dreamer/utils/lock";
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const seconds = Number(process.env.SOAK_SECONDS ?? 1);
let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

/** Numbers in [0, 1) that follow from the seed (mulberry32). */
function randomBy(seed: number): () => number {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

const rest = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** What is broken meanwhile. */
const FAULTS: Record<string, (() => Promise<unknown>)[]> = {
  "while nothing is broken": [],
  "while connections are cut and scripts forgotten": [
    () => server.command("CLIENT", "KILL", "TYPE", "pubsub"),
    () => server.command("SCRIPT", "FLUSH"),
    () => server.command("CLIENT", "KILL", "TYPE", "normal"),
  ],
};

for (const [story, faults] of Object.entries(FAULTS)) {
  for (const kind of clients.filter(({ name }) => /^(io)?redis$/.test(name))) {
    test(
      `${kind.name}: the line keeps its promises ${story}`,
      () => soak(kind, faults),
      { timeoutMs: (seconds + 30) * 1_000 },
    );
  }
}

async function soak(
  kind: typeof clients[number],
  faults: (() => Promise<unknown>)[],
): Promise<void> {
  const seed = Number(process.env.SOAK_SEED ?? Math.random() * 2 ** 31 | 0);
  const random = randomBy(seed);
  const key = `soak:${kind.name}:${faults.length}`;
  const open = await Promise.all([1, 2, 3].map(() => kind.open(server.url)));
  const backends = open.map(({ client }) => redis(client as never));
  const endsAt = performance.now() + seconds * 1_000;
  const count = { held: 0, refused: 0, aborted: 0, lost: 0, failed: 0 };
  /** Who is inside, by their own word. */
  const inside = new Set<{ isAcquired(): boolean }>();
  let lastToken = 0;
  const strange: unknown[] = [];

  const live = async (on: typeof backends[number]) => {
    while (performance.now() < endsAt) {
      const dice = random();
      const abort = new AbortController();
      const timer = dice < 0.15
        ? setTimeout(() => abort.abort("enough"), random() * 30)
        : undefined;
      try {
        const isStrict = random() < 0.4;
        const lock = await acquireLock(on, key, {
          ttl: 0.4,
          waitMs: random() < 0.2 ? random() * 40 : Infinity,
          signal: abort.signal,
          localTurns: isStrict ? 0 : 16,
          fencing: true,
          autoExtend: random() < 0.5,
        });
        for (const other of inside) {
          if (other !== lock && other.isAcquired()) {
            strange.push(`two inside, ${seed}`);
          }
        }
        inside.add(lock);
        const token = lock.fencingToken!;
        // One that was lost on the way here may come late, and is refused.
        if (lock.isAcquired()) {
          if (token <= lastToken) strange.push(`${token} after ${lastToken}`);
          lastToken = Math.max(token, lastToken);
        }
        count.held++;
        if (random() < 0.3) await rest(random() * 12);
        // Forgotten: never released, it runs out.
        if (random() < 0.01) {
          const { signal } = lock;
          if (random() < 0.5) await rest(500);
          else if (!signal.aborted) await lock.extend(0.05).catch(() => {});
        }
        inside.delete(lock);
        await lock.release();
      } catch (error) {
        const { name, code } = error as { name?: string; code?: string };
        if (error === "enough") count.aborted++;
        else if (code === "LOCK_NOT_ACQUIRED") count.refused++;
        else if (error instanceof LockLostError) count.lost++;
        else if (code === "LOCK_BACKEND" && faults.length > 0) count.failed++;
        else if (/no answer .* in/.test(String(error))) count.failed++;
        else strange.push(name, error);
      } finally {
        clearTimeout(timer);
      }
    }
  };
  const lives = backends.flatMap((on) => Array.from({ length: 12 }, () => on))
    .map(live);
  while (performance.now() < endsAt) {
    await rest(40 + random() * 100);
    const fault = faults[Math.floor(random() * faults.length)];
    // Our own connection may be the one that is cut.
    await fault?.().catch(() => {});
  }
  await Promise.all(lives);
  assertEquals(strange, [], `seed ${seed}, ${JSON.stringify(count)}`);
  assert(
    count.held > 17 * seconds,
    `only ${JSON.stringify(count)}, seed ${seed}`,
  );
  await until("nothing is left", async () => {
    const keys = await server.command("KEYS", `*${key}*`) as string[];
    return keys.every((name) => name === `{${key}}:fence`);
  });
  await Promise.all(open.map((client) => client.close()));
  await timersEnd();
  if (process.env.SOAK_SECONDS) console.log(story(kind.name, count));
}

function story(name: string, count: object): string {
  return `${name}: ${JSON.stringify(count)}`;
}
