/**
 * What do several keys at once cost? 2, 5 and 20 of them, beside one, acquired
 * and released one time after the other: times the bare commands, which take all
 * of them or none by one script and give them back by another.
 */
import {
  type Cell,
  inRounds,
  quantile,
  type Report,
  type Settings,
} from "./harness.ts";
import { acquireLock } from "./ours.ts";
import {
  type Ioredis,
  type IoredisPackage,
  load,
  type Redlock5Package,
} from "./packages.ts";

const SIZES = [1, 2, 5, 20];
const TTL_MS = 10_000;

/** One way of locking all of some keys. */
interface Subject {
  readonly name: string;
  hold(): Promise<void>;
}

export async function several({ url, quick }: Settings): Promise<Report> {
  const rounds = quick ? 7 : 61;
  const pairs = 100;
  const { Redis } = await load<IoredisPackage>("ioredis");
  const client = new Redis(url);
  const rows: Record<string, Cell>[] = [];
  try {
    for (const size of SIZES) {
      const keysOf = (name: string) =>
        Array.from({ length: size }, (_, i) => `bench:several:${name}:${i}`);
      const subjects: Subject[] = [
        { name: "bare", hold: await bare(client, keysOf("bare")) },
        { name: "ours", hold: ours(client, keysOf("ours")) },
        { name: "redlock 5", hold: await redlock5(client, keysOf("5")) },
      ];
      const take = ({ hold }: Subject) => latency(hold, pairs);
      for (const { hold } of subjects) await latency(hold, 10 * pairs);
      const outcomes = await inRounds(subjects, rounds, take);
      outcomes.forEach(({ ratio, absolute }, i) =>
        rows.push({
          keys: size,
          lock: subjects[i].name,
          "times bare": i === 0 ? 1 : ratio,
          "µs": absolute.median,
        })
      );
    }
  } finally {
    client.disconnect();
  }
  const title = "Several keys: latency p50 of acquire + release of all, less " +
    `is better; median (quartiles) of ${rounds} rounds of ${pairs} pairs`;
  return { name: "several", title, rows };
}

/** The median of so many pairs, in microseconds. */
async function latency(
  hold: () => Promise<void>,
  pairs: number,
): Promise<number> {
  const took: number[] = [];
  for (let i = 0; i < pairs; i++) {
    const begun = performance.now();
    await hold();
    took.push((performance.now() - begun) * 1000);
  }
  return quantile(took, 0.5);
}

function sure(held: boolean): void {
  if (!held) throw new Error("The locks are not held");
}

const TAKE = `for _, key in ipairs(KEYS) do
  if redis.call("EXISTS", key) == 1 then return 0 end
end
for _, key in ipairs(KEYS) do redis.call("SET", key, ARGV[1], "PX", ARGV[2]) end
return 1`;

const FREE = `local freed = 0
for _, key in ipairs(KEYS) do
  if redis.call("GET", key) == ARGV[1] then
    freed = freed + redis.call("DEL", key)
  end
end
return freed`;

async function bare(
  client: Ioredis,
  keys: readonly string[],
): Promise<Subject["hold"]> {
  const take = String(await client.script("LOAD", TAKE));
  const free = String(await client.script("LOAD", FREE));
  const { length } = keys;
  return async () => {
    const owner = crypto.randomUUID();
    sure(await client.evalsha(take, length, ...keys, owner, TTL_MS) === 1);
    sure(await client.evalsha(free, length, ...keys, owner) === length);
  };
}

function ours(client: Ioredis, keys: readonly string[]): Subject["hold"] {
  const options = { ttl: TTL_MS / 1000 };
  return async () => {
    const lock = await acquireLock(client, keys, options);
    sure(await lock.release());
  };
}

async function redlock5(
  client: Ioredis,
  keys: readonly string[],
): Promise<Subject["hold"]> {
  const { default: Redlock } = await load<Redlock5Package>("redlock");
  const redlock = new Redlock([client], {
    retryCount: 0,
    automaticExtensionThreshold: 0,
  });
  return async () => {
    const lock = await redlock.acquire(keys, TTL_MS);
    await lock.release();
  };
}
