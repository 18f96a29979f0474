/** A lock that is acquired in one process and goes on in another. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  DistributedLock,
  inspectLock,
  type IoredisClient,
  LockBackendError,
  LockError,
  type LockEvent,
  type LockJSON,
  LockLostError,
  type LockOptions,
  type LockTarget,
  redis,
  withLock,
} from "@dreamer/utils/lock";
import { type ClientKind, clients } from "../support/clients.ts";
import { type Script, spawnScript } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";

const GIVER = new URL("./giver.ts", import.meta.url);
let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

/** Starts the process that acquires `key`, to give it away later. */
function spawnGiver(kind: ClientKind, key: string, options: LockOptions) {
  return spawnScript(GIVER, [
    ...[kind.name, server.url, key],
    JSON.stringify(options),
  ]);
}

/** Has the lock given away: its text, and what the giver says of it then. */
async function take(giver: Script) {
  giver.send("give");
  const { message, after } = await giver.next("gave");
  return { message: String(message), after };
}

const exists = (key: string) => server.command("EXISTS", key);
const leftMs = async (key: string) => Number(await server.command("PTTL", key));
const isAborted = (signal: AbortSignal) => () => signal.aborted;

const patient: [name: string, fn: () => Promise<void>][] = [];

for (const kind of clients) {
  if (kind.name !== "ioredis" && kind.name !== "redis") continue;
  type Story = (on: LockTarget, key: string) => Promise<void>;
  const live = (sentence: string, fn: Story) => async () => {
    await using opened = await kind.open(server.url);
    await fn(opened.client, `hand over:${kind.name}:${sentence}`);
  };

  /** One test with a client of its own, and a key. */
  const it = (sentence: string, fn: Story) =>
    test(`${kind.name}: ${sentence}`, live(sentence, fn));
  /** The same for one that lets time go by: all of those do it side by side. */
  const itOverTime = (sentence: string, fn: Story) =>
    patient.push([`${kind.name}: ${sentence}`, live(sentence, fn)]);

  itOverTime(
    "a lock outlives the process that gave it away",
    async (on, key) => {
      await using giver = spawnGiver(kind, key, {
        ttl: 1.2,
        autoExtend: true,
        fencing: true,
        label: "giver",
      });
      const { owner, fencingToken } = await giver.next("held");
      const { message, after } = await take(giver);
      assertEquals(after, {
        isAcquired: false,
        remainingMs: 0,
        aborted: false,
        standing: "LOCK_NOT_HELD",
        freed: false,
      });
      const events: LockEvent[] = [];
      const here = redis(on as IoredisClient, {
        onEvent: (event) => events.push(event),
      });
      const lock = await DistributedLock.resume(here, message);
      const { signal } = lock;
      giver.kill();
      assertEquals((await giver.exited).signal, "SIGKILL");
      assertEquals([lock.key, lock.owner], [key, owner]);
      assertStrictEquals(lock.fencingToken, fencingToken);
      // A renewal is due after a third of a lease.
      await until("three leases", () => events.length >= 9);
      const types = [...new Set(events.map(({ type }) => type))];
      assertEquals(types, ["extended"]);
      assertEquals(events[0].label, "giver");
      lock.assertHeld();
      assertFalse(signal.aborted);
      const { held, label } = await inspectLock(on, key);
      assertEquals([held, label], [true, "giver"]);
      const refused = await acquireLock(on, key, { throwOnFail: false });
      assertStrictEquals(refused, null);
      assertEquals(await lock.release(), true);
      assertEquals(await exists(key), 0);
      const next = await acquireLock(on, key, { fencing: true });
      assert(next.fencingToken! > Number(fencingToken), "tokens only grow");
      await next.release();
    },
  );

  it("what was given away is neither renewed nor released", async (on, key) => {
    const timers = timersLeft();
    const given = await withLock(on, key, (lock) => {
      assert(timersLeft() > timers, "not about to be renewed");
      JSON.stringify(lock);
      assertEquals(timersLeft(), timers, "still about to be renewed");
      return lock;
    }, { ttl: 0.6 });
    assertFalse(given.isAcquired());
    assertEquals(await given.release(), false);
    await given[Symbol.asyncDispose]();
    assertEquals(await exists(key), 1, "freed");
    await until("it expires", async () => await exists(key) === 0);
  });

  itOverTime(
    "the server is asked for what is left of the lease",
    async (on, key) => {
      const lock = await acquireLock(on, key, { ttl: 5 });
      const message = JSON.stringify(lock);
      await until("some of it is gone", async () => await leftMs(key) < 4_400);
      const atMost = await leftMs(key);
      const resumed = await DistributedLock.resume(on, message);
      const { remainingMs } = resumed;
      assert(remainingMs > 0 && remainingMs < atMost, `${remainingMs} ms`);
      assert(await leftMs(key) <= atMost, "it was not to be renewed");
      // As long as it was acquired for.
      await resumed.extend();
      assert(resumed.remainingMs > atMost - 52);
      assertEquals(await resumed.release(), true);
      assertEquals(await exists(key), 0);
    },
  );

  itOverTime("what is left of maxHoldMs goes along", async (on, key) => {
    const maxHoldMs = 2_000;
    const options = { ttl: 1.5, autoExtend: true, maxHoldMs };
    await using giver = spawnGiver(kind, key, options);
    await giver.next("held");
    const heldSince = performance.now();
    await until("no renewal is due", async () => await leftMs(key) < 1_100);
    await until("it was renewed", async () => await leftMs(key) > 1_200);
    const heldMs = performance.now() - heldSince;
    const { message } = await take(giver);
    const { maxHoldMs: leftToHoldMs }: LockJSON = JSON.parse(message);
    assert(leftToHoldMs! > 0 && leftToHoldMs! <= maxHoldMs - heldMs);
    const resumedAt = performance.now();
    const lock = await DistributedLock.resume(on, message);
    const { signal } = lock;
    await until("its time is up", isAborted(signal));
    assertEquals(signal.reason.reason, "max-hold");
    assert(performance.now() - resumedAt >= leftToHoldMs!, "too soon");
    await lock.release();
    assertEquals(await exists(key), 0);
  });

  it("it can be given away again, and back", async (on, key) => {
    let lock = await acquireLock(on, key, { ttl: 5, fencing: true });
    const { owner, fencingToken } = lock;
    for (let turn = 0; turn < 3; turn++) {
      const given = lock;
      lock = await DistributedLock.resume(on, JSON.stringify(given));
      assertFalse(given.isAcquired());
      lock.assertHeld();
    }
    assertEquals([lock.owner, lock.fencingToken], [owner, fencingToken]);
    assertEquals(await lock.release(), true);
  });

  itOverTime("what is not ours any more can't be resumed", async (on, key) => {
    const resumeAfter = async (what: () => Promise<unknown>) => {
      const lock = await acquireLock(on, key, { ttl: 0.5 });
      const message = JSON.stringify(lock);
      await what();
      const error = await assertRejects(
        () => DistributedLock.resume(on, message),
        LockLostError,
      );
      assertEquals([error.code, error.key], ["LOCK_LOST", key]);
      return error.reason;
    };
    const isGone = () =>
      until("it expires", async () => await exists(key) === 0);
    assertEquals(await resumeAfter(isGone), "expired");
    assertEquals(
      await resumeAfter(() => server.command("DEL", key)),
      "expired",
    );
    let next: DistributedLock | undefined;
    const reason = await resumeAfter(async () => {
      await isGone();
      next = await acquireLock(on, key);
    });
    assertEquals(reason, "taken");
    next!.assertHeld();
    assertEquals(await next!.release(), true);
  });

  it("only what is held can be given away", async (on, key) => {
    const never = new DistributedLock(on, key, "never", 5);
    const released = await acquireLock(on, key, { ttl: 5 });
    await released.release();
    const given = await acquireLock(on, key, { ttl: 5 });
    JSON.stringify(given);
    for (
      const [lock, why] of [
        [never, "it was never acquired"],
        [released, "it was released"],
        [given, "it was handed over"],
      ] as const
    ) {
      const error = assertThrows(() => JSON.stringify(lock), LockError);
      assertEquals(error.code, "LOCK_NOT_HELD");
      assertStringIncludes(error.message, why);
    }
    await server.command("DEL", key);

    const late = await acquireLock(on, key, { ttl: 0.4 });
    await until("it expires", () => !late.isAcquired());
    assertEquals(
      assertThrows(() => late.toJSON(), LockLostError).reason,
      "expired",
    );
    await late.release();

    const robbed = await acquireLock(on, key, { ttl: 5 });
    await server.command("SET", key, "somebody else");
    await assertRejects(() => robbed.extend(), LockLostError);
    assertEquals(
      assertThrows(() => robbed.toJSON(), LockLostError).reason,
      "taken",
    );
    await server.command("DEL", key);
  });

  test(`${kind.name}: bad JSON is refused before anything is sent`, async () => {
    await using proxy = await startProxy(server.port);
    await using opened = await kind.open(proxy.url);
    const sent = proxy.requests.length;
    const good = { key: "k", owner: "o", ttl: 5, autoExtend: false };
    const bad: [json: unknown, error: typeof TypeError | typeof RangeError][] =
      [
        ["", TypeError],
        ["{", TypeError],
        ["null", TypeError],
        ["7", TypeError],
        ['"text"', TypeError],
        ["[]", TypeError],
        ["{}", TypeError],
        [undefined, TypeError],
        [null, TypeError],
        [7, TypeError],
        [{ ...good, key: undefined }, TypeError],
        [{ ...good, key: "" }, RangeError],
        [{ ...good, owner: undefined }, TypeError],
        [{ ...good, owner: 7 }, TypeError],
        [{ ...good, owner: "" }, TypeError],
        [{ ...good, ttl: undefined }, TypeError],
        [{ ...good, ttl: "5" }, TypeError],
        [{ ...good, ttl: 0 }, RangeError],
        [{ ...good, ttl: -1 }, RangeError],
        [{ ...good, ttl: Infinity }, RangeError],
        [{ ...good, autoExtend: undefined }, TypeError],
        [{ ...good, autoExtend: 1 }, TypeError],
        [{ ...good, maxHoldMs: "long" }, TypeError],
        [{ ...good, fencingToken: "9" }, TypeError],
      ];
    for (const [json, error] of bad) {
      const { message } = await assertRejects(
        () => DistributedLock.resume(opened.client, json as LockJSON),
        error,
      );
      assertStringIncludes(message, "Cannot resume a lock as ");
    }
    assertEquals(proxy.requests.slice(sent), []);
  });

  test(`${kind.name}: a dead server is no lost lock`, async () => {
    const timers = timersLeft();
    await using mortal = await startRedis();
    await using opened = await kind.open(mortal.url, { offline: "fail" });
    const on = opened.client;
    const lock = await acquireLock(on, "dead", { ttl: 5, autoExtend: true });
    const message = JSON.stringify(lock);
    await mortal.kill();
    const error = await assertRejects(
      () => DistributedLock.resume(on, message),
      LockBackendError,
    );
    assertEquals([error.key, error.reply], ["dead", undefined]);
    assertEquals(error.message.includes(lock.owner), false, "a secret");
    assertEquals(timersLeft(), timers);
  });
}

test.sideBySide(patient);
