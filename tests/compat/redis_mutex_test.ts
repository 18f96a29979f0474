/**
 * `RedisMutex` as its users know it: every example of its document, then what
 * the document promises, then what the original got wrong.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertGreater,
  assertInstanceOf,
  assertLess,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { Redis, type RedisOptions } from "ioredis";
import { Redis as Redis5 } from "ioredis5";

import {
  acquireLock,
  inspectLock,
  LockNotAcquiredError,
  type LockTarget,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import {
  DistributedLock,
  LockBackendError,
  LockedError,
  LockError,
  LockLostError,
  RedisMutex,
  redisMutexLockAdapter,
  type RedisMutexLockOptions,
  type RetryOptions,
} from "@dreamer/utils/lock/redis-mutex";
import { clients } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { spawnScript } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { startCluster } from "../support/redis_cluster.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import {
  after,
  before,
  test as watchedTest,
  timersEnd,
} from "../support/test.ts";
import { until } from "../support/until.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(async () => {
  await server.stop();
  await timersEnd();
});

/** What is left of timers is looked at after the last test. */
function test(name: string, fn: () => unknown): void {
  const allowTimers = "who waited listens on for a second";
  watchedTest(name, fn, { allowTimers });
}

type Options = Partial<RedisMutexLockOptions>;

/** Where an example runs. */
interface World {
  /** A mutex as the example makes one; closed when the test ends. */
  mutex(options?: Options): RedisMutex;
  /** The same place, to look at from outside. */
  on: LockTarget;
}

/** No patience: tells at once. */
const AT_ONCE: RetryOptions = { retries: 0 };
/** More of it than a test lasts. */
const PATIENT: RetryOptions = { forever: true, maxRetryTime: 15_000 };

const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));

let serial = 0;
const newName = () => `resource-${++serial}`;

/** One test over a connection of the mutex's own, and over `memory()`. */
function both(sentence: string, fn: (world: World) => unknown): void {
  test(`ioredis: ${sentence}`, () => overIoredis(fn));
  test(`memory: ${sentence}`, async () => {
    const on = memory();
    await fn({
      on,
      mutex: (options) => new RedisMutex({ client: on, ...options }),
    });
  });
}

async function overIoredis(fn: (world: World) => unknown): Promise<void> {
  const on = new Redis(server.url);
  const opened: RedisMutex[] = [];
  const client = { host: server.host, port: server.port };
  try {
    await fn({
      on,
      mutex: (options) => {
        const mutex = new RedisMutex({ client, ...options });
        opened.push(mutex);
        return mutex;
      },
    });
  } finally {
    on.disconnect();
    await Promise.all(opened.map((mutex) => mutex.close()));
  }
}

const inLine = (key: string, count: number, at = server) =>
  until(
    `${count} in line`,
    async () => await at.command("ZCARD", `{${key}}:line`) === count,
  );

// The examples of the document, with the imports and the server swapped.

const OPTIONS: Options = {
  lockPrefix: "redis",
  lockTimeout: 10_000,
  fifo: true,
};

both("example: acquiring a lock", async ({ mutex, on }) => {
  const lock = mutex(OPTIONS);
  const resource = "my-resource";

  // Acquire the lock
  const { unlock } = await lock.lock(resource);

  // Perform critical operations
  const { held, remainingMs = 0 } = await inspectLock(
    on,
    "redis:lock-my-resource",
  );
  assert(held);
  assert(remainingMs > 5_000 && remainingMs <= 10_000, `${remainingMs} ms`);

  // Release the lock when done
  assertEquals(await unlock(), undefined);
  assertFalse((await inspectLock(on, "redis:lock-my-resource")).held);
});

both("example: using withLock", async ({ mutex, on }) => {
  const lock = mutex(OPTIONS);
  const resource = "my-resource";

  // Acquire the lock and execute the function
  const result = await lock.withLock(resource, async () => {
    const { held } = await inspectLock(on, "redis:lock-my-resource");
    return { held };
  });
  assertEquals(result, { held: true });
  assertFalse((await inspectLock(on, "redis:lock-my-resource")).held);
});

