/**
 * How soon does a quorum change hands, and what does that cost, where others
 * wait? One more than so many take the same lock again and again and hold it
 * for a moment, each by clients of its own, as so many processes would: the
 * time from a release to the next acquisition, and the commands for one. Who
 * has released it asks again once another has it, or, greedily, at once.
 */

import { type RedisServer, startRedis } from "../tests/support/redis_server.ts";
import { type Cell, quantile, type Report, type Settings } from "./harness.ts";
import { acquireLock, redlock } from "./ours.ts";
import {
  type Ioredis,
  type IoredisPackage,
  load,
  type Send,
} from "./packages.ts";

const WAITERS = [1, 8, 32];
const SERVERS = 3;
const HOLD_MS = 50;

export async function quorumWaiting({ quick }: Settings): Promise<Report> {
  const windowMs = quick ? 1_000 : 4_000;
  const starting = Array.from({ length: SERVERS }, () => startRedis());
  const servers = await Promise.all(starting);
  const rows: Record<string, Cell>[] = [];
  try {
    for (const waiters of WAITERS) {
      for (const isGreedy of [false, true]) {
        rows.push(await contend(servers, waiters, isGreedy, windowMs));
      }
    }
  } finally {
    for (const server of servers) await server.stop();
  }
  const title =
    `Waiting over ${SERVERS} servers: so many wait while one more ` +
    `holds the lock for ${HOLD_MS} ms; from a release to the next ` +
    `acquisition, and commands to all servers for one, in ${windowMs} ms`;
  return { name: "quorum_waiting", title, rows };
}

async function contend(
  servers: readonly RedisServer[],
  waiters: number,
  isGreedy: boolean,
  windowMs: number,
): Promise<Record<string, Cell>> {
  const { Redis } = await load<IoredisPackage>("ioredis");
  const all = Array.from(
    { length: waiters + 1 },
    () => servers.map(({ url }) => new Redis(url)),
  );
  const counts = countCommands(Redis.prototype);
  const key = `bench:quorum:waiting:${waiters}`;
  const gaps: number[] = [];
  const times = new Array<number>(all.length).fill(0);
  let freedAt: number | undefined;
  let isOver = false;
  let inside = 0;
  let last = -1;
  let told = () => {};
  const work = async (clients: Ioredis[], index: number) => {
    const on = redlock(clients);
    while (!isOver) {
      const lock = await acquireLock(on, key, { ttl: 10, waitMs: 60_000 });
      const got = performance.now();
      if (++inside > 1) throw new Error("Two hold it at once");
      if (freedAt !== undefined) gaps.push(got - freedAt);
      times[index]++;
      last = index;
      told();
      await new Promise((done) => setTimeout(done, HOLD_MS));
      inside--;
      freedAt = performance.now();
      if (!await lock.release()) throw new Error("The lock is not held");
      if (isGreedy || isOver || last !== index) continue;
      await new Promise<void>((go) => told = go);
    }
  };
  const working = all.map((clients, index) => work(clients, index));
  try {
    const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));
    await pause(500);
    gaps.length = 0;
    times.fill(0);
    const before = counts.sent;
    await pause(windowMs);
    const commands = (counts.sent - before) / gaps.length;
    const [p50, p99] = [0.5, 0.99].map((part) => quantile(gaps, part));
    const row = {
      waiters,
      "asks again": isGreedy ? "at once" : "later",
      "gap p50, ms": p50,
      "gap p99, ms": p99,
      "acquisitions/s": gaps.length / windowMs * 1000,
      "commands per acquisition": commands,
      "most/least of a waiter": `${Math.max(...times)}/${Math.min(...times)}`,
    };
    isOver = true;
    told();
    await Promise.all(working);
    return row;
  } finally {
    counts.stop();
    for (const client of all.flat()) client.disconnect();
  }
}

/** Counts what clients of that kind send from now on. */
function countCommands(kind: { sendCommand: Send }) {
  const { sendCommand } = kind;
  const counts = {
    sent: 0,
    stop: () => void (kind.sendCommand = sendCommand),
  };
  kind.sendCommand = function (command, more) {
    counts.sent++;
    return sendCommand.call(this, command, more);
  };
  return counts;
}
