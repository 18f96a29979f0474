/**
 * The primary is killed with a lock held and others in line, and a sentinel
 * makes its replica the primary. What the replica has is kept, and the waiting
 * goes on by itself; what it has not is told as lost once it can be asked.
 *
 * How long each took is printed where LINE_DELAYS is set.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import process from "node:process";

import {
  acquireLock,
  type DistributedLock,
  LockLostError,
  type LockOptions,
  type LockTarget,
} from "@dreamer/utils/lock";
import { type RedisGroup, startGroup } from "../support/redis_sentinel.ts";
import { sentinelClients } from "../support/sentinel_clients.ts";
import type { RedisServer } from "../support/redis_server.ts";
import { test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

/** Of a primary; more than a busy machine makes it wait. */
const DOWN_AFTER_MS = 800;
const PATIENT: LockOptions = { ttl: 10, waitMs: 20_000, localTurns: 0 };

interface Scene {
  readonly name: string;
  readonly key: string;
  readonly group: RedisGroup;
  /** Clients as of several processes. */
  readonly on: readonly LockTarget[];
}

const stories: [name: string, fn: () => Promise<void>][] = [];
/** Those of one kind of client, one after the other: each needs three servers. */
const last = new Map<string, Promise<unknown>>();
let begin = () => {};
const begun = new Promise<void>((go) => begin = go);

function story(sentence: string, fn: (scene: Scene) => Promise<void>): void {
  for (const { name, open } of sentinelClients) {
    const tell = async () => {
      await using group = await startGroup(DOWN_AFTER_MS);
      const clients = await Promise.all([1, 2, 3].map(() => open(group)));
      const on = clients.map(({ client }) => client);
      try {
        await fn({ name, key: `failover:${name}`, group, on });
      } finally {
        for (const { close } of clients) await close();
      }
    };
    const told = (last.get(name) ?? begun).then(tell);
    last.set(name, told.catch(() => {}));
    stories.push([`${name}: ${sentence}`, () => (begin(), told)]);
  }
}

/** Waits for `key`, and is looked at later. */
function wait(on: LockTarget, key: string, options: LockOptions = {}) {
  const all = { ...PATIENT, ...options, throwOnFail: true } as const;
  const waiting = acquireLock(on, key, all);
  waiting.catch(() => {});
  return waiting;
}

function inLine(server: RedisServer, key: string, count: number) {
  return until(
    `${count} in line`,
    async () => await server.command("ZCARD", `{${key}}:line`) === count,
  );
}

function nothingLeft(server: RedisServer, key: string) {
  return until(
    "nothing is left",
    async () => await server.command("EXISTS", key, `{${key}}:line`) === 0,
  );
}

function note(what: string, name: string, since: number): void {
  if (!process.env.LINE_DELAYS) return;
  const tookMs = Math.round(performance.now() - since);
  process.stderr.write(`DELAY ${what} (${name}): ${tookMs} ms\n`);
}

story("the primary is killed", async (scene) => {
  const { name, key, group, on } = scene;
  const { primary, replica } = group;
  const holder = await acquireLock(on[0], key, {
    ttl: 9,
    autoExtend: true,
    fencing: true,
  });
  const { signal } = holder;
  const order: number[] = [];
  let token = holder.fencingToken!;
  let inside = 0;
  const all: Promise<DistributedLock>[] = [];
  for (const nth of [0, 1, 2]) {
    const waiting = wait(on[(nth + 1) % 3], key, { fencing: true });
    waiting.then(() => order.push(nth), () => {});
    all.push(waiting);
    await inLine(primary, key, nth + 1);
  }
  const other = `${key}:other`;
  const before = await acquireLock(on[1], other, { fencing: true });
  await before.release();
  await group.replicated();

  // What comes now is lost: a lock, and one in a line of which nobody knows.
  await group.part();
  const lost = await acquireLock(on[0], other, {
    ttl: 9,
    autoExtend: true,
    fencing: true,
  });
  const lossOf = lost.signal;
  const next = wait(on[1], other, { fencing: true });
  await inLine(primary, other, 1);

  await primary.kill();
  const killedAt = performance.now();
  // Who comes while nobody is there is served as well.
  const late = wait(on[0], key, { fencing: true });
  late.then(() => order.push(3), () => {});
  await group.promoted();
  const promotedAt = performance.now();
  note("promoted after the primary was killed", name, killedAt);

  const extended = lost.extend();
  const error = await assertRejects(() => extended, LockLostError);
  note("told of the loss after the promotion", name, promotedAt);
  assert(/^(deleted|taken)$/.test(error.reason), error.reason);
  assert(lossOf.aborted);
  const served = await next;
  note("served from a lost line after the promotion", name, promotedAt);
  assert(served.fencingToken! > lost.fencingToken!, "the tokens fell");
  assertEquals(await lost.release(), false);
  served.assertHeld();
  assertEquals(await served.release(), true);

  await holder.extend();
  note("extended after the promotion", name, promotedAt);
  assert(!signal.aborted);
  await inLine(replica, key, 4);
  // One who doesn't listen yet would be passed over, and come back; a client may
  // open a connection for it, and another one in its place.
  let times = 0;
  await until("all of them listen", async () => {
    const channels = await replica.command("PUBSUB", "CHANNELS", "lock:*");
    times = (channels as unknown[]).length === on.length ? times + 1 : 0;
    return times > 50;
  });
  assertEquals(order, []);
  let releasedAt = performance.now();
  const ended = Promise.all([...all, late].map(async (waiting) => {
    const lock = await waiting;
    note("handed over on the new primary", name, releasedAt);
    assert(lock.fencingToken! > token, "the tokens fell");
    token = lock.fencingToken!;
    assertEquals(++inside, 1, "two holders");
    await new Promise((go) => setTimeout(go, 5));
    lock.assertHeld();
    inside--;
    releasedAt = performance.now();
    assertEquals(await lock.release(), true);
  }));
  assertEquals(await holder.release(), true);
  await ended;
  assertEquals(order, [0, 1, 2, 3]);
  await nothingLeft(replica, key);
  await nothingLeft(replica, other);
});

test.sideBySide(
  stories,
  () => timersEnd(),
);