both("example: checking lock availability", async ({ mutex }) => {
  const lock = mutex(OPTIONS);
  const resource = "my-resource";
  const said: string[] = [];

  const check = async () => {
    try {
      await lock.checkLock(resource);
      said.push("Lock is available!");
    } catch (error) {
      said.push(`Lock is not available: ${error}`);
    }
  };
  await check();
  const { unlock } = await lock.lock(resource);
  await check();
  await unlock();
  await check();
  assertEquals(said, [
    "Lock is available!",
    "Lock is not available: LOCKED: One of my-resource is currently acquired " +
    "by another process.",
    "Lock is available!",
  ]);
});

both("example: extending a lock", async ({ mutex, on }) => {
  const lock = mutex(OPTIONS);
  const resource = "my-resource";

  // Acquire the lock
  const { unlock, extend, expiration } = await lock.lock(resource);

  // ... perform operations that require the lock ...
  await pass(60);

  // Extend the lock's expiration
  const extended = await extend();
  assertGreater(extended.expiration, expiration);
  const { remainingMs = 0 } = await inspectLock(on, "redis:lock-my-resource");
  assertGreater(remainingMs, 9_500);
  await unlock();
  assertFalse((await inspectLock(on, "redis:lock-my-resource")).held);
});

both("example: FIFO ordering", async ({ mutex }) => {
  const lock = mutex(OPTIONS);
  const order: number[] = [];
  const { unlock } = await lock.lock("my-resource");
  const all = [1, 2, 3, 4].map((number) =>
    lock.withLock("my-resource", async () => {
      order.push(number);
      await pass(1);
    })
  );
  await unlock();
  await Promise.all(all);
  assertEquals(order, [1, 2, 3, 4]);
});

both("example: multi-resource locking", async ({ mutex }) => {
  const lock = mutex(OPTIONS);
  const resources = ["resource1", "resource2", "resource3"];

  // Acquire locks on all resources
  const { unlock } = await lock.lock(resources);
  for (const resource of resources) {
    await assertRejects(() => lock.checkLock(resource), LockError);
  }
  await unlock();
  await lock.checkLock(resources);
});

both("example: custom retry options", async ({ mutex }) => {
  const lock = mutex({
    lockPrefix: "redis",
    lockTimeout: 10_000,
    retryOptions: { retries: 5, factor: 2, minTimeout: 1000, randomize: true },
  });
  const { unlock } = await lock.lock("my-resource");
  const second = lock.lock("my-resource");
  await unlock();
  await (await second).unlock();
});

both("example: custom lock timeout", async ({ mutex, on }) => {
  const lock = mutex({ lockPrefix: "redis", lockTimeout: 5000 }); // 5 seconds
  const asked = Date.now();
  const { unlock, expiration } = await lock.lock("my-resource");
  assertLess(expiration, Date.now() + 5_000);
  assertGreater(expiration, asked + 4_500);
  const { remainingMs = 0 } = await inspectLock(on, "redis:lock-my-resource");
  assert(remainingMs > 2_500 && remainingMs <= 5_000, `${remainingMs} ms`);
  await unlock();
});

both("example: custom lock prefix", async ({ mutex, on }) => {
  const lock = mutex({ lockPrefix: "my-app-locks", lockTimeout: 10_000 });
  const { unlock } = await lock.lock("my-resource");
  assert((await inspectLock(on, "my-app-locks:lock-my-resource")).held);
  await unlock();
});

both("example: the simple one", async ({ mutex }) => {
  const said: unknown[] = [];
  async function main() {
    const lock = mutex(OPTIONS);
    const resource = "my-resource";
    try {
      const { unlock } = await lock.lock(resource);
      said.push("Lock acquired for resource:", resource);

      // Simulate some work
      await pass(20);

      await unlock();
      said.push("Lock released for resource:", resource);
    } catch (error) {
      said.push("Error acquiring lock:", error);
    }
  }
  await main();
  assertEquals(said, [
    ...["Lock acquired for resource:", "my-resource"],
    ...["Lock released for resource:", "my-resource"],
  ]);
});

