/**
 * Renewal goes on as long as the process, its event loop and the server do.
 * Here each of them stops for a while, or comes back changed.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type DistributedLock,
  type IoredisClient,
  type LockEvent,
  LockLostError,
  type LockTarget,
  redis,
} from "@dreamer/utils/lock";
import { type ClientKind, clients } from "../support/clients.ts";
import { type Script, spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";

const SLEEPER = new URL("./sleeper.ts", import.meta.url);
/** Every way to look at a lock; after a stall any of them may be the first. */
const LOOKS = [
  ...["isAcquired", "remainingMs", "assertHeld"],
  ...["aborted", "reason", "throwIfAborted"],
];
let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

/** Starts a process that holds a lock for each of `looks`, and looks at it so. */
function spawnSleeper(
  what: "watch" | "block" | "keep",
  kind: ClientKind,
  { url }: RedisServer,
  key: string,
  ttl: number,
  ...looks: string[]
): Script {
  return spawnScript(SLEEPER, [what, kind.name, url, key, ttl, `${looks}`]);
}

/** Tries until the lock is free; the test's own limit ends what never is. */
async function acquireSoon(on: LockTarget, key: string) {
  let lock: DistributedLock | null = null;
  while (lock === null) {
    await new Promise((done) => setTimeout(done, 5));
    lock = await acquireLock(on, key, { throwOnFail: false });
  }
  return lock;
}

/** Waits until the holder of `key` has just renewed it: by what is left. */
async function renewed({ command }: RedisServer, key: string, ttl: number) {
  const leftMs = async () => Number(await command("PTTL", key));
  await until("no renewal is due", async () => await leftMs() < ttl * 850);
  await until("it was renewed", async () => await leftMs() > ttl * 900);
  return await leftMs();
}

/** The holder ends with an error, and the next one notices nothing of it. */
async function endsAlone(sleeper: Script, look: string, next: DistributedLock) {
  const { name, reason } = await sleeper.next(`ended, ${look}`);
  assertEquals([name, reason], ["LockLostError", "expired"]);
  assertEquals(await sleeper.exited, { code: 0, signal: null });
  assertEquals(sleeper.stderr, "", "nothing is printed");
  assertEquals(await server.command("GET", next.key), next.owner);
  next.assertHeld();
  assertEquals(await next.release(), true);
}

/** What the observer was told, by type, and a client that has one. */
function observed(client: LockTarget) {
  const events: LockEvent[] = [];
  const on = redis(client as IoredisClient, {
    onEvent: (event) => events.push(event),
  });
  const count = (type: LockEvent["type"]) =>
    events.filter((event) => event.type === type).length;
  return { on, count };
}

for (const kind of clients) {
  if (kind.name !== "ioredis" && kind.name !== "redis") continue;

  test(
    `${kind.name}: a process that was stopped finds its renewed lock lost`,
    async () => {
      await using opened = await kind.open(server.url);
      const key = `stall:${kind.name}:stopped`;
      await using sleeper = spawnSleeper(
        ...["watch", kind, server, key, 2, ...LOOKS] as const,
      );
      for (const look of LOOKS) await sleeper.next(`held, ${look}`);
      sleeper.kill("SIGSTOP");
      const all = await Promise.all(LOOKS.map(async (look) => {
        const next = await acquireSoon(opened.client, `${key}:${look}`);
        return { look, next, acquiredAt: Date.now() };
      }));
      sleeper.kill("SIGCONT");
      for (const { look, next, acquiredAt } of all) {
        const { lastHeld, stillHeld, reason } = await sleeper.next(
          `lost, ${look}`,
        );
        assert(Number(lastHeld) <= acquiredAt, `two holders, by ${look}`);
        assertEquals([stillHeld, reason], [[], "expired"]);
        await endsAlone(sleeper, look, next);
      }
    },
    { timeoutMs: 30_000 },
  );

  test(`${kind.name}: a blocked event loop finds its renewed lock lost`, async () => {
    await using opened = await kind.open(server.url);
    await Promise.all(["isAcquired", "aborted"].map(async (look) => {
      const key = `stall:${kind.name}:blocked`;
      await using sleeper = spawnSleeper("block", kind, server, key, 1, look);
      const { isAcquired } = await sleeper.next("blocked");
      assertEquals(isAcquired, true, "it was not renewed");
      const next = await acquireSoon(opened.client, `${key}:${look}`);
      sleeper.send("go on");
      const { stillHeld, reason } = await sleeper.next(`lost, ${look}`);
      assertEquals([stillHeld, reason], [[], "expired"]);
      await endsAlone(sleeper, look, next);
    }));
  });

  test(`${kind.name}: while the server is frozen a lock is lost in time`, async () => {
    await using frozen = await startRedis();
    const look = "isAcquired";
    const key = `frozen:${look}`;
    await using sleeper = spawnSleeper(
      ...["keep", kind, frozen, "frozen", 1.2, look] as const,
    );
    await sleeper.next(`held, ${look}`);
    const leftMs = await renewed(frozen, key, 1.2);
    // When the server would have let the next one in.
    const expiresAt = Date.now() + leftMs;
    frozen.freeze();
    const { lastHeld, stillHeld, reason } = await sleeper.next(
      `lost, ${look}`,
    );
    assertEquals([stillHeld, reason], [[], "unreachable"]);
    assert(Number(lastHeld) < expiresAt, "the server was first");
    // It still is frozen: no answer ends what the process may be waiting for.
    assertEquals(await sleeper.exited, { code: 0, signal: null });
    assertEquals(sleeper.stderr, "", "nothing is printed");
    frozen.thaw();
    await until(
      "it expires",
      async () => await frozen.command("EXISTS", key) === 0,
    );
  });

  test(`${kind.name}: a server that is away for less than a lease is no loss`, async () => {
    await using durable = await startRedis({
      args: ["--appendonly", "yes", "--appendfsync", "always"],
    });
    await using opened = await kind.open(durable.url);
    const { on, count } = observed(opened.client);
    const lock = await acquireLock(on, "durable", { ttl: 3, autoExtend: true });
    const { signal } = lock;
    await durable.kill();
    await durable.restart();
    const extended = count("extended");
    await until("it is renewed again", () => count("extended") > extended);
    assertFalse(signal.aborted);
    lock.assertHeld();
    assertEquals(await durable.command("GET", "durable"), lock.owner);
    assertEquals(await lock.release(), true);
    assertEquals([count("lost"), count("released")], [0, 1]);
    assertEquals(await durable.command("DBSIZE"), 0);
  });

  test(`${kind.name}: a server that comes back empty is told by the next renewal`, async () => {
    const timers = timersLeft();
    await using forgetful = await startRedis();
    await using opened = await kind.open(forgetful.url);
    const { on, count } = observed(opened.client);
    const lock = await acquireLock(on, "empty", { ttl: 3, autoExtend: true });
    const { signal } = lock;
    await until("it is renewed", () => count("extended") > 0);
    const extended = count("extended");
    await forgetful.kill();
    await forgetful.restart();
    await until("the loss is told", () => signal.aborted);
    const error: unknown = signal.reason;
    assert(error instanceof LockLostError);
    assertEquals(error.reason, "deleted");
    assertStrictEquals(
      count("extended"),
      extended,
      "renewed what is not there",
    );
    assertEquals([lock.isAcquired(), count("lost")], [false, 1]);
    assertEquals(timersLeft(), timers);
    assertEquals(await lock.release(), false);
    const next = await acquireLock(on, "empty");
    assertEquals(await next.release(), true);
  });
}
