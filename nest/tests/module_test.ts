/**
 * The module in real applications: the examples of its document, with `memory()`
 * and with connections of its own, and what comes of mistakes.
 *
 * Decorators are called as functions: sources run as they are.
 */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertNotStrictEquals,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { type DynamicModule, Injectable, Module } from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import { Test } from "@nestjs/testing";
import { Redis } from "ioredis";

import { inspectLock, type LockTarget } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import {
  DistributedLock,
  type LockedFunction,
  type LockReturnValue,
  RedisMutex,
  redisMutexLockAdapter,
  type RedisMutexLockOptions,
} from "@dreamer/utils/lock/redis-mutex";
import {
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import {
  after,
  before,
  test as watchedTest,
  timersEnd,
} from "../../tests/support/test.ts";
import { until } from "../../tests/support/until.ts";
import { DistributedLockModule, getLockToken, InjectLock } from "../mod.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(async () => {
  await server.stop();
  await timersEnd();
});

/** What is left of timers is looked at after the last test. */
function test(name: string, fn: () => unknown): void {
  watchedTest(name, fn, { allowTimers: "an attempt is looked after for 5 ms" });
}

/** The config of the document's examples, but for where the server is. */
const configOf = (
  client: RedisMutexLockOptions["client"],
  lockPrefix = "redis",
): RedisMutexLockOptions => ({
  lockPrefix,
  client,
  retryOptions: {},
  lockTimeout: 10_000,
  fifo: true,
});

/** Runs `fn` once on `memory()`, and once on connections that are opened. */
function both(
  sentence: string,
  fn: (
    client: () => RedisMutexLockOptions["client"],
    on: LockTarget,
  ) => unknown,
): void {
  test(`memory: ${sentence}`, async () => {
    const here = memory();
    await fn(() => here, here);
  });
  test(`ioredis: ${sentence}`, async () => {
    const on = new Redis(server.url);
    try {
      await fn(() => ({ host: server.host, port: server.port, Redis }), on);
      await until(
        "nothing is open but ours",
        async () => await connections() === 1,
      );
    } finally {
      on.disconnect();
    }
  });
}

/** How many clients are connected; the one that asks does not count. */
async function connections(): Promise<number> {
  const list = String(await server.command("CLIENT", "LIST"));
  return list.split("\n").filter((line) =>
    line !== "" && !line.includes("cmd=client")
  ).length;
}

class MyService {
  readonly #redisLock: DistributedLock;
  constructor(redisLock: DistributedLock) {
    this.#redisLock = redisLock;
  }

  async myMethod(on: LockTarget, key: string) {
    return await this.#redisLock.withLock("my-resource", async () => {
      // Perform critical operations
      await new Promise((resolve) => setTimeout(resolve, 20));
      return (await inspectLock(on, key)).held;
    });
  }
}
Injectable()(MyService);
InjectLock("redis")(MyService, undefined, 0);

/** An application of these modules; `fn` looks at it before it is closed. */
async function inApp(
  imports: DynamicModule[],
  fn: (get: (token: unknown) => DistributedLock & MyService) => unknown,
  providers: (new (lock: DistributedLock) => MyService)[] = [],
): Promise<void> {
  class AppModule {}
  Module({ imports, providers })(AppModule);
  const app = await NestFactory.createApplicationContext(AppModule, {
    logger: false,
    abortOnError: false,
  });
  try {
    await fn((token) => app.get(token as string));
  } finally {
    await app.close();
  }
}

both("example: register, and inject into a service", async (client, on) => {
  const imports = [
    DistributedLockModule.register([
      {
        config: configOf(client()),
        adapter: redisMutexLockAdapter,
        name: "redis",
      },
    ]),
  ];
  await inApp(imports, async (get) => {
    const key = "redis:lock-my-resource";
    assert(await get(MyService).myMethod(on, key));
    assertEquals((await inspectLock(on, key)).held, false);
    assertInstanceOf(get(getLockToken("redis")), RedisMutex);
  }, [MyService]);
});

both("example: inherit", async (client, on) => {
  const imports = [
    DistributedLockModule.register([
      {
        config: configOf(client()),
        adapter: redisMutexLockAdapter,
        name: "redis",
      },
    ]),
    DistributedLockModule.inherit([
      {
        config: { lockPrefix: "special", lockTimeout: 2_000 },
        name: "redis2",
        inheritFrom: "redis",
      },
    ]),
  ];
  await inApp(imports, async (get) => {
    const lock = get(getLockToken("redis2"));
    assertNotStrictEquals(lock, get(getLockToken("redis")));
    const { unlock } = await lock.lock("a");
    const { held, remainingMs = 0 } = await inspectLock(on, "special:lock-a");
    assert(held && remainingMs <= 2_000, `${remainingMs} ms`);
    await unlock();
  });
});

