/**
 * `@redis-kit/lock` by its document: every example, default and result; and
 * what its users rely on where it is silent.
 */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  forceRelease,
  inspectLock,
  LockBackendError,
  LockError,
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import {
  InvalidParameterError,
  RedisConnectionError,
  Redlock,
  redlock as quorum,
  RedlockInstance,
} from "@dreamer/utils/lock/redlock";

import type { Backend } from "../../src/core/backend.ts";
import { clients } from "../support/clients.ts";
import { FakeClock, settle } from "../support/fake_clock.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { sleep, type World, worlds } from "./worlds.ts";

const LISTENS_ON = "who waited listens on for a second";
/** Does not wait. */
const ONCE = { maxRetryAttempts: 0 };

let servers: RedisServer[];
before(async () => {
  servers = await Promise.all([startRedis(), startRedis(), startRedis()]);
});
after(() => Promise.all(servers.map((server) => server.stop())));

/** How many servers of each kind there are, one client or several. */
const counts: Record<string, readonly number[]> = {
  ioredis: [1],
  redis: [3],
  upstash: [],
};
const kinds = worlds.flatMap(({ name, open }) =>
  (counts[name] ?? [1, 3]).map((count) => ({
    name: `${name} × ${count}`,
    open: () => Promise.all(servers.slice(0, count).map(open)),
  }))
);

/** What a majority says: others may hear of it later. */
const majority = (clients: LockTarget[]) =>
  clients.length === 1 ? clients[0] : quorum(clients);