// What the document promises, and its types.

both("the prefix is that of the original unless given", async (world) => {
  const { unlock } = await world.mutex().lock("a");
  const key = "@trellisorg/distributed-lock:lock-a";
  const { remainingMs = 0 } = await inspectLock(world.on, key);
  assert(remainingMs > 5_000 && remainingMs <= 10_000, `${remainingMs} ms`);
  await unlock();
});

both("a lock that is taken is a LockError named LOCKED", async ({ mutex }) => {
  const lock = mutex({ retryOptions: AT_ONCE });
  const { unlock } = await lock.lock("a");
  for (
    const attempt of [
      () => lock.lock("a"),
      () => lock.lock(["b", "a"]),
      () => lock.withLock("a", () => "inside"),
    ]
  ) {
    const error = await assertRejects(attempt, LockError);
    assertEquals(error.name, "LOCKED");
    assertInstanceOf(error, LockedError);
    assertInstanceOf(error, LockNotAcquiredError);
    assertStringIncludes(
      error.message,
      "currently acquired by another process",
    );
  }
  await lock.checkLock("b");
  await unlock();
});

both("checkLock() tells a part from the whole", async ({ mutex }) => {
  const lock = mutex();
  await lock.checkLock(["a", "b"]);
  const one = await lock.lock("a");
  const check = (resources: string | string[]) =>
    assertRejects(() => lock.checkLock(resources), LockedError);
  const name = async (resources: string | string[]) =>
    (await check(resources)).name;
  assertEquals(await name("a"), "LOCKED");
  const { key, retryAfterMs } = await check(["a", "b"]);
  assert(key.endsWith(":lock-a"));
  assert(retryAfterMs! > 0 && retryAfterMs! <= 10_000, `${retryAfterMs} ms`);
  assertEquals(await name(["a", "b"]), "PARTIAL_LOCK");
  const other = await lock.lock("b");
  assertEquals(await name(["a", "b"]), "LOCKED");
  const error = await assertRejects(() => lock.checkLock(["a", "b"]));
  assertStringIncludes(String(error), "One of a,b is currently acquired");
  await one.unlock();
  await other.unlock();
});

both("options of a call replace those of the mutex", async ({ mutex, on }) => {
  const lock = mutex({ lockPrefix: "p", retryOptions: PATIENT });
  const { unlock } = await lock.lock("a", { lockTimeout: 2_000 });
  const { remainingMs = 0 } = await inspectLock(on, "p:lock-a");
  assert(remainingMs > 0 && remainingMs <= 2_000, `${remainingMs} ms`);
  const retryOptions = AT_ONCE;
  await assertRejects(() => lock.lock("a", { retryOptions }), LockedError);
  await assertRejects(
    () => lock.withLock("a", () => {}, { retryOptions }),
    LockedError,
  );
  await unlock();
});

both("what fn throws is passed on as it is", async ({ mutex }) => {
  const lock = mutex();
  const refusal = new LockNotAcquiredError("elsewhere", "taken elsewhere");
  const error = await assertRejects(() =>
    lock.withLock("a", () => Promise.reject(refusal))
  );
  assertEquals(error, refusal);
  await lock.checkLock("a");
});

test("withLock() tells its function of a loss, and rejects", async () => {
  const on = memory();
  const lock = new RedisMutex({
    client: on,
    lockTimeout: 200,
    lockPrefix: "p",
  });
  const names: unknown[] = [];
  const error = await assertRejects(() =>
    lock.withLock("a", async (signal) => {
      await on.forceRelease!("p:lock-a");
      await new Promise((go) => signal.addEventListener("abort", go));
      names.push((signal.reason as Error).name);
    }), LockLostError);
  assertEquals(error.reason, "deleted");
  assertEquals(names, ["LockLostError"]);
});