both("example: register asynchronously", async (client, on) => {
  const imports = [
    DistributedLockModule.registerAsync([
      {
        name: "redis",
        // deno-lint-ignore require-await
        useFactory: async () => {
          return { config: configOf(client()), adapter: redisMutexLockAdapter };
        },
      },
    ]),
  ];
  await inApp(imports, async (get) => {
    assert(await get(MyService).myMethod(on, "redis:lock-my-resource"));
  }, [MyService]);
});

both("example: register asynchronously, two of them", async (client, on) => {
  const imports = [
    DistributedLockModule.registerAsync([
      {
        name: "redis",
        // deno-lint-ignore require-await
        useFactory: async () => {
          return { config: configOf(client()), adapter: redisMutexLockAdapter };
        },
      },
      {
        name: "redis2",
        // deno-lint-ignore require-await
        useFactory: async () => {
          return {
            config: { ...configOf(client(), "redis2"), fifo: false },
            adapter: redisMutexLockAdapter,
          };
        },
      },
    ]),
  ];
  await inApp(imports, async (get) => {
    const first = await get(getLockToken("redis")).lock("a");
    const second = await get(getLockToken("redis2")).lock("a");
    assert((await inspectLock(on, "redis:lock-a")).held);
    assert((await inspectLock(on, "redis2:lock-a")).held);
    await first.unlock();
    await second.unlock();
  }, [MyService]);
});

test("a factory gets what it injects, from the modules that it imports", async () => {
  class Settings {
    readonly lockPrefix = "from-settings";
  }
  class SettingsModule {}
  Module({ providers: [Settings], exports: [Settings] })(SettingsModule);
  const here = memory();
  const imports = [
    DistributedLockModule.registerAsync({
      imports: [SettingsModule],
      inject: [Settings, { token: "nobody has this", optional: true }],
      useFactory: ({ lockPrefix }: Settings, other?: unknown) => ({
        config: { client: here, lockPrefix: `${lockPrefix}-${other}` },
        adapter: redisMutexLockAdapter,
      }),
    }),
  ];
  await inApp(imports, async (get) => {
    await get(DistributedLock).lock("a");
    const key = "from-settings-undefined:lock-a";
    assert((await inspectLock(here, key)).held);
  });
});

test("the nameless lock is root, and injected by class too, in every module", async () => {
  const here = memory();
  class Feature {
    readonly lock: DistributedLock;
    constructor(lock: DistributedLock) {
      this.lock = lock;
    }
  }
  Injectable()(Feature);
  InjectLock()(Feature, undefined, 0);
  class FeatureModule {}
  Module({ providers: [Feature], exports: [Feature] })(FeatureModule);
  let made = 0;
  const imports = [
    { module: FeatureModule },
    DistributedLockModule.register({
      config: { client: here },
      adapter: (config) => (made++, redisMutexLockAdapter(config)),
    }),
    DistributedLockModule.inherit({ name: "other", config: { fifo: true } }),
  ];
  const app = await Test.createTestingModule({ imports }).compile();
  const root = app.get(DistributedLock as never);
  assertStrictEquals(app.get(getLockToken()), root);
  assertStrictEquals(app.get(getLockToken("root")), root);
  assertStrictEquals((app.get(Feature) as Feature).lock, root);
  assertEquals(made, 2, "once for each lock");
  await app.close();
});

test("a lock inherits from one that is registered asynchronously, and from an heir", async () => {
  const seen: unknown[] = [];
  const adapter = (config: { a: number; b: number }) => {
    seen.push(config);
    return redisMutexLockAdapter({ client: memory() });
  };
  type Config = { a: number; b: number };
  const imports = [
    DistributedLockModule.inherit<Config>([
      { name: "c", inheritFrom: "b", config: { b: 3 } },
      { name: "b", inheritFrom: "a", config: { b: 2 } },
    ]),
    DistributedLockModule.registerAsync<Config>({
      name: "a",
      useFactory: async () => {
        await new Promise((go) => setTimeout(go, 5));
        return { config: { a: 1, b: 1 }, adapter };
      },
    }),
  ];
  await inApp(imports, () => {
    assertEquals(seen.map((config) => (config as Config).b).sort(), [1, 2, 3]);
    assert(seen.every((config) => (config as Config).a === 1));
  });
});