for (const { name, open } of kinds) {
  const inWorld = (
    title: string,
    fn: (
      clients: LockTarget[],
      others: LockTarget[],
      worlds: World[],
    ) => Promise<void>,
  ) =>
    test(`${name}: ${title}`, async () => {
      const all = await open();
      try {
        await fn(all.map(({ on }) => on), all.map(({ other }) => other), all);
      } finally {
        await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
      }
    }, { allowTimers: LISTENS_ON });

  inWorld("the document's quick start runs", async (clients, others) => {
    const log: unknown[] = [];
    const [userId, profileData] = [123, { name: "Ann" }];
    const updateUserProfile = async (...args: unknown[]) => {
      log.push(args);
      const rival = new Redlock(others, ONCE);
      assertEquals(await rival.acquire("user:123:profile", 1_000), null);
    };

    const redlock = new Redlock(clients);
    await redlock.withLock("user:123:profile", 30000, async () => {
      // Critical section - only one process can execute this
      await updateUserProfile(userId, profileData);
    });
    assertEquals(log, [[123, { name: "Ann" }]]);
  });

  inWorld("the document's manual lock management runs", async (clients) => {
    const redlock = new Redlock(clients, {
      retryDelayMs: 1,
      retryJitterMs: 1,
    });
    const log: unknown[] = [];
    const [orderId, items] = [456, ["a", "b"]];
    const processPayment = (id: number) => Promise.resolve(log.push(id));
    const updateInventory = (all: string[]) => Promise.resolve(log.push(all));
    const pay = async () => {
      const lock = await redlock.acquire("payment:order:456", 10000);

      if (lock) {
        try {
          await processPayment(orderId);
          await updateInventory(items);
        } finally {
          await lock.release();
        }
      } else {
        throw new Error("Could not acquire lock for payment processing");
      }
    };
    await pay();
    assertEquals(log, [456, ["a", "b"]]);
    const held = await redlock.acquire("payment:order:456", 10000);
    await assertRejects(pay, Error, "Could not acquire lock");
    assertEquals(await held?.release(), true);
  });

  inWorld("the document's auto-extension runs", async (clients) => {
    const redlock = new Redlock(clients);
    const dataBatches = [1, 2, 3];
    const migrated: number[] = [];
    const migrateBatch = async (batch: number) => {
      await sleep(10);
      migrated.push(batch);
    };
    const lock = await redlock.acquire("data-migration", 30000);

    if (lock) {
      lock.startAutoExtension(5000); // Extend 5 seconds before expiry

      try {
        for (const batch of dataBatches) {
          await migrateBatch(batch);
        }
      } finally {
        await lock.release(); // Stops auto-extension automatically
      }
    }
    assertEquals(migrated, [1, 2, 3]);
    assertEquals(lock?.isReleased, true);
  });

  inWorld("the document's custom configuration runs", async (clients) => {
    const redlock = new Redlock(clients, {
      driftFactor: 0.01,
      retryDelayMs: 200,
      retryJitterMs: 100,
      maxRetryAttempts: 5,
    });
    const errors: string[] = [];
    const console = { error: (...args: string[]) => errors.push(args.join()) };
    const performCriticalOperation = () => Promise.reject(new Error("broken"));
    try {
      await redlock.withLock("critical-resource", 60000, async () => {
        await performCriticalOperation();
      });
    } catch (error) {
      console.error("Lock operation failed:", (error as Error).message);
    }
    assertEquals(errors, ["Lock operation failed:,broken"]);
    const lock = await new Redlock(clients, ONCE)
      .acquire("critical-resource", 1_000);
    assertEquals(await lock?.release(), true);
  });

  inWorld("a lock says what it is", async (clients) => {
    const redlock = new Redlock(clients);
    const lock = await redlock.acquire("state", 5_000);
    assertInstanceOf(lock, RedlockInstance);
    assert(lock.isValid && !lock.isReleased && !lock.isExpired);
    assertEquals(lock.resourceKey, "state"); // R10
    assertEquals(lock.resourceKeys, ["state"]);
    lock.resourceKeys.push("mine");
    assertEquals(lock.resourceKeys, ["state"]);
    const leftMs = lock.expirationTime.getTime() - Date.now();
    assert(leftMs <= 4_950 && leftMs > 4_000, `${leftMs} ms`);
    lock.expirationTime.setTime(0);
    assert(lock.isValid);
    assertEquals(await lock.release(), true);
    assert(!lock.isValid && lock.isReleased && !lock.isExpired);
    assertEquals(await lock.release(), true);
    await assertRejects(
      () => lock.extend(),
      Error,
      "Cannot extend a released lock",
    );
    assertThrows(
      () => lock.startAutoExtension(),
      Error,
      "Cannot start auto-extension on a released lock",
    );
    lock.stopAutoExtension();
  });

  inWorld("what is taken is null, or an Error", async (clients, others) => {
    const redlock = new Redlock(clients);
    const rival = new Redlock(others, ONCE);
    const lock = await redlock.acquire(["a", "b"], 5_000);
    assertEquals(await rival.acquire("a", 1_000), null);
    assertEquals(await rival.acquire(["b", "c"], 1_000), null);
    const never = () => Promise.reject(new Error("called"));
    const error = await assertRejects(
      () => rival.withLock("a", 1_000, never),
      LockNotAcquiredError,
    );
    assertEquals(error.message, "Failed to acquire lock for resource: a");
    await assertRejects(
      () => rival.withLock(["c", "b"], 1_000, never),
      LockNotAcquiredError,
      "Failed to acquire lock for resource: [c, b]",
    );
    // What it did not get is free.
    const free = await redlock.acquire("c", 1_000);
    assertEquals(await free?.release(), true);
    assertEquals(await lock?.release(), true);
  });

  inWorld("several are one lock, sorted and each once", async (clients) => {
    const redlock = new Redlock(clients, ONCE);
    const lock = await redlock.acquire(["b", "a", "b"], 5_000);
    assertEquals(lock?.resourceKeys, ["a", "b"]);
    assertEquals(lock?.resourceKey, "a");
    assert(await lock!.extend(8_000));
    for (const key of ["a", "b"]) {
      const { remainingMs = 0 } = await inspectLock(majority(clients), key);
      assert(remainingMs > 5_000, `${remainingMs} ms`);
    }
    assertEquals(await lock?.release(), true);
    assertEquals((await inspectLock(majority(clients), "b")).held, false);
  });

  inWorld("extend() sets the ttl anew", async (clients) => {
    const lock = await new Redlock(clients).acquire("extend", 5_000);
    const leftMs = async () =>
      (await inspectLock(majority(clients), "extend")).remainingMs ?? 0;
    assert(await lock!.extend(20_000));
    assert(await leftMs() > 15_000);
    const known = lock!.expirationTime.getTime() - Date.now();
    assert(known <= 19_800, `${known} ms`); // R9
    assert(await lock!.extend());
    assert(await leftMs() <= 5_000);
    await Promise.all(clients.map((one) => forceRelease(one, "extend")));
    assertEquals(await lock!.extend(), false);
    assert(!lock!.isValid && lock!.isExpired);
    assertEquals(await lock!.release(), false);
  });

  inWorld("an expired lock stays expired", async (clients, others) => {
    const lock = await new Redlock(clients).acquire("expire", 200);
    const next = await new Redlock(others, { maxRetryAttempts: 20 })
      .acquire("expire", 5_000);
    assert(next?.isValid);
    assert(!lock?.isValid && lock?.isExpired && !lock.isReleased);
    assert(lock.expirationTime.getTime() <= Date.now());
    assertEquals(await lock.extend(), false);
    assertEquals(await lock.release(), false);
    assertEquals(await next.release(), true);
  });

  inWorld("withLock() tells of a loss", async (clients) => {
    const redlock = new Redlock(clients);
    await assertRejects(
      () =>
        redlock.withLock("lost", 2_000, async () => {
          await Promise.all(clients.map((one) => forceRelease(one, "lost")));
        }),
      LockLostError,
    );
    const boom = new Error("fn's own");
    const thrown = await redlock.withLock("lost", 2_000, async () => {
      await Promise.all(clients.map((one) => forceRelease(one, "lost")));
      throw boom;
    }).catch((error) => error);
    assertEquals(thrown, boom);
  });

  inWorld("it excludes acquireLock(), and is excluded", async (clients) => {
    const redlock = new Redlock(clients, ONCE);
    const on = majority(clients);
    await using held = await acquireLock(on, "shared");
    assertEquals(await redlock.acquire("shared", 1_000), null);
    await held.release();
    const lock = await redlock.acquire("shared", 1_000);
    const never = { throwOnFail: false } as const;
    assertEquals(await acquireLock(on, "shared", never), null);
    assertEquals(await lock?.release(), true);
  });

  // By the clock of the machine, which is to have some time left.
  if (name.startsWith("memory")) continue;
  inWorld("withLock() outlives its ttl", async (clients, others) => {
    const log: string[] = [];
    const answer = await new Redlock(clients)
      .withLock("long", 1_000, async (...args: unknown[]) => {
        assertEquals(args, []);
        await sleep(1_400); // R1
        const rival = new Redlock(others, ONCE);
        assertEquals(await rival.acquire("long", 300), null);
        log.push("done");
        return 42;
      });
    assertEquals([answer, ...log], [42, "done"]);
    const lock = await new Redlock(others, ONCE).acquire("long", 300);
    assertEquals(await lock?.release(), true);
  });
}