const PATIENCE: [RetryOptions | undefined, number][] = [
  [undefined, 1_023_000],
  [{}, 1_023_000],
  [{ retries: 3 }, 7_000],
  [{ retries: 3, minTimeout: 100 }, 700],
  [{ retries: 4, minTimeout: 100, factor: 1 }, 400],
  [{ retries: 4, minTimeout: 100, factor: 3, maxTimeout: 500 }, 1_400],
  [{ retries: 3, minTimeout: 100, factor: 0.5 }, 175],
  [{ retries: 1_000_000_000, minTimeout: 8, factor: 0.5 }, 16],
  [{ retries: 1_000, minTimeout: 1, factor: 1, unref: true }, 1_000],
  [{ retries: 10, maxRetryTime: 2_500 }, 2_500],
  [{ forever: true, maxRetryTime: 5_000 }, 5_000],
];

test("it waits for as long as promise-retry would have paused", async () => {
  for (const [retryOptions, totalMs] of PATIENCE) {
    const clock = new FakeClock();
    const client = memory({ clock });
    const lock = new RedisMutex({ client, retryOptions, lockTimeout: 1e9 });
    await lock.lock("a");
    let error: unknown;
    void lock.lock("a").catch((reason) => error = reason);
    await clock.advance(totalMs - 1);
    const what = JSON.stringify(retryOptions);
    assertEquals(error, undefined, `${what}: gave up before`);
    await clock.advance(2);
    assertInstanceOf(error, LockedError, `${what}: still waits`);
  }
});

test("a random stretch makes it one to two times as long", async () => {
  const retryOptions = { retries: 2, minTimeout: 100, randomize: true };
  const clock = new FakeClock();
  const client = memory({ clock });
  const lock = new RedisMutex({ client, retryOptions, lockTimeout: 1e9 });
  await lock.lock("a");
  const { random } = Math;
  let error: unknown;
  try {
    Math.random = () => 0.5;
    void lock.lock("a").catch((reason) => error = reason);
  } finally {
    Math.random = random;
  }
  await clock.advance(449);
  assertEquals(error, undefined);
  await clock.advance(2);
  assertInstanceOf(error, LockedError);
});

test("forever is for ever", async () => {
  const clock = new FakeClock();
  const client = memory({ clock });
  const retryOptions = { forever: true, retries: 0 };
  const lock = new RedisMutex({ client, retryOptions, lockTimeout: 1e9 });
  const { unlock } = await lock.lock("a");
  let isIn = false;
  const second = lock.lock("a").then((value) => (isIn = true, value));
  await clock.advance(10_000_000);
  assertFalse(isIn);
  await unlock();
  await (await second).unlock();
});

test("the adapter makes a mutex, which is a DistributedLock", async () => {
  const lock: DistributedLock = redisMutexLockAdapter({ client: memory() });
  assertInstanceOf(lock, RedisMutex);
  assertInstanceOf(lock, DistributedLock);
  // Functions and options as users of the original have typed them.
  const fn = (...args: unknown[]) => Promise.resolve(args.length);
  assertEquals(await lock.withLock("a", fn), 1);
  const client: RedisOptions = { host: "localhost", keyPrefix: "p:" };
  new RedisMutex({ client, Redis });
  new RedisMutex({ client: "redis://localhost", Redis: Redis5 });
});

// Fair, in line, and over several connections.

for (const fifo of [false, true]) {
  test(`over connections they are served as they came, fifo ${fifo}`, async () => {
    await overIoredis(async ({ mutex }) => {
      const name = newName();
      const options = { lockPrefix: "p", fifo, retryOptions: PATIENT };
      const { unlock } = await mutex(options).lock([name, `${name}-2`]);
      const order: number[] = [];
      const all: Promise<unknown>[] = [];
      for (const number of [1, 2, 3]) {
        // Two want it alone, and one both.
        const resources = number === 2 ? [name, `${name}-2`] : name;
        all.push(
          mutex(options).withLock(resources, () => order.push(number)),
        );
        await inLine(`p:lock-${name}`, number);
      }
      await unlock();
      await Promise.all(all);
      assertEquals(order, [1, 2, 3]);
    });
  });
}

