/**
 * `@upstash/lock` by its documents: every example, default and result; and what
 * its users rely on where they are silent.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";

import {
  acquireLock,
  type DistributedLock,
  forceRelease,
  inspectLock,
  LockBackendError,
  type LockTarget,
  redlock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { Lock } from "@dreamer/utils/lock/upstash";

import { connect } from "../../src/connect.ts";
import { clients } from "../support/clients.ts";
import { FakeClock, settle } from "../support/fake_clock.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";
import { sleep, type World, worlds } from "./worlds.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

const LISTENS_ON = "who waited listens on for a second";

/** Does not wait. */
const ONCE = { attempts: 1 };

/** What the server has left for `key`, in milliseconds. */
async function leftMs(on: LockTarget, key: string): Promise<number> {
  const { leftMs } = await connect(on).inspect!(key);
  return leftMs ?? 0;
}

/** When the hold of `key` ends, by the clock of its server. */
async function endOf(on: LockTarget, key: string): Promise<number> {
  if (connect(on).name !== "memory") {
    return Number(await server.command("PEXPIRETIME", key));
  }
  // What is left of it, and the time: of one and the same moment, or nearly so.
  while (true) {
    const before = performance.now();
    const left = await leftMs(on, key);
    if (performance.now() - before < 0.2) return before + left;
  }
}

/** Whether it is that, but for what has passed meanwhile on a busy machine. */
function near(actual: number, expected: number, byMs = 650): void {
  const isNear = actual <= expected && actual > expected - byMs;
  assert(isNear, `${actual} ms, and not ${expected}`);
}

/** Whether it is that, but for rounding. */
function same(actual: number, expected: number): void {
  assert(Math.abs(actual - expected) < 2, `${actual}, and not ${expected}`);
}