/** Counts the extensions of `backend`, and makes it fail at will. */
function watchful(backend: Backend) {
  const it = { backend, extensions: 0, isDown: false };
  const extend = backend.extend.bind(backend);
  const release = backend.release.bind(backend);
  backend.extend = (claims) => {
    it.extensions++;
    if (!it.isDown) return extend(claims);
    return Promise.reject(new LockBackendError(claims[0].key, "down"));
  };
  backend.release = (hold) =>
    it.isDown
      ? Promise.reject(new LockBackendError(hold.key, "down"))
      : release(hold);
  return it;
}

test("withLock() outlives its ttl without a server, too", async () => {
  const clock = new FakeClock();
  const redlock = new Redlock([memory({ clock })], ONCE);
  let finish = () => {};
  const done = redlock.withLock(
    "long",
    1_000,
    () => new Promise<number>((resolve) => finish = () => resolve(42)),
  ); // R1
  await clock.advance(10_000);
  assertEquals(await redlock.acquire("long", 1_000), null);
  finish();
  assertEquals(await done, 42);
  assertEquals(clock.pending, 0);
});

test("auto-extension holds a lock, with a few commands", async () => {
  const clock = new FakeClock();
  const it = watchful(memory({ clock }));
  const lock = await new Redlock([it.backend]).acquire("kept", 1_000);
  // R4: the default threshold is all of the ttl; R6: again and again.
  for (let i = 0; i < 5; i++) lock!.startAutoExtension();
  await clock.advance(10_000);
  assert(lock!.isValid);
  assert(it.extensions >= 29 && it.extensions <= 32, `${it.extensions}`);
  lock!.stopAutoExtension();
  await clock.advance(400);
  assert(lock!.isValid);
  await clock.advance(600);
  assert(!lock!.isValid);
  assertEquals(await lock!.release(), false);
  assertEquals(clock.pending, 0);
});

test("auto-extension begins late, too, and ends with the release", async () => {
  const clock = new FakeClock();
  const it = watchful(memory({ clock }));
  const lock = await new Redlock([it.backend]).acquire("late", 1_000);
  await clock.advance(900);
  lock!.startAutoExtension(100);
  await clock.advance(3_000);
  assert(lock!.isValid);
  assertEquals(await lock!.release(), true);
  const { extensions } = it;
  await clock.advance(3_000);
  assertEquals(it.extensions, extensions);
  assertEquals(clock.pending, 0);
});