test("strict order holds also between processes that have more to do", async () => {
  await overIoredis(async ({ mutex }) => {
    const options = { lockPrefix: "p", fifo: true, retryOptions: PATIENT };
    const name = newName();
    const [here, there] = [mutex(options), mutex(options)];
    const { unlock } = await here.lock(name);
    const order: string[] = [];
    const all: Promise<unknown>[] = [];
    for (const [i, who] of ["here", "there", "here", "there"].entries()) {
      const lock = who === "here" ? here : there;
      all.push(lock.withLock(name, () => order.push(who)));
      await inLine(`p:lock-${name}`, i + 1);
    }
    await unlock();
    await Promise.all(all);
    assertEquals(order, ["here", "there", "here", "there"]);
  });
});

// Clients of all kinds, and connections of one's own.

for (const { name, open } of clients) {
  test(`${name}: a client that was handed in is used, and never closed`, async () => {
    await using it = await open(server.url);
    const resource = newName();
    {
      await using lock = new RedisMutex({ client: it.client, lockPrefix: "p" });
      const { unlock } = await lock.lock(resource);
      assertEquals(await server.command("EXISTS", `p:lock-${resource}`), 1);
      await unlock();
    }
    const lock = await acquireLock(it.client, resource);
    assert(await lock.release());
  });
}

test(
  "in a Cluster it locks one resource, and several of any slots",
  async () => {
    await using cluster = await startCluster();
    for (const { open } of clusterClients) {
      await using it = await open(cluster.urls);
      const client = it.client;
      const lock = new RedisMutex({ client, retryOptions: AT_ONCE });
      const one = await lock.lock("a");
      await assertRejects(() => lock.lock(["a", "b", "c"]), LockedError);
      await lock.checkLock(["b", "c"]);
      await one.unlock();
      const all = await lock.lock(["a", "b", "c"]);
      await all.extend();
      await assertRejects(() => lock.lock("c"), LockedError);
      await all.unlock();
      await lock.checkLock(["a", "b", "c"]);
    }
  },
);

test("a URL will do, as text or as such, and a class that is handed in", async () => {
  const resource = newName();
  const opened: unknown[] = [];
  class Own extends Redis5 {
    constructor(url: string) {
      super(url);
      opened.push(url);
    }
  }
  for (
    const options of [
      { client: server.url },
      { client: new URL(server.url) },
      { client: server.url, Redis: Own },
    ]
  ) {
    await using lock = new RedisMutex({ ...options, lockPrefix: "p" });
    const { unlock } = await lock.lock(resource);
    assertEquals(await server.command("EXISTS", `p:lock-${resource}`), 1);
    await unlock();
  }
  assertEquals(opened, [server.url]);
});

test("close() ends the connection, and a use after it is refused", async () => {
  const own = async () =>
    String(await server.command("CLIENT", "LIST")).split("name=mutex-").length;
  const name = `mutex-${++serial}`;
  const client = { port: server.port, connectionName: name };
  const lock = new RedisMutex({ client, lockPrefix: "p" });
  await lock.close(); // nothing was opened yet
  await assertRejects(() => lock.lock("a"), Error, "mutex was closed");

  const other = new RedisMutex({ client, lockPrefix: "p" });
  const { unlock } = await other.lock(newName());
  assertEquals(await own(), 2);
  await unlock();
  await other.close();
  await other.close();
  await until("it is closed", async () => await own() === 1);
  await assertRejects(() => other.checkLock("a"), Error, "mutex was closed");
});