for (const { name, open } of worlds) {
  const inWorld = (title: string, fn: (world: World) => Promise<void>) =>
    test(`${name}: ${title}`, async () => {
      await using world = await open(server);
      await fn(world);
    }, { allowTimers: LISTENS_ON });

  inWorld("the document's example runs", async ({ on, other }) => {
    const log: string[] = [];
    const Redis = { fromEnv: () => on };
    const criticalSection = async () => {
      log.push("in");
      await sleep(5);
      log.push("out");
    };
    async function handleOperation() {
      const lock = new Lock({
        id: "unique-lock-id",
        redis: Redis.fromEnv(),
      });

      if (await lock.acquire()) {
        // Perform your critical section that requires mutual exclusion
        await criticalSection();
        await lock.release();
      } else {
        // handle lock acquisition failure
        log.push("failed");
      }
    }
    await handleOperation();
    await handleOperation();
    assertEquals(log, ["in", "out", "in", "out"]);

    const stranger = new Lock({ id: "unique-lock-id", redis: other });
    assert(await stranger.acquire());
    await handleOperation();
    assertEquals(log.at(-1), "failed");
    assert(await stranger.release());
  });

  inWorld("a lock lasts 10 s by default, or its lease", async ({ on }) => {
    const plain = new Lock({ id: "lease", redis: on });
    assertEquals(plain.id, "lease");
    assert(await plain.acquire());
    near(await leftMs(on, "lease"), 10_000);
    assert(await plain.release());
    const own = new Lock({ id: "lease", redis: on, lease: 300, retry: ONCE });
    assert(await own.acquire());
    const retry = { attempts: 50 };
    assertEquals(await plain.acquire({ retry }), true); // it has expired
    assertEquals(await own.getStatus(), "FREE");
    assertEquals(await own.release(), false);
    assertEquals(await own.extend(100), false);
    assertEquals(await plain.getStatus(), "ACQUIRED");
    assert(await plain.release());
  });

  inWorld("acquire() overrides lease and retry, once", async ({ on }) => {
    const lock = new Lock({ id: "once", redis: on, lease: 2_000 });
    assert(await lock.acquire({ lease: 700 }));
    near(await leftMs(on, "once"), 700, 700);
    const rival = new Lock({ id: "once", redis: on, retry: { attempts: 50 } });
    assertEquals(await rival.acquire({ retry: ONCE }), false);
    assert(await lock.release());
    assert(await lock.acquire()); // U7
    near(await leftMs(on, "once"), 2_000);
    assert(await lock.release());
  });

  inWorld("release() is true only if it freed it", async ({ on, other }) => {
    const lock = new Lock({ id: "free", redis: on, retry: ONCE });
    assertEquals(await lock.release(), false); // never acquired
    assert(await lock.acquire());
    assertEquals(await lock.release(), true);
    assertEquals(await lock.release(), false);
    const rival = new Lock({ id: "free", redis: other });
    assert(await lock.acquire());
    await forceRelease(on, "free");
    assert(await rival.acquire());
    assertEquals(await lock.release(), false);
    assertEquals(await rival.getStatus(), "ACQUIRED");
    assert(await rival.release());
  });

  inWorld("the status is that of this instance", async ({ on, other }) => {
    const lock = new Lock({ id: "status", redis: on });
    const rival = new Lock({ id: "status", redis: other });
    assertEquals(await lock.getStatus(), "FREE");
    assert(await lock.acquire());
    assertEquals(await lock.getStatus(), "ACQUIRED");
    assertEquals(await rival.getStatus(), "FREE");
    assert(await lock.release());
    assertEquals(await lock.getStatus(), "FREE");
  });

  inWorld("a second acquire() fails, and forgets nothing", async ({ on }) => {
    const lock = new Lock({ id: "again", redis: on, retry: ONCE }); // U2
    assert(await lock.acquire());
    assertEquals(await lock.acquire(), false);
    assertEquals(await lock.acquire({ uuid: "other" }), false);
    assertEquals(await lock.getStatus(), "ACQUIRED");
    assert(await lock.extend(100));
    assert(await lock.release());
  });

  inWorld("extend() adds exactly, to this lease only", async ({ on }) => {
    const lock = new Lock({ id: "extend", redis: on, lease: 2_000 });
    assertEquals(await lock.extend(100), false); // never acquired
    assert(await lock.acquire());
    const before = await endOf(on, "extend");
    assert(await lock.extend(1_500)); // U3
    same(await endOf(on, "extend"), before + 1_500);
    assert(await lock.extend(0.4));
    assert(await lock.extend(0));
    assert(await lock.extend(-3_050)); // 450 ms are left, or less: U4
    same(await endOf(on, "extend"), before - 1_550);
    assert(await lock.extend(1_000)); // U5
    same(await endOf(on, "extend"), before - 550);
    assert(await lock.extend(10_000));
    same(await endOf(on, "extend"), before + 9_450);
    assert(await lock.release());
    assert(await lock.acquire()); // U6
    near(await leftMs(on, "extend"), 2_000);
    assert(await lock.extend(-2_000));
    assertEquals(await lock.getStatus(), "FREE");
    assertEquals(await lock.extend(10), false);
    assertEquals(await lock.release(), false);
  });

  inWorld("what is extended outlasts its first lease", async ({ on }) => {
    const lock = new Lock({ id: "outlast", redis: on, lease: 300 });
    assert(await lock.acquire());
    assert(await lock.extend(5_000));
    await sleep(310);
    assertEquals(await lock.getStatus(), "ACQUIRED");
    assert(await lock.extend(-2_000));
    assert(await lock.release());
  });

  inWorld("a uuid is the value of the key", async ({ on, other }) => {
    const lock = new Lock({ id: "uuid", redis: on, retry: ONCE });
    for (const uuid of ["12345", "{}", "true", "a 7 b", "0@0"]) { // U9
      assert(await lock.acquire({ uuid }));
      assertEquals((await connect(on).inspect!("uuid")).owner, uuid);
      assertEquals(await lock.getStatus(), "ACQUIRED");
      near(await leftMs(on, "uuid"), 10_000);
      // Another of the same name is another.
      const twin = new Lock({ id: "uuid", redis: other, retry: ONCE });
      assertEquals(await twin.acquire({ uuid }), false);
      assertEquals(await lock.acquire({ uuid }), false);
      assertEquals(await twin.release(), false);
      assert(await lock.extend(500));
      assert(await lock.release());
    }
    assertEquals((await inspectLock(on, "uuid")).held, false);
  });

  inWorld("who waits with a uuid is served, too", async ({ on, other }) => {
    const lock = new Lock({ id: "uuid-line", redis: on });
    assert(await lock.acquire());
    const rivals = [on, other, other].map((redis, i) => {
      const retry = { attempts: 50, delay: 100 };
      const rival = new Lock({ id: "uuid-line", redis, retry });
      return rival.acquire({ uuid: `rival-${i}` }).then(async (isMine) => {
        const { owner } = await connect(on).inspect!("uuid-line");
        assertEquals(owner, `rival-${i}`);
        return isMine && await rival.release();
      });
    });
    assert(await lock.release());
    assertEquals(await Promise.all(rivals), [true, true, true]);
  });

  inWorld("who waits is served at once, and in order", async (world) => {
    const { on, other } = world;
    const first = new Lock({ id: "line", redis: on });
    assert(await first.acquire());
    const order: number[] = [];
    const waiters: Promise<void>[] = [];
    for (const i of [0, 1, 2]) {
      const retry = { attempts: 100, delay: 100 };
      const lock = new Lock({ id: "line", redis: other, retry });
      waiters.push(
        lock.acquire().then(async (isMine) => {
          assert(isMine);
          order.push(i);
          assert(await lock.release());
        }),
      );
      await sleep(30);
    }
    assert(await first.release());
    await Promise.all(waiters);
    assertEquals(order, [0, 1, 2]);
  });

  inWorld("0 attempts are false, 1 does not wait", async ({ on }) => {
    const none = new Lock({ id: "none", redis: on, retry: { attempts: 0 } });
    assertEquals(await none.acquire(), false);
    assertEquals((await inspectLock(on, "none")).held, false);
    const lock = new Lock({ id: "none", redis: on });
    assert(await lock.acquire());
    const retry = { attempts: 1, delay: 60_000 }; // U8
    assertEquals(await lock.acquire({ retry }), false);
    assert(await lock.release());
  });

  inWorld("a Lock excludes acquireLock() on that key", async ({ on }) => {
    const lock = new Lock({ id: "shared", redis: on, retry: ONCE });
    await using held = await acquireLock(on, "shared");
    assertEquals(await lock.acquire(), false);
    await held.release();
    assert(await lock.acquire());
    const never = { throwOnFail: false } as const;
    assertEquals(await acquireLock(on, "shared", never), null);
    assert(await lock.release());
  });
}