test("of several keys all are extended", async () => {
  const clock = new FakeClock();
  const redlock = new Redlock([memory({ clock })]);
  const lock = await redlock.acquire(["a", "b"], 1_000);
  lock!.startAutoExtension();
  await clock.advance(5_000);
  assert(lock!.isValid);
  lock!.stopAutoExtension();
  await clock.advance(1_000);
  assert(!lock!.isValid);
  assertEquals(clock.pending, 0);
});

test("an extension that fails is told by the signal", async () => {
  const clock = new FakeClock();
  const it = watchful(memory({ clock }));
  const lock = await new Redlock([it.backend]).acquire("told", 1_000);
  lock!.startAutoExtension();
  let reason: unknown;
  const { signal } = lock!;
  signal.addEventListener("abort", () => reason = signal.reason);
  await clock.advance(3_000);
  assertEquals(reason, undefined);
  it.isDown = true;
  await clock.advance(1_000); // R5: before another can have it
  assertInstanceOf(reason, LockLostError);
  assertEquals([lock!.isValid, lock!.isExpired], [false, true]);
  await lock!.release();
  it.isDown = false;
  assertEquals(clock.pending, 0);
});

test("a release that failed can be repeated in earnest", async () => {
  const it = watchful(memory());
  const redlock = new Redlock([it.backend], ONCE);
  const lock = await redlock.acquire("repeat", 30_000);
  it.isDown = true;
  assertEquals(await lock!.release(), false); // R7
  assertEquals([lock!.isReleased, lock!.isValid], [false, false]);
  assertEquals(await lock!.release(), false);
  it.isDown = false;
  assertEquals(await redlock.acquire("repeat", 1_000), null);
  assertEquals(await lock!.release(), true);
  assertEquals([lock!.isReleased, await lock!.release()], [true, true]);
  const next = await redlock.acquire("repeat", 1_000);
  assertEquals(await next?.release(), true);
});

test("what is not held is not extended, and that is said", async () => {
  const it = watchful(memory());
  const redlock = new Redlock([it.backend], ONCE);
  const lock = await redlock.acquire("left", 30_000);
  it.isDown = true;
  const releasing = lock!.release();
  const both = async () => {
    const what = "start auto-extension on a released lock";
    const extending = lock!.extend();
    const start = () => lock!.startAutoExtension();
    assertThrows(start, LockError, `Cannot ${what}`);
    const text = "Cannot extend a released lock";
    await assertRejects(() => extending, LockError, text);
  };
  await both();
  assertEquals(await releasing, false);
  // Not released, and not held either.
  assertEquals(await lock!.extend(), false);
  const error = assertThrows(() => lock!.startAutoExtension(), LockError);
  assertEquals(error.code, "LOCK_NOT_HELD");
  it.isDown = false;
  assertEquals(await lock!.release(), true);
  await both();
});

test("a release during an extension ends it in an error, and no false", async () => {
  const lock = await new Redlock([memory()], ONCE).acquire("both", 30_000);
  const extending = lock!.extend();
  const releasing = lock!.release();
  const error = await assertRejects(() => extending, LockError);
  assertEquals(error.message, "Cannot extend a released lock");
  assertEquals(await releasing, true);
});

test("auto-extension of a lock that was lost is refused", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const lock = await new Redlock([on], ONCE).acquire("lost", 1_000);
  await clock.advance(1_100);
  assertThrows(() => lock!.startAutoExtension(), LockLostError);
  assertEquals(await lock!.extend(), false);
  await lock!.release();
});

test("an extension that can't be had is an error, and no false", async () => {
  const it = watchful(memory());
  const lock = await new Redlock([it.backend]).acquire("extend", 30_000);
  it.isDown = true;
  const error = await assertRejects(() => lock!.extend(), RedisConnectionError);
  assert(error.message.startsWith("Redis operation 'extend' failed: "));
  assert(lock!.isValid);
  it.isDown = false;
  assertEquals(await lock!.release(), true);
});

test("drift is taken off as asked for, also after extend()", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const redlock = new Redlock([on], { driftFactor: 0.1 });
  const lock = await redlock.acquire("drift", 10_000);
  await clock.advance(8_990);
  assert(lock!.isValid);
  await clock.advance(10);
  assert(!lock!.isValid);
  assert((await inspectLock(on, "drift")).held);
  await lock!.release();
  const again = await redlock.acquire("drift", 5_000);
  assert(await again!.extend(20_000));
  await clock.advance(17_990); // R9
  assert(again!.isValid);
  await clock.advance(10);
  assert(!again!.isValid);
  await again!.release();
});