test("with its mutex closed a process ends by itself, and has printed nothing", async () => {
  const script = new URL("./closer.ts", import.meta.url);
  await using own = spawnScript(script, [server.url]);
  const { failed, taken } = await own.next("closed");
  assertEquals({ failed, taken }, {
    failed: "LockBackendError",
    taken: "LOCKED",
  });
  assertEquals((await own.exited).code, 0);
  assertEquals(own.stderr, "");
});

test("a client of another kind is refused, and never taken for options", () => {
  class Strange {
    get() {}
    set() {}
    customCommand() {}
  }
  for (const client of [new Strange(), [], 6379, null, undefined, ""]) {
    const error = assertThrows(
      () => new RedisMutex({ client: client as string }),
      TypeError,
    );
    assertStringIncludes(
      error.message,
      "client must be one that acquireLock()",
    );
  }
  class Config {
    host = "localhost";
    password = "secret";
  }
  new RedisMutex({ client: new Config() });
});

test("an argument that makes no sense is refused before anything is sent", async () => {
  const client = { port: 1 }; // where nobody listens
  const make = (options: object) => () =>
    new RedisMutex({ client, ...options });
  assertThrows(
    make({ lockTimeout: 0 }),
    RangeError,
    "lockTimeout must be >= 1",
  );
  assertThrows(make({ lockTimeout: NaN }), RangeError);
  assertThrows(make({ lockTimeout: Infinity }), RangeError);
  assertThrows(make({ lockTimeout: "9" }), TypeError);
  assertThrows(make({ fifo: 1 }), TypeError, "fifo");
  assertThrows(make({ lockPrefix: 1 }), TypeError, "lockPrefix");
  assertThrows(make({ retryOptions: 3 }), TypeError, "retryOptions");
  assertThrows(make({ retryOptions: { retries: -1 } }), RangeError, "retries");
  assertThrows(make({ retryOptions: { randomize: 1 } }), TypeError);
  assertThrows(make({ automaticExtensionThreshold: -1 }), RangeError);
  assertThrows(make({ Redis: {} }), TypeError, "Redis must be a class");
  assertThrows(
    make({ retryOptions: { minTimeout: 5, maxTimeout: 4 } }),
    RangeError,
    "minTimeout must be at most maxTimeout",
  );
  assertThrows(() => new RedisMutex(undefined!), TypeError);
  const lock = make({})();
  await assertRejects(() => lock.lock([]), RangeError, "at least one resource");
  await assertRejects(() => lock.lock(""), RangeError);
  await assertRejects(() => lock.lock(["a", 1 as never]), TypeError);
  await assertRejects(() => lock.checkLock([]), RangeError);
  await assertRejects(() => lock.lock("a", { lockTimeout: 0 }), RangeError);
  await assertRejects(() => lock.lock("a", null!), TypeError);
  await assertRejects(() => lock.withLock("a", undefined!), TypeError);
  await assertRejects(
    () => lock.withLock("a", () => {}, { automaticExtensionThreshold: -1 }),
    RangeError,
  );
  await lock.close();
});

// What the original got wrong.

both("extend() makes it last from now", async ({ mutex, on }) => {
  const lock = mutex({ lockPrefix: "p", lockTimeout: 1_000 });
  await lock.checkLock("a");
  const held = await lock.lock("a");
  await pass(500);
  const extended = await held.extend();
  assertGreater(extended.expiration, held.expiration + 300);
  const { remainingMs = 0 } = await inspectLock(on, "p:lock-a");
  assertGreater(remainingMs, 500);
  await extended.unlock();
});

both("extend() takes an expired lock again, if it is free", async (world) => {
  const lock = world.mutex({ lockTimeout: 200, retryOptions: AT_ONCE });
  await lock.checkLock("a"); // The connection takes its time.
  const held = await lock.lock("a");
  await until(
    "it has expired",
    () => lock.checkLock("a").then(() => true, () => false),
  );
  const again = await held.extend();
  assertGreater(again.expiration, held.expiration);
  await assertRejects(() => lock.lock("a"), LockedError);
  await held.unlock(); // of either value
  await lock.checkLock("a");
});