test("a failed acquire() ends with its last try, after 200 ms by default", async () => {
  const clock = new FakeClock();
  const redis = memory({ clock });
  const holder = new Lock({ id: "patience", redis });
  assert(await holder.acquire());
  let answer: boolean | undefined;
  const lock = new Lock({ id: "patience", redis });
  const acquired = lock.acquire().then((isMine) => answer = isMine);
  await clock.advance(195);
  assertEquals(answer, undefined);
  await clock.advance(10); // U8: and not 306
  assertEquals(answer, false);
  await acquired;
  assert(await holder.release());
  assertEquals(clock.pending, 0);
});

test("a slow server is waited for: tries count, and not its time", async () => {
  const inner = memory();
  const slow =
    <A extends unknown[], R>(fn: (...args: A) => Promise<R>) =>
    async (...args: A) => {
      await sleep(40);
      return await fn(...args);
    };
  const { line } = inner;
  const redis = Object.assign(Object.create(inner) as typeof inner, {
    tryAcquire: slow(inner.tryAcquire.bind(inner)),
    release: slow(inner.release.bind(inner)),
  });
  Object.defineProperty(redis, "line", {
    value: Object.assign(Object.create(line!), {
      stand: slow(line!.stand),
      handOver: line!.handOver,
      open: line!.open,
      leave: line!.leave,
    }),
  });
  const retry = { attempts: 2, delay: 5 };
  const lock = new Lock({ id: "slow", redis, retry });
  const rival = new Lock({ id: "slow", redis, retry });
  assert(await lock.acquire());
  assertEquals(await rival.acquire(), false);
  assert(await lock.release());
  assert(await rival.acquire());
  assert(await rival.release());
});

test("a Lock lives on a quorum, but for its uuid", async () => {
  const redis = redlock([memory(), memory(), memory()]);
  const lock = new Lock({ id: "quorum", redis, lease: 2_000 });
  await assertRejects(() => lock.acquire({ uuid: "a" }), RangeError, "uuid");
  assert(await lock.acquire());
  assert(await lock.extend(1_500));
  near(await leftMs(redis, "quorum"), 3_500);
  assert(await lock.extend(-2_000));
  near(await leftMs(redis, "quorum"), 1_500);
  assert(await lock.release());
});