test("3 retries are 900 ms of patience, and 0 none", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const held = await new Redlock([on]).acquire("patience", 60_000);
  assertEquals(await new Redlock([on], ONCE).acquire("patience", 1_000), null);
  let answer: unknown;
  const acquired = new Redlock([on]).acquire("patience", 1_000)
    .then((lock) => answer = lock);
  await clock.advance(890);
  assertEquals(answer, undefined);
  await clock.advance(20);
  assertEquals(answer, null);
  await acquired;
  const ever = new Redlock([on], {
    ...{ maxRetryAttempts: Infinity, retryDelayMs: 0, retryJitterMs: 0 },
  });
  const last = ever.acquire("patience", 1_000);
  await clock.advance(30_000);
  assertEquals(await held?.release(), true);
  assertEquals(await (await last)?.release(), true);
});

test("of two servers both grant a lock", async () => {
  const [a, b] = [memory(), memory()];
  const redlock = new Redlock([a, b], ONCE);
  const lock = await redlock.acquire("both", 1_000);
  for (const on of [a, b]) assert((await inspectLock(on, "both")).held);
  assertEquals(await lock!.release(), true);
  await using held = await acquireLock(b, "both");
  assertEquals(await redlock.acquire("both", 1_000), null);
  assert(held.isAcquired());
  assertEquals((await inspectLock(a, "both")).held, false);
});

test("one server of three may be down or hang, and two may not", async () => {
  const own = await Promise.all([startRedis(), startRedis(), startRedis()]);
  const { open } = clients.find(({ name }) => name === "redis")!;
  const opened = await Promise.all(own.map(({ url }) => open(url)));
  const redlock = new Redlock(opened.map(({ client }) => client));
  const isFine = async (key: string) => {
    const lock = await redlock.acquire(key, 5_000);
    assert(lock?.isValid);
    assert(await lock.extend());
    assertEquals(await lock.release(), true);
  };
  own[2].freeze(); // R3
  await isFine("frozen");
  own[2].thaw();
  await own[2].kill(); // R2
  await isFine("dead");
  await own[1].kill(); // R14
  const error = await assertRejects(
    () => redlock.acquire("gone", 1_000),
    RedisConnectionError,
  );
  assertInstanceOf(error, LockBackendError);
  const text = `Redis operation 'acquire' failed: Cannot acquire "gone"`;
  assert(error.message.startsWith(text), error.message);
  assertEquals(error.key, "gone");
  assertInstanceOf(error.cause, LockBackendError);
  let isCalled = false;
  await assertRejects(
    () => redlock.withLock("gone", 1_000, () => void (isCalled = true)),
    RedisConnectionError,
  );
  assertEquals(isCalled, false);
  await Promise.all(opened.map((one) => one.close()));
  await Promise.all(own.map((one) => one.stop()));
}, { allowTimers: "what may have been acquired is cleaned up" });

test("a server's failure within fn is passed on as it is", async () => {
  const redlock = new Redlock([memory()]);
  const own = new LockBackendError("other", "fn's own");
  const error = await redlock.withLock("fn", 1_000, () => Promise.reject(own))
    .catch((error) => error);
  assertEquals(error, own);
});