both("extend() throws where somebody else has it by now", async (world) => {
  const lock = world.mutex({ lockTimeout: 200, retryOptions: PATIENT });
  await lock.checkLock("a");
  const held = await lock.lock(["a", "b"]);
  const rival = await lock.lock("a", { lockTimeout: 10_000 });
  const error = await assertRejects(() => held.extend(), LockError);
  assertEquals(error.name, "LOCKED");
  await lock.checkLock("b");
  await held.unlock();
  await assertRejects(() => lock.checkLock("a"), LockedError);
  await rival.unlock();
});

both(
  "extend() of what was unlocked throws, and takes nothing",
  async (world) => {
    const lock = world.mutex({ lockTimeout: 500 });
    const unlocked = await lock.lock("a");
    await unlocked.unlock();
    await assertRejects(() => unlocked.extend(), LockError, "unlocked");
    const expired = await lock.lock("a");
    await until(
      "it has expired",
      () => lock.checkLock("a").then(() => true, () => false),
    );
    const again = expired.extend();
    await expired.unlock();
    await again;
    await assertRejects(
      () => expired.extend(),
      LockError,
      "unlocked",
    );
    await lock.checkLock("a");
  },
);

both("withLock() keeps its lock for longer than lockTimeout", async (world) => {
  const lock = world.mutex({
    lockTimeout: 1_000,
    automaticExtensionThreshold: 600,
  });
  await lock.checkLock(["a", "b"]);
  await lock.withLock(["a", "b"], async (signal) => {
    for (const end = performance.now() + 1_500; performance.now() < end;) {
      await assertRejects(
        () => lock.lock("a", { retryOptions: AT_ONCE }),
        LockedError,
      );
      await pass(10);
    }
    assertFalse(signal.aborted);
  });
  await lock.checkLock(["a", "b"]);
});

test("withLock() renews a few times per lockTimeout, and not after its end", async () => {
  await using proxy = await startProxy(server.port);
  const client = { port: proxy.port };
  await using lock = new RedisMutex({
    client,
    lockTimeout: 1_200,
    automaticExtensionThreshold: 1_000,
  });
  await lock.checkLock("a");
  await lock.withLock(newName(), () => pass(2_500));
  const sent = proxy.requests.length;
  // Its greeting, its script, nine renewals: and not hundreds.
  assertLess(sent, 40);
  await pass(1_200);
  assertEquals(proxy.requests.length, sent);
});

both("a late unlock, or a second one, frees nobody else's", async (world) => {
  for (const fifo of [false, true]) {
    const lock = world.mutex({ lockTimeout: 200, retryOptions: PATIENT, fifo });
    await lock.checkLock("a");
    const late = await lock.lock("a");
    const rival = await lock.lock("a", { lockTimeout: 10_000 });
    await late.unlock();
    await late.unlock();
    await assertRejects(() => lock.checkLock("a"), LockedError);
    await rival.unlock();
    await lock.checkLock("a");
  }
});

test("fifo: a holder who dies, and one in line who does, stop nobody", async () => {
  await overIoredis(async ({ mutex }) => {
    const name = newName();
    const options = { lockPrefix: "p", fifo: true, retryOptions: PATIENT };
    const holder = mutex({ ...options, lockTimeout: 300 });
    const dying = mutex(options);
    await holder.lock(name);
    const never = assertRejects(() => dying.lock(name));
    await inLine(`p:lock-${name}`, 1);
    const next = mutex(options).lock(name);
    await inLine(`p:lock-${name}`, 2);
    await dying.close();
    await holder.close();
    await never;
    await (await next).unlock();
  });
});

