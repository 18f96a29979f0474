/**
 * What does a lock cost while it is held and nobody does anything to it? Some,
 * a hundred, ten thousand of them, each kept by its library's own renewal:
 * commands and processor time per second, memory per lock.
 */
import process from "node:process";
import { setTimeout as pause } from "node:timers/promises";

import type { DistributedLock, IoredisClient } from "../mod.ts";
import { runtime } from "../tests/support/process.ts";
import type { Cell, Report, Settings } from "./harness.ts";
import { acquireLock } from "./ours.ts";
import {
  type Ioredis,
  type IoredisPackage,
  load,
  type RedisSemaphorePackage,
  type Redlock5Package,
} from "./packages.ts";

/** What our renewal has to stay below, in commands, at a thousand locks. */
const GOAL_TIMES_FEWER = 50;
/** And one held lock in memory. */
const GOAL_BYTES = 1500;
/** From how many locks on the heap's own noise is small beside them. */
const ENOUGH_TO_WEIGH = 1000;
/** How many are acquired, or given back, at a time. */
const AT_ONCE = 100;

/** Ours, once somebody has read its signal: that costs a controller, a timer. */
const OBSERVED = "ours, signal read";

/** A library that renews what it holds. */
interface Keeping {
  readonly name: string;
  /** How often it renews each lock, in milliseconds. */
  readonly everyMs: number;
  /** What it puts before each key on the server. */
  readonly prefix?: string;
  /** Holds `key`, renewed in the background, until the result is called. */
  hold(key: string): Promise<() => Promise<unknown>>;
}

/** What it took to keep them all. */
interface Cost {
  readonly commandsPerS: number;
  /** Processor time of the whole server, reading and writing included. */
  readonly serverMsPerS: number;
  readonly clientMsPerS: number;
  /** NaN where it can't be told. */
  readonly bytesPerLock: number;
}

export async function held({ url, quick }: Settings): Promise<Report> {
  const ttlMs = quick ? 2_000 : 10_000;
  const sizes = quick ? [1, 100, 1_000] : [1, 100, 1_000, 10_000];
  const { Redis } = await load<IoredisPackage>("ioredis");
  const client = new Redis(url);
  // A second one asks for the figures, so that the first has no part in them.
  const onlooker = new Redis(url);
  const rows: Record<string, Cell>[] = [];
  const goals: string[] = [];
  try {
    const subjects = [
      ours(client, ttlMs, () => {}),
      { ...ours(client, ttlMs, ({ signal }) => signal), name: OBSERVED },
      await redlock5(client, ttlMs),
      await redisSemaphore(client, ttlMs),
    ];
    const row = (locks: number, lock: string, cost: Cost) =>
      rows.push({
        locks,
        lock,
        "commands/s": cost.commandsPerS,
        "server CPU ms/s": cost.serverMsPerS,
        "client CPU ms/s": cost.clientMsPerS,
        "heap bytes/lock": Number.isNaN(cost.bytesPerLock)
          ? "–"
          : cost.bytesPerLock,
      });
    // What the two processes do without any lock.
    row(0, "none", await keep(subjects[0], 0, ttlMs, onlooker));
    for (const size of sizes) {
      const costs: Cost[] = [];
      for (const subject of subjects) {
        const cost = await keep(subject, size, ttlMs, onlooker);
        costs.push(cost);
        row(size, subject.name, cost);
      }
      if (size === 1_000) goals.push(fewer(costs));
      // What was compiled on the way weighs least beside the most locks.
      if (size === sizes.at(-1)) goals.push(...lighter(costs));
    }
  } finally {
    client.disconnect();
    onlooker.disconnect();
  }
  const title = `Held locks, ttl ${ttlMs / 1000} s, on ioredis 6: what it ` +
    "costs to keep them, less is better; " + goals.join(", ");
  return { name: "held", title, rows };
}

const met = (isMet: boolean) => isMet ? "met" : "MISSED";

/** Ours beside the better of the others. */
function fewer([ours, _observed, ...others]: readonly Cost[]): string {
  const fewest = Math.min(...others.map((cost) => cost.commandsPerS));
  const times = fewest / ours.commandsPerS;
  return `of 1,000 ${times.toFixed(0)} times fewer commands ` +
    `(goal: ${GOAL_TIMES_FEWER}, ${met(times >= GOAL_TIMES_FEWER)})`;
}

/** How heavy ours are, with and without a signal; nothing where unknown. */
function lighter([ours, observed]: readonly Cost[]): string[] {
  if (Number.isNaN(ours.bytesPerLock)) return [];
  return [
    `${ours.bytesPerLock.toFixed(0)} bytes each ` +
    `(goal: < ${GOAL_BYTES}, ${met(ours.bytesPerLock < GOAL_BYTES)}), ` +
    `${observed.bytesPerLock.toFixed(0)} with a signal`,
  ];
}