test("slow servers of a quorum are waited for, too", async () => {
  const members = [memory(), memory(), memory()];
  // By whichever way they are asked.
  for (const member of members) {
    const tryAcquire = member.tryAcquire.bind(member);
    member.tryAcquire = (claim) => sleep(40).then(() => tryAcquire(claim));
    const notices = member.notices!;
    const { tryAcquire: tryOrWatch } = notices;
    notices.tryAcquire = (...args) => sleep(40).then(() => tryOrWatch(...args));
  }
  const redis = redlock(members);
  const retry = { attempts: 2, delay: 5 };
  const lock = new Lock({ id: "slow", redis, retry });
  assert(await lock.acquire());
  assertEquals(await lock.acquire(), false);
  assert(await lock.release());
  // The slowest of them may still have something to say.
  await timersEnd();
});

test("who had a lock by a uuid listens no more", async () => {
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using opened = await open(server.url);
  const retry = { attempts: 100 };
  const lock = new Lock({ id: "ears", redis: opened.client, retry });
  assert(await lock.acquire());
  const named = new Lock({ id: "ears", redis: opened.client, retry });
  const acquired = named.acquire({ uuid: "named" });
  const ears = () => server.command("PUBSUB", "CHANNELS", "lock:inbox:*");
  await until("it waits", async () => (await ears() as string[]).length > 0);
  await lock.release();
  assert(await acquired);
  assert(await named.release());
  // Sooner than the lease of the turn would be over.
  const isQuiet = async () => (await ears() as string[]).length === 0;
  await until("it listens no more", isQuiet, 6_000);
});

test("a reply that was lost leaves no lock that nobody owns", async () => {
  // U10: as a client does that sends a command again.
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using opened = await open(server.url);
  const client = opened.client as {
    set(...args: unknown[]): Promise<unknown>;
    eval: unknown;
    evalsha(...args: unknown[]): Promise<unknown>;
    call: unknown;
  };
  const twice = Object.create(client, {
    call: {
      value: async (...args: unknown[]) => {
        const call = client.call as (...args: unknown[]) => Promise<unknown>;
        await call.apply(client, args);
        return await call.apply(client, args);
      },
    },
    evalsha: {
      value: async (...args: unknown[]) => {
        await client.evalsha(...args);
        return await client.evalsha(...args);
      },
    },
    set: {
      value: async (...args: unknown[]) => {
        await client.set(...args);
        return await client.set(...args);
      },
    },
  }) as LockTarget;
  const lock = new Lock({ id: "lost", redis: twice, lease: 5_000 });
  assert(await lock.acquire());
  assert(await lock.extend(1_000));
  near(await leftMs(opened.client, "lost"), 6_000);
  await lock.release();
  assert(await lock.acquire({ uuid: "named" }));
  assertEquals(await lock.getStatus(), "ACQUIRED");
  await lock.release();
  assertEquals((await inspectLock(opened.client, "lost")).held, false);
});

test(
  "a name that may be that of a lock by now is nobody's else of us",
  async () => {
    const { open } = clients.find(({ name }) => name === "redis")!;
    await using here = await open(server.url);
    await using there = await open(server.url);
    const [key, uuid] = ["renamed", "my-own-name"];
    const client = here.client as unknown as {
      eval(lua: string, how: { arguments: string[] }): Promise<unknown>;
    };
    const inFull = client.eval;
    let isCut = false;
    // As node-redis rejects where its connection breaks behind a command: the
    // server has done it, and nobody hears. It has not seen the script yet.
    client.eval = async (lua, how) => {
      const reply = await inFull.call(client, lua, how);
      if (isCut || !how.arguments.includes(uuid)) return reply;
      isCut = true;
      throw new Error("Socket closed unexpectedly");
    };
    await server.command("SCRIPT", "FLUSH");
    const standing = async (count: number) =>
      await server.command("ZCARD", `{${key}}:line`) === count;
    const first = await acquireLock(here.client, key);
    const retry = { attempts: 100 };
    const lock = new Lock({ id: key, redis: here.client, retry });
    const named = lock.acquire({ uuid });
    named.catch(() => {});
    await until("one of us stands in line", () => standing(1));
    const waiting = acquireLock(here.client, key, { waitMs: 20_000 });
    let second: DistributedLock | undefined;
    void waiting.then((it) => second = it);
    const other = acquireLock(there.client, key, { waitMs: 20_000 });
    await until("another process does", () => standing(2));
    await first.release();
    await assertRejects(() => named, LockBackendError);
    const theirs = await other;
    assert(theirs.isAcquired() && !second?.isAcquired(), "two holders");
    await theirs.release();
    assert(await (await waiting).release());
  },
  { allowTimers: LISTENS_ON },
);