both("fifo: one who runs out of patience stops nobody", async ({ mutex }) => {
  const lock = mutex({ fifo: true, retryOptions: PATIENT });
  const first = await lock.lock("a");
  const impatient = { retries: 1, minTimeout: 200 };
  const gaveUp = assertRejects(
    () => lock.lock("a", { retryOptions: impatient }),
    LockedError,
  );
  const next = lock.lock("a");
  await gaveUp;
  await first.unlock();
  await (await next).unlock();
});

both("fifo: a second unlock skips nobody's turn", async ({ mutex }) => {
  const lock = mutex({ fifo: true, retryOptions: PATIENT });
  const first = await lock.lock("a");
  const second = lock.lock("a");
  const third = lock.lock("a");
  await first.unlock();
  await first.unlock();
  const { unlock } = await second;
  await first.unlock();
  await assertRejects(() => lock.checkLock("a"), LockedError);
  await unlock();
  await (await third).unlock();
});

both("fifo: several resources are each locked, in any order", async (world) => {
  const lock = world.mutex({ fifo: true, retryOptions: AT_ONCE });
  const { unlock } = await lock.lock(["a", "b"]);
  await assertRejects(() => lock.lock("b"), LockedError);
  await assertRejects(() => lock.lock(["b", "a"]), LockedError);
  await (await lock.lock("a|b")).unlock();
  await unlock();
});

test("scripts and data that the server forgot are brought again", async () => {
  await overIoredis(async ({ mutex }) => {
    const name = newName();
    const lock = mutex({ lockPrefix: "p", fifo: true, retryOptions: PATIENT });
    const held = await lock.lock(name);
    await server.command("SCRIPT", "FLUSH");
    await held.extend();
    await server.command("SCRIPT", "FLUSH");
    await held.unlock();
    await server.command("SCRIPT", "FLUSH");
    const order: number[] = [];
    await lock.lock(name);
    const all: Promise<unknown>[] = [];
    for (const number of [1, 2]) {
      all.push(
        mutex({ lockPrefix: "p", fifo: true, retryOptions: PATIENT })
          .withLock(name, () => order.push(number)),
      );
      await inLine(`p:lock-${name}`, number);
    }
    await server.command("FLUSHALL");
    await Promise.all(all);
    assertEquals(order.sort(), [1, 2]);
  });
});

test("a server that fails is a LockError, and not LOCKED", async () => {
  const client = {
    port: 1,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  };
  for (
    const attempt of [
      (lock: RedisMutex) => lock.lock("a", { retryOptions: AT_ONCE }),
      (lock: RedisMutex) => lock.withLock("a", () => {}),
      (lock: RedisMutex) => lock.checkLock("a"),
    ]
  ) {
    await using lock = new RedisMutex({ client });
    const error = await assertRejects(() => attempt(lock), LockError);
    assertInstanceOf(error, LockBackendError);
    assertEquals(error.name, "LockBackendError");
  }
});

test("a server that goes away during withLock() is told to fn, and to nobody else", async () => {
  await using own = await startRedis();
  const client = { port: own.port, maxRetriesPerRequest: 0 };
  await using lock = new RedisMutex({ client, lockTimeout: 300 });
  await lock.checkLock("a");
  let isDone = false;
  await assertRejects(() =>
    lock.withLock("a", async (signal) => {
      await own.kill();
      await new Promise((go) => signal.addEventListener("abort", go));
      isDone = true;
    }), LockLostError);
  assert(isDone);
});

test("what is left on the server expires, and after an unlock nothing is", async () => {
  await using own = await startRedis();
  await using lock = new RedisMutex({
    client: own.url,
    lockPrefix: "p",
    fifo: true,
  });
  const held = await lock.lock(["a", "b"]);
  const next = lock.lock("a");
  await inLine("p:lock-a", 1, own);
  const keys = await own.command("KEYS", "*") as string[];
  assertGreater(keys.length, 2);
  for (const key of keys) {
    assertGreater(Number(await own.command("PTTL", key)), 0, key);
  }
  await held.unlock();
  await (await next).unlock();
  assertEquals(await own.command("KEYS", "*"), []);
});