test("a bad parameter is told by name, value and type", async () => {
  const on = memory();
  const bad = (parameter: string, expected: string, fn: () => unknown) => {
    const error = assertThrows(fn, InvalidParameterError);
    assertInstanceOf(error, TypeError);
    assertEquals([error.parameter, error.name], [parameter, "RedisLockError"]);
    const { value } = error;
    const shown = parameter === "redisClients" ? /\(.*\)$/ : `(${value})`;
    const text =
      `Invalid ${parameter}: expected ${expected}, got ${typeof value} `;
    assert(error.message.startsWith(text), error.message);
    if (typeof shown === "string") assertEquals(error.message, text + shown);
  };
  const expected = "non-empty array of Redis clients";
  bad("redisClients", expected, () => new Redlock([]));
  const url = "redis://:secret@host";
  bad("redisClients", expected, () => new Redlock(url as never));
  const error = assertThrows(() => new Redlock(url as never));
  assert(!String(error).includes("secret"));
  for (const driftFactor of [-0.1, 0.2, NaN, "0"]) { // R8
    bad("driftFactor", "number between 0 and 0.1", () => {
      new Redlock([on], { driftFactor: driftFactor as number });
    });
  }
  const names = ["retryDelayMs", "retryJitterMs", "maxRetryAttempts"] as const;
  for (const name of names) {
    for (const value of [-1, NaN, "3"]) { // R8
      bad(name, "non-negative number", () => {
        new Redlock([on], { [name]: value });
      });
    }
  }
  for (const automaticExtensionThreshold of [0, NaN, 1.5]) {
    bad("automaticExtensionThreshold", "positive integer", () => {
      new Redlock([on], { automaticExtensionThreshold });
    });
  }
  for (const others of [[], [memory(), memory()]]) {
    const clients = [...others, null as never];
    const name = `\`redisClients[${others.length}]\` must be a client`;
    assertThrows(() => new Redlock(clients), TypeError, name);
  }
  const members = [memory(), undefined as never, memory()];
  assertThrows(() => quorum(members), TypeError, "`targets[1]` must be");
  assertThrows(() => new Redlock([on, on]), RangeError, "once");

  const redlock = new Redlock([on], ONCE);
  const badly = async (parameter: string, fn: () => Promise<unknown>) => {
    const error = await assertRejects(fn, InvalidParameterError);
    assertEquals(error.parameter, parameter);
  };
  // Without a prototype nothing becomes a text by itself.
  const bare = Object.create(null) as never;
  await badly("key", () => redlock.acquire("", 1_000));
  await badly("key", () => redlock.acquire("  ", 1_000));
  await badly("keys", () => redlock.acquire([], 1_000));
  await badly("keys", () => redlock.acquire(7 as never, 1_000));
  await badly("keys[1]", () => redlock.acquire(["a", ""], 1_000));
  await badly("keys[0]", () => redlock.acquire([7 as never], 1_000));
  await badly("keys[0]", () => redlock.acquire([bare], 1_000));
  const odd = [bare, [bare] as never, Symbol("ms") as never];
  for (const ttlMs of [0, -1, 1.5, NaN, Infinity, "1000" as never, ...odd]) {
    await badly("ttlMs", () => redlock.acquire("a", ttlMs));
    const fn = () => Promise.resolve();
    await badly("ttlMs", () => redlock.withLock("a", ttlMs, fn));
  }
  await badly("fn", () => redlock.withLock("a", 1_000, null as never));
  await badly("extensionThresholdMs", () => {
    const options = { extensionThresholdMs: 0 };
    return redlock.withLock("a", 1_000, () => Promise.resolve(), options);
  });
  const lock = await redlock.acquire("a", 1_000);
  await badly("newTtlMs", () => lock!.extend(0));
  bad("thresholdMs", "positive integer", () => lock!.startAutoExtension(NaN));
  assertEquals(await lock!.release(), true);
});

test("a released lock has the expiration that it was released with", async () => {
  const lock = await new Redlock([memory()], ONCE).acquire("k", 5_000);
  await lock!.extend(60_000);
  assertEquals(await lock!.release(), true);
  assert(lock!.expirationTime.getTime() > Date.now() + 50_000);
});

test("patience for several keys counts from the first no of a slow server", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquireAll } = on;
  on.tryAcquireAll = async (...args) => {
    const answer = await tryAcquireAll!.apply(on, args);
    clock.stall(5_000);
    return answer;
  };
  const holder = await acquireLock(on, "b", { ttl: 60 });
  const patience = { retryDelayMs: 100, retryJitterMs: 0, maxRetryAttempts: 5 };
  const acquiring = new Redlock([on], patience).acquire(["a", "b"], 10_000);
  await settle();
  await clock.advance(400);
  await holder.release();
  await clock.advance(300);
  const lock = await acquiring;
  assertEquals(await lock?.release(), true);
});

test("RedisConnectionError has what led to it", () => {
  const cause = new Error("no");
  const error = new RedisConnectionError("acquire", cause);
  assertEquals(error.message, "Redis operation 'acquire' failed: no");
  assertEquals([error.cause, error.name], [cause, "RedisLockError"]);
  const plain = new RedisConnectionError("extend");
  assertEquals(plain.message, "Redis operation 'extend' failed: Unknown error");
});

test("nine thousand keys are one lock", async () => {
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using opened = await open(servers[0].url);
  const keys = Array.from({ length: 9_000 }, (_, i) => `many:${i}`);
  const redlock = new Redlock([opened.client], ONCE);
  const lock = await redlock.acquire(keys, 60_000);
  assertEquals(await redlock.acquire("many:8999", 1_000), null);
  assertEquals(lock?.resourceKeys.length, 9_000);
  assertEquals(await lock?.release(), true);
});