/** Holds `size` locks for a whole number of renewals, and looks at the bill. */
async function keep(
  { everyMs, hold, prefix = "" }: Keeping,
  size: number,
  ttlMs: number,
  onlooker: Ioredis,
): Promise<Cost> {
  // There and back, or each is still the sum of its parts, and lighter once
  // somebody has sent it.
  const keys: string[] = JSON.parse(JSON.stringify(
    Array.from({ length: size }, () => `bench:held:${crypto.randomUUID()}`),
  ));
  const there = async () => {
    let count = 0;
    for (const some of chunks(keys)) {
      count += await onlooker.exists(...some.map((key) => prefix + key));
    }
    return count;
  };
  const holdAll = async () => {
    const backs: (() => Promise<unknown>)[] = [];
    for (const some of chunks(keys)) {
      backs.push(...await Promise.all(some.map(hold)));
    }
    return backs;
  };
  const giveAllBack = async (backs: (() => Promise<unknown>)[]) => {
    for (const some of chunks(backs)) {
      await Promise.all(some.map((back) => back()));
    }
  };
  // Once for nothing: code, scripts and buffers are nobody's locks. Where it
  // is weighed, up to and with a renewal, whose code would count as well.
  const first = await holdAll();
  if (size >= ENOUGH_TO_WEIGH) await pause(everyMs * 1.5);
  await giveAllBack(first);
  const weighedFrom = await weigh();
  const giveBack = await holdAll();
  // In the middle between two renewals, the first of which is behind them.
  await pause(everyMs * 1.5);
  await onlooker.config("RESETSTAT");
  const server = busyMs(await onlooker.info("cpu"));
  const cpu = process.cpuUsage();
  const begun = performance.now();
  await pause(Math.max(1, Math.round(ttlMs / everyMs)) * everyMs);
  const { user, system } = process.cpuUsage(cpu);
  const seconds = (performance.now() - begun) / 1000;
  const serverMs = busyMs(await onlooker.info("cpu")) - server;
  const commands = scriptsIn(await onlooker.info("commandstats"));
  const weighedTo = await weigh();
  if (await there() < size) throw new Error("A lock was lost on the way");
  await giveAllBack(giveBack);
  if (await there() > 0) throw new Error("A lock was not given back");
  const bytes = size < ENOUGH_TO_WEIGH ? NaN : weighedTo - weighedFrom;
  return {
    commandsPerS: commands / seconds,
    serverMsPerS: serverMs / seconds,
    clientMsPerS: (user + system) / 1000 / seconds,
    bytesPerLock: bytes / size,
  };
}

/** How many scripts clients ran: in each library that is how it renews. */
function scriptsIn(stats: string): number {
  return sumOf(stats, /^cmdstat_eval(?:sha)?:calls=(\d+)/gm);
}

/** For how long the server's processor was busy. */
function busyMs(stats: string): number {
  return sumOf(stats, /^used_cpu_(?:sys|user):([\d.]+)/gm) * 1000;
}

function sumOf(stats: string, figures: RegExp): number {
  return [...stats.matchAll(figures)]
    .reduce((sum, [, figure]) => sum + Number(figure), 0);
}

function* chunks<T>(all: readonly T[]): Generator<T[]> {
  for (let i = 0; i < all.length; i += AT_ONCE) {
    yield all.slice(i, i + AT_ONCE);
  }
}

/**
 * What is alive on the heap between two renewals, where a collection can be
 * asked for: the least of several looks, as one may fall on a renewal.
 */
async function weigh(): Promise<number> {
  if (runtime !== "node") return NaN;
  const { setFlagsFromString } = await import("node:v8");
  const { runInNewContext } = await import("node:vm");
  // As --expose-gc, which nobody would think of.
  setFlagsFromString("--expose_gc");
  const collect = runInNewContext("gc") as () => void;
  let least = Infinity;
  for (let look = 0; look < 6; look++) {
    collect();
    least = Math.min(least, process.memoryUsage().heapUsed);
    await pause(100);
  }
  return least;
}

function ours(
  client: IoredisClient,
  ttlMs: number,
  use: (lock: DistributedLock) => unknown,
): Keeping {
  return {
    name: "ours",
    everyMs: ttlMs / 3,
    async hold(key) {
      const options = { ttl: ttlMs / 1000, autoExtend: true };
      const lock = await acquireLock(client, key, options);
      use(lock);
      return () => lock.release();
    },
  };
}

/** By `using`, its one way of automatic extension, as it comes. */
async function redlock5(client: Ioredis, ttlMs: number): Promise<Keeping> {
  const { default: Redlock } = await load<Redlock5Package>("redlock");
  const redlock = new Redlock([client], { retryCount: 0 });
  return {
    name: "redlock 5, using",
    // Less its allowance for drift, and its threshold.
    everyMs: ttlMs - (ttlMs * 0.01 + 2) - 500,
    hold: (key) =>
      new Promise((resolve, reject) => {
        const over = redlock.using([key], ttlMs, () =>
          new Promise<void>((done) => {
            resolve(() => (done(), over));
          }));
        over.catch(reject);
      }),
  };
}

/** Refreshed after four fifths of its time, which is its default. */
async function redisSemaphore(
  client: Ioredis,
  ttlMs: number,
): Promise<Keeping> {
  const { Mutex } = await load<RedisSemaphorePackage>("redis-semaphore");
  const options = { lockTimeout: ttlMs, acquireAttemptsLimit: 1 };
  return {
    name: "redis-semaphore",
    everyMs: ttlMs * 0.8,
    prefix: "mutex:",
    async hold(key) {
      const mutex = new Mutex(client, key, options);
      await mutex.acquire();
      return () => mutex.release();
    },
  };
}