test("as the application closes, connections of its locks are closed, and no others", async () => {
  const own = new Redis(server.url);
  await own.ping();
  const open = await connections();
  const imports = [
    DistributedLockModule.register([
      {
        name: "own",
        config: { client: server.url },
        adapter: redisMutexLockAdapter,
      },
      {
        name: "given",
        config: { client: own },
        adapter: redisMutexLockAdapter,
      },
    ]),
    DistributedLockModule.inherit<RedisMutexLockOptions>({
      name: "heir",
      inheritFrom: "own",
    }),
  ];
  await inApp(imports, async (get) => {
    for (const name of ["own", "given", "heir"]) {
      await (await get(getLockToken(name)).lock(name)).unlock();
    }
    assertEquals(await connections(), open + 2);
  });
  await until("both are closed", async () => await connections() === open);
  assertEquals(await own.ping(), "PONG");
  own.disconnect();
});

test("a lock of one's own kind need not be one that closes", async () => {
  class Fake extends DistributedLock {
    lock(): Promise<LockReturnValue> {
      return Promise.reject(new Error("no"));
    }
    async withLock<R>(_: string | string[], fn: LockedFunction<R>): Promise<R> {
      return await fn(new AbortController().signal);
    }
    checkLock(): Promise<void> {
      return Promise.resolve();
    }
  }
  const imports = [
    DistributedLockModule.register({ config: {}, adapter: () => new Fake() }),
    { module: DistributedLockModule },
  ];
  await inApp(imports, async (get) => {
    assertEquals(await get(DistributedLock).withLock("a", () => 1), 1);
  });
});

/** The message with which the application does not start. */
async function whyNot(
  imports: DynamicModule[],
  providers: (new (lock: DistributedLock) => MyService)[] = [],
): Promise<string> {
  const error = await assertRejects(() => inApp(imports, () => {}, providers));
  return (error as Error).message;
}

const GOOD = {
  config: { client: memory() },
  adapter: redisMutexLockAdapter,
};

test("a lock that nobody registered is an error at start that names it", async () => {
  const imports = [DistributedLockModule.register({ ...GOOD, name: "other" })];
  const message = await whyNot(imports, [MyService]);
  assertStringIncludes(message, "MyService");
  assertStringIncludes(message, getLockToken("redis"));
});

test("an heir of nobody is an error at start that names both", async () => {
  const { inherit, register } = DistributedLockModule;
  assertEquals(
    await whyNot([
      register({ ...GOOD, name: "redis" }),
      inherit({ name: "redis2", inheritFrom: "redis1" }),
    ]),
    'Cannot provide the lock "redis2" as it inherits from "redis1", and no ' +
      "lock of that name is registered",
  );
  assertStringIncludes(
    await whyNot([inherit({ name: "redis2" })]),
    '"redis2" as it inherits from "root", and no lock of that name is ' +
      "registered: register one without a name, or say another by inheritFrom",
  );
});

test("what a factory throws is the error at start, with heirs and without", async () => {
  const failing = DistributedLockModule.registerAsync({
    name: "redis",
    useFactory: () => Promise.reject(new Error("no such secret")),
  });
  assertEquals(await whyNot([failing]), "no such secret");
  const heir = DistributedLockModule.inherit({
    name: "heir",
    inheritFrom: "redis",
  });
  assertEquals(await whyNot([failing, heir]), "no such secret");
  assertEquals(await whyNot([heir, failing]), "no such secret");
});

test("a registration that makes no sense is refused, and named", async () => {
  const { register, registerAsync, inherit } = DistributedLockModule;
  const bad = (value: unknown) => value as typeof GOOD;
  assertThrows(
    () => register(bad({ name: "redis", config: {} })),
    TypeError,
    'Cannot provide the lock "redis" as adapter must be a function',
  );
  for (const nothing of [undefined, null, "redis"]) {
    const text = "Cannot provide a lock as its registration must be an object";
    for (const given of [nothing, [nothing, GOOD]]) {
      assertThrows(() => register(bad(given)), TypeError, text);
      const asynchronous = () => registerAsync(bad(given) as never);
      assertThrows(asynchronous, TypeError, text);
      assertThrows(() => inherit(bad(given) as never), TypeError, text);
    }
  }
  assertThrows(() => register(bad({ adapter: () => {} })), TypeError, "config");
  assertThrows(() => register([GOOD, GOOD]), TypeError, '"root" as there must');
  assertThrows(() => register(bad({ ...GOOD, name: 1 })), TypeError, "name");
  assertThrows(
    () => registerAsync({ useFactory: bad(undefined) as never }),
    TypeError,
    "useFactory",
  );
  assertThrows(() => inherit({ name: "root" }), TypeError, "than itself");
  assertStringIncludes(
    await whyNot([registerAsync({ useFactory: () => bad({ config: {} }) })]),
    'Cannot provide the lock "root" as adapter must be a function',
  );
});