test("a server's failure rejects, and is no false", async () => {
  const own = await startRedis();
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  const { client, close } = await open(own.url, { offline: "fail" });
  const lock = new Lock({ id: "down", redis: client, lease: 400 });
  assert(await lock.acquire());
  await own.kill();
  await settle();
  await assertRejects(() => lock.getStatus(), LockBackendError);
  await assertRejects(() => lock.extend(100), LockBackendError);
  await assertRejects(() => lock.acquire(), LockBackendError);
  await assertRejects(() => lock.release(), LockBackendError);
  await own.restart();
  const isBack = () => lock.getStatus().then(() => true, () => false);
  await until("it is back", isBack);
  // Between two tries there is none either, for the moment of the first.
  await until("cleaned up after", async () => {
    await sleep(30);
    return timersLeft() === 0 && await sleep(30).then(timersLeft) === 0;
  });
  await close();
  await own.stop();
  await timersEnd();
});

test("a lock is lost with its server's data, and its status says so", async () => {
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  const own = await startRedis();
  const { client, close } = await open(own.url);
  const lock = new Lock({ id: "emptied", redis: client });
  assert(await lock.acquire());
  await own.command("FLUSHALL");
  assertEquals(await lock.getStatus(), "FREE");
  assertEquals(await lock.extend(100), false);
  assertEquals(await lock.release(), false);
  await close();
  await own.stop();
});

test("a bad configuration is refused before anything is sent", async () => {
  const redis = memory();
  const bad = (config: object, error: typeof TypeError | typeof RangeError) =>
    assertThrows(
      () => new Lock({ id: "bad", redis, ...config } as never),
      error,
    );
  bad({ id: 7 }, TypeError);
  bad({ id: "" }, RangeError);
  bad({ redis: {} }, TypeError);
  bad({ lease: "10" }, TypeError);
  for (const lease of [0, -1, 0.5, NaN, Infinity]) bad({ lease }, RangeError);
  bad({ retry: 3 }, TypeError);
  bad({ retry: { attempts: "3" } }, TypeError);
  bad({ retry: { attempts: 1.5 } }, RangeError);
  bad({ retry: { attempts: NaN } }, RangeError);
  bad({ retry: { delay: -1 } }, RangeError);
  // U15: half of it will do.
  const lock = new Lock({ id: "bad", redis, retry: { delay: 5 } });
  await assertRejects(() => lock.acquire({ lease: 0 }), RangeError);
  await assertRejects(() => lock.acquire({ uuid: 7 as never }), TypeError);
  await assertRejects(() => lock.extend("7" as never), TypeError);
  await assertRejects(() => lock.extend(NaN), RangeError);
  assertEquals(await lock.getStatus(), "FREE");
});

test("a uuid that may not have come about leaves nobody's lock behind", async () => {
  for (const how of ["lost", "in doubt"]) {
    const clock = new FakeClock();
    const on = memory({ clock });
    const { rename } = on;
    on.rename = async (...args) => {
      const verdict = await rename!.apply(on, args);
      if (how === "lost") throw new LockBackendError("k", "no answer");
      clock.stepWall(3_600_000);
      return verdict;
    };
    const lock = new Lock({ id: "k", redis: on });
    const acquiring = lock.acquire({ uuid: "my own" }).catch((error) => error);
    const outcome = await acquiring;
    if (how === "lost") assert(outcome instanceof LockBackendError);
    else assertEquals(outcome, false);
    await settle();
    assertEquals((await on.inspect!("k")).owner, undefined, how);
  }
});

test("an empty uuid is none", async () => {
  const on = memory();
  const lock = new Lock({ id: "k", redis: on });
  assertEquals(await lock.acquire({ uuid: "" }), true);
  assert((await on.inspect!("k")).owner);
  assertEquals(await lock.release(), true);
});

test("what one acquire() leaves out of retry is as its lock has it", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  await acquireLock(on, "k", { ttl: 60 });
  const lock = new Lock({ id: "k", redis: on, retry: ONCE });
  let outcome: boolean | undefined;
  void lock.acquire({ retry: { delay: 500 } }).then((it) => outcome = it);
  await settle();
  assertEquals(outcome, false, "it does not wait");
  const patient = new Lock({ id: "k", redis: on, retry: { delay: 10_000 } });
  outcome = undefined;
  void patient.acquire({ retry: { attempts: 2 } }).then((it) => outcome = it);
  await settle();
  await clock.advance(9_999);
  assertEquals(outcome, undefined, "it waits");
  await clock.advance(2);
  assertEquals(outcome, false);
});
