/**
 * Bad news, as a table: what was done, and which error says so. Through every
 * client, for each of them fails in words of its own, and ours must be the same.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertNotMatch,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { Buffer } from "node:buffer";

import type { Redis } from "ioredis";

import {
  acquireLock,
  DistributedLock,
  forceRelease,
  inspectLock,
  LockBackendError,
  lockKey,
  type LockOptions,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { clients, type OpenClient } from "../support/clients.ts";
import { startFakeRedis } from "../support/fake_redis.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { Onlooker } from "../support/resp.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";
import { worksAgain } from "../support/works_again.ts";

let server: RedisServer;
/** Every client, and the memory, that ask for the same thing in one test. */
let everyone: { name: string; on: LockTarget }[];
const open: OpenClient[] = [];

before(async () => {
  server = await startRedis();
  everyone = [{ name: "memory", on: memory() }];
  for (const { name, open: opens } of clients) {
    const it = await opens(server.url);
    open.push(it);
    everyone.push({ name, on: it.client });
  }
});

after(async () => {
  for (const it of open) await it.close();
  await server.stop();
});

/** A value of a type that the compiler would not let pass. */
const wrong = (value: unknown) => value as never;

const neverCalled = () => {
  throw new Error("fn was called");
};

let serial = 0;
const newKey = () => `errors:${++serial}`;

/** What `fn` throws, at once or later. */
async function caught(fn: () => unknown): Promise<Error> {
  let result: unknown;
  try {
    result = await fn();
  } catch (error) {
    assertInstanceOf(error, Error);
    return error;
  }
  throw new Error(`No error, but ${result}`);
}

/** Fails where a message could not be shown to everybody. */
function assertDiscreet(error: Error, ...secrets: string[]): void {
  for (const text of [error.message, String(error), JSON.stringify(error)]) {
    assertNotMatch(text, /rediss?:|s3cret|[0-9a-f]{32}/);
    for (const secret of secrets) assertFalse(text.includes(secret), text);
  }
}

/** Fails unless `fn` ends in exactly this error. */
async function assertRefused(
  fn: () => unknown,
  kind: ErrorConstructor,
  message: string,
): Promise<void> {
  const error = await caught(fn);
  assertEquals([error.constructor, error.message], [kind, message]);
}

/** Fails where the error is not that of a server which could not be asked. */
function assertBackendError(
  error: Error,
  key: string,
  reply: string | undefined,
  ...secrets: string[]
): asserts error is LockBackendError {
  assertInstanceOf(error, LockBackendError, String(error));
  assertEquals([error.code, error.key, error.name, error.reply], [
    "LOCK_BACKEND",
    key,
    "LockBackendError",
    reply,
  ]);
  assertInstanceOf(error.cause, Error);
  assertDiscreet(error, ...secrets);
}

/** Runs `fn`, and fails where a command or a key came of it. */
async function unnoticed(fn: () => Promise<void>): Promise<void> {
  await server.command("CONFIG", "RESETSTAT");
  const keys = await server.command("DBSIZE");
  await fn();
  assertEquals(await server.command("DBSIZE"), keys);
  const stats = String(await server.command("INFO", "commandstats"));
  const sent = [...stats.matchAll(/^cmdstat_([^:]+)/gm)].map((hit) => hit[1]);
  const own = ["config|resetstat", "dbsize", "info"];
  assertEquals(sent.filter((name) => !own.includes(name)), []);
}

// ── Bad arguments ──────────────────────────────────────────────────────────

const LONG_LABEL = "x".repeat(201);

const NAMES = "options must be among ttl, waitMs, signal, throwOnFail, " +
  "errorMessage, autoExtend, maxHoldMs, localTurns, replicas, fencing, label";

const badOptions: [
  options: unknown,
  kind: ErrorConstructor,
  rule: string,
  value: string,
][] = [
  [{ ttl: NaN }, RangeError, "ttl must be > 0", "NaN"],
  [{ ttl: 0 }, RangeError, "ttl must be > 0", "0"],
  [{ ttl: -1 }, RangeError, "ttl must be > 0", "-1"],
  [{ ttl: -Infinity }, RangeError, "ttl must be > 0", "-Infinity"],
  [
    { ttl: Infinity },
    RangeError,
    "ttl must be at most 9007199254740",
    "Infinity",
  ],
  [{ ttl: 1e300 }, RangeError, "ttl must be at most 9007199254740", "1e+300"],
  [
    { ttl: 9007199254741 },
    RangeError,
    "ttl must be at most 9007199254740",
    "9007199254741",
  ],
  [{ ttl: 0.0004 }, RangeError, "ttl must be at least 0.001", "0.0004"],
  [
    { ttl: Number.MIN_VALUE },
    RangeError,
    "ttl must be at least 0.001",
    "5e-324",
  ],
  [{ ttl: "10" }, TypeError, "ttl must be a number of seconds", '"10"'],
  [{ ttl: null }, TypeError, "ttl must be a number of seconds", "null"],
  [{ ttl: 10n }, TypeError, "ttl must be a number of seconds", "10n"],
  [
    { ttl: new Date(0) },
    TypeError,
    "ttl must be a number of seconds",
    "an object (Date)",
  ],
  [{ tll: 10 }, TypeError, NAMES, '"tll"'],
  [{ TTL: 10 }, TypeError, NAMES, '"TTL"'],
  [null, TypeError, "options must be an object", "null"],
  ["ttl=10", TypeError, "options must be an object", "a string"],
  [10, TypeError, "options must be an object", "a number"],
  [
    Promise.resolve({ ttl: 10 }),
    TypeError,
    "options must be an object",
    "an object (Promise)",
  ],
  [{ throwOnFail: 0 }, TypeError, "throwOnFail must be a boolean", "0"],
  [
    { throwOnFail: "false" },
    TypeError,
    "throwOnFail must be a boolean",
    '"false"',
  ],
  [{ throwOnFail: null }, TypeError, "throwOnFail must be a boolean", "null"],
  [{ errorMessage: 7 }, TypeError, "errorMessage must be a string", "7"],
  [
    { errorMessage: new Error("taken") },
    TypeError,
    "errorMessage must be a string",
    "an object (Error)",
  ],
  [{ label: 7 }, TypeError, "label must be a string", "7"],
  [
    { label: LONG_LABEL },
    RangeError,
    "label must be of at most 200 characters",
    `"${"x".repeat(80)}…"`,
  ],
  [
    { signal: new AbortController() },
    TypeError,
    "signal must be an AbortSignal",
    "an object (AbortController)",
  ],
  [
    { signal: { aborted: false } },
    TypeError,
    "signal must be an AbortSignal",
    "an object",
  ],
  [{ signal: 5000 }, TypeError, "signal must be an AbortSignal", "5000"],
  [{ autoExtend: 1 }, TypeError, "autoExtend must be a boolean", "1"],
  [{ fencing: "yes" }, TypeError, "fencing must be a boolean", '"yes"'],
  [{ maxHoldMs: "1" }, TypeError, "maxHoldMs must be a number", '"1"'],
  [{ maxHoldMs: 0 }, RangeError, "maxHoldMs must be > 0", "0"],
  [{ maxHoldMs: NaN }, RangeError, "maxHoldMs must be > 0", "NaN"],
  [{ waitMs: "1000" }, TypeError, "waitMs must be a number", '"1000"'],
  [{ waitMs: -1 }, RangeError, "waitMs must be >= 0", "-1"],
  [{ waitMs: NaN }, RangeError, "waitMs must be >= 0", "NaN"],
  [{ localTurns: true }, TypeError, "localTurns must be a number", "true"],
  [
    { localTurns: -1 },
    RangeError,
    "localTurns must be a whole number >= 0",
    "-1",
  ],
  [
    { localTurns: 1.5 },
    RangeError,
    "localTurns must be a whole number >= 0",
    "1.5",
  ],
  [
    { localTurns: Infinity },
    RangeError,
    "localTurns must be a whole number >= 0",
    "Infinity",
  ],
  [[], TypeError, "options must be an object", "an array"],
];

/** Options as the name of a test shows them. */
function shown(options: unknown): string {
  if (
    typeof options !== "object" || options === null || Array.isArray(options)
  ) {
    return JSON.stringify(options);
  }
  if (options instanceof Promise) return "a Promise";
  const [[name, value]] = Object.entries(options);
  const text = typeof value === "string"
    ? `"${value.length > 20 ? `${value.slice(0, 3)}…` : value}"`
    : typeof value === "object" && value !== null
    ? value.constructor.name
    : `${value}${typeof value === "bigint" ? "n" : ""}`;
  return `{ ${name}: ${text} }`;
}

for (const [options, kind, rule, value] of badOptions) {
  test(`the options ${shown(options)} are refused: ${rule}`, () =>
    unnoticed(async () => {
      for (const { on } of everyone) {
        const key = newKey();
        const message =
          `Cannot acquire "${key}" as ${rule}: current value is ${value}`;
        const bad = wrong(options);
        await assertRefused(() => acquireLock(on, key, bad), kind, message);
        await assertRefused(
          () => withLock(on, key, neverCalled, bad),
          kind,
          message,
        );
      }
    }));
}

const goodOptions: [
  what: string,
  options: LockOptions & { throwOnFail?: true | undefined },
][] = [
  ["the longest ttl that is allowed", { ttl: 9007199254740 }],
  ["a ttl that no float can hold exactly", { ttl: 1.1 }],
  ["a label of 200 characters", { label: "x".repeat(200) }],
  ["a label of many bytes per character, and of control characters", {
    label: "\u{1F512}\0\r\n:".repeat(30),
  }],
  ["all that is undefined", {
    ttl: undefined,
    signal: undefined,
    throwOnFail: undefined,
    errorMessage: undefined,
    label: undefined,
    waitMs: undefined,
    autoExtend: undefined,
    maxHoldMs: undefined,
    localTurns: undefined,
    fencing: undefined,
  }],
  ["patience that is not needed", { waitMs: Infinity, localTurns: 0 }],
];

for (const [what, options] of goodOptions) {
  test(`options that are taken: ${what}`, async () => {
    for (const { on, name } of everyone) {
      const key = newKey();
      const ttl = options.ttl ?? 30;
      const lock = await acquireLock(on, key, options);
      if (name !== "memory") {
        assertEquals(await server.command("GET", key), lock.owner);
        const left = Number(await server.command("PTTL", key));
        assert(left > 0 && left <= ttl * 1000, `${left}`);
      }
      assertEquals(await lock.release(), true);
      assertEquals(await server.command("EXISTS", key), 0);
    }
  });
}

const badKeys: [
  key: unknown,
  kind: ErrorConstructor,
  rule: string,
  value: string,
][] = [
  ["", RangeError, "key must not be empty", '""'],
  [undefined, TypeError, "key must be a string", "undefined"],
  [null, TypeError, "key must be a string", "null"],
  [7, TypeError, "key must be a string", "7"],
  [Symbol("key"), TypeError, "key must be a string", "Symbol(key)"],
  [
    Buffer.from("key"),
    TypeError,
    "key must be a string",
    "an object (Buffer)",
  ],
  [new String("key"), TypeError, "key must be a string", "an object (String)"],
];

for (const [key, kind, rule, value] of badKeys) {
  test(`a key that is ${value} is refused: ${rule}`, () =>
    unnoticed(async () => {
      const ending = `as ${rule}: current value is ${value}`;
      for (const { on } of everyone) {
        await assertRefused(
          () => acquireLock(on, wrong(key)),
          kind,
          `Cannot acquire a lock ${ending}`,
        );
        await assertRefused(
          () => withLock(on, wrong(key), neverCalled),
          kind,
          `Cannot acquire a lock ${ending}`,
        );
        await assertRefused(
          () => new DistributedLock(on, wrong(key), "owner", 10),
          kind,
          `Cannot make a lock ${ending}`,
        );
      }
    }));
}

/** What somebody might pass for a client, and what it is called then. */
const noClients: [what: string, on: () => unknown, value: string][] = [
  ["undefined", () => undefined, "undefined"],
  ["null", () => null, "null"],
  [
    "a URL",
    () => "redis://user:s3cret@cache.example:6379/0",
    "a string",
  ],
  ["a URL object", () => new URL("redis://:s3cret@cache"), "an object (URL)"],
  [
    "the options of a client",
    () => ({ url: "redis://:s3cret@cache" }),
    "an object",
  ],
  ["an empty object", () => ({}), "an object"],
  ["an object without a prototype", () => Object.create(null), "an object"],
  ["a list of clients", () => [open[0].client], "an array"],
  [
    "the promise of a client",
    () => Promise.resolve(open[0].client),
    "an object (Promise)",
  ],
  ["the class of a client", () => class Redis {}, "a class"],
  ["a Map, which has set and get", () => new Map(), "an object (Map)"],
  [
    "an Upstash client",
    () => new FakeClient("createScript"),
    "an object (FakeClient)",
  ],
  [
    "a GLIDE client",
    () => new FakeClient("customCommand"),
    "an object (FakeClient)",
  ],
  [
    "a pipeline",
    () => (open[0].client as Redis).pipeline(),
    "an object (Pipeline)",
  ],
  [
    "a transaction",
    () => (open[0].client as Redis).multi(),
    "an object (Pipeline)",
  ],
  [
    "a node-redis transaction",
    () => (open[2].client as unknown as { multi(): unknown }).multi(),
    "an object (Class)",
  ],
  ["a client of Bun", () => new FakeClient("send"), "an object (FakeClient)"],
  [
    "a node-redis client that answers by callbacks",
    () =>
      Object.assign(new FakeClient("evalSha"), {
        isOpen: true,
        options: { legacyMode: true },
      }),
    "an object (FakeClient)",
  ],
];

/** A client that has what others have, but is called otherwise. */
class FakeClient {
  [own: string]: unknown;

  constructor(own: string) {
    for (const name of [own, "set", "get", "del", "eval", "evalsha"]) {
      this[name] = () => {
        throw new Error("It was called");
      };
    }
  }
}

for (const [what, on, value] of noClients) {
  test(`${what} is nothing that a lock can live on`, () =>
    unnoticed(async () => {
      const target = wrong(on());
      const doings = [
        () => acquireLock(target, "errors:k"),
        () => withLock(target, "errors:k", neverCalled),
        () => new DistributedLock(target, "errors:k", "owner", 10),
      ];
      for (const doing of doings) {
        const error = await caught(doing);
        assertEquals(error.constructor, TypeError);
        assert(error.message.startsWith("Cannot find the server as `on` must"));
        assert(error.message.endsWith(`: current value is ${value}`));
        assertDiscreet(error, "cache");
      }
    }));
}

for (
  const [fn, value] of [
    [undefined, "undefined"],
    ["fn", '"fn"'],
    [Promise.resolve(), "an object (Promise)"],
  ]
) {
  test(`withLock() refuses ${value} for a function`, () =>
    unnoticed(async () => {
      for (const { on } of everyone) {
        await assertRefused(
          () => withLock(on, newKey(), wrong(fn)),
          TypeError,
          "Cannot run with a lock as fn must be a function: " +
            `current value is ${value}`,
        );
      }
    }));
}

const badLocks: [
  value: unknown,
  ttl: unknown,
  kind: ErrorConstructor,
  ending: string,
][] = [
  [
    undefined,
    10,
    TypeError,
    "value must be a string: current value is undefined",
  ],
  [7, 10, TypeError, "value must be a string: current value is a number"],
  ["", 10, RangeError, 'value must not be empty: current value is ""'],
  [
    "owner",
    undefined,
    TypeError,
    "ttl must be a number of seconds: current value is undefined",
  ],
  ["owner", 0, RangeError, "ttl must be > 0: current value is 0"],
  [
    "owner",
    Infinity,
    RangeError,
    "ttl must be at most 9007199254740: current value is Infinity",
  ],
];

for (const [value, ttl, kind, ending] of badLocks) {
  test(`new DistributedLock() throws: ${ending}`, () =>
    unnoticed(async () => {
      for (const { on } of everyone) {
        await assertRefused(
          () => new DistributedLock(on, newKey(), wrong(value), wrong(ttl)),
          kind,
          `Cannot make a lock as ${ending}`,
        );
      }
    }));
}

const badTtls = [
  ...badOptions,
  [
    { ttl: false },
    TypeError,
    "ttl must be a number of seconds",
    "false",
  ] as const,
].filter(([options]) => Object.hasOwn(Object(options), "ttl"));

for (const [options, kind, rule, value] of badTtls) {
  const { ttl } = options as { ttl: unknown };
  test(`extend() refuses a ttl of ${value}, and the lock is held on: ${rule}`, async () => {
    for (const { on } of everyone) {
      const key = newKey();
      const lock = await acquireLock(on, key, { ttl: 10 });
      await unnoticed(() =>
        assertRefused(
          () => lock.extend(wrong(ttl)),
          kind,
          `Cannot extend "${key}" as ${rule}: current value is ${value}`,
        )
      );
      assert(lock.isAcquired());
      assertEquals(await lock.release(), true);
    }
  });
}

test("lockKey() joins what it is given, and nothing else", () => {
  const good: [parts: [string, ...(string | number)[]], key: string][] = [
    [["order", "user123", 456], "lock:order:user123:456"],
    // As the original had it: a prefix alone keeps its colon.
    [["order"], "lock:order:"],
    [["order", 0, -1.5, ""], "lock:order:0:-1.5:"],
    [["a:b", "c:d"], "lock:a:b:c:d"],
    [["Zürich", "\u{1F512}"], "lock:Zürich:\u{1F512}"],
  ];
  for (const [parts, key] of good) assertEquals(lockKey(...parts), key);
});

const badParts: [
  parts: unknown[],
  kind: typeof TypeError | typeof RangeError,
  ending: string,
][] = [
  [[], TypeError, "prefix must be a string: current value is undefined"],
  [[7], TypeError, "prefix must be a string: current value is 7"],
  [[null, "a"], TypeError, "prefix must be a string: current value is null"],
  [["", "a"], RangeError, 'prefix must not be empty: current value is ""'],
  [
    ["p", undefined],
    TypeError,
    "part 1 must be a string or a finite number: current value is undefined",
  ],
  [
    ["p", "a", null],
    TypeError,
    "part 2 must be a string or a finite number: current value is null",
  ],
  [
    ["p", NaN],
    TypeError,
    "part 1 must be a string or a finite number: current value is NaN",
  ],
  [
    ["p", -Infinity],
    TypeError,
    "part 1 must be a string or a finite number: current value is -Infinity",
  ],
  [
    ["p", true],
    TypeError,
    "part 1 must be a string or a finite number: current value is true",
  ],
  [
    ["p", {}],
    TypeError,
    "part 1 must be a string or a finite number: current value is an object",
  ],
  [
    ["p", ["a"]],
    TypeError,
    "part 1 must be a string or a finite number: current value is an array",
  ],
];

for (const [parts, kind, ending] of badParts) {
  test(`lockKey() throws: ${ending}`, () => {
    const build = lockKey as (...parts: unknown[]) => string;
    const error = assertThrows(() => build(...parts), kind);
    assertEquals(error.message, `Cannot build a key as ${ending}`);
  });
}

// ── Aborted ────────────────────────────────────────────────────────────────

for (const reason of [new Error("enough"), "enough", undefined, null]) {
  test(`a signal that was aborted with ${reason} ends it before anything is sent`, () =>
    unnoticed(async () => {
      const signal = AbortSignal.abort(reason);
      for (const { on } of everyone) {
        const outcomes = await Promise.allSettled([
          acquireLock(on, newKey(), { signal }),
          acquireLock(on, newKey(), { signal, throwOnFail: false }),
          withLock(on, newKey(), neverCalled, { signal }),
        ]);
        for (const outcome of outcomes) {
          assertEquals(outcome.status, "rejected");
          const given = (outcome as PromiseRejectedResult).reason;
          assertStrictEquals(given, signal.reason);
        }
      }
    }));
}

for (const { name, open } of clients) {
  test(`${name}: an abort while the answer is due ends it, and nothing stays`, async () => {
    await using proxy = await startProxy(server.port);
    await using it = await open(proxy.url);
    const key = newKey();
    const asked = (command: RegExp) =>
      proxy.requests.some((words) =>
        command.test(words[0]) && words.includes(key)
      );
    const quitter = new AbortController();
    const reason = new Error("enough");

    proxy.hold(true);
    const attempt = acquireLock(it.client, key, { signal: quitter.signal });
    quitter.abort(reason);
    assertStrictEquals(await caught(() => attempt), reason);
    assertFalse(asked(/^set$/i));

    proxy.hold(false);
    // What was under way is granted, and then given back.
    await until("it is given back", () => asked(/^eval/i));
    await until(
      "the key is gone",
      async () => await server.command("EXISTS", key) === 0,
    );
    assert(asked(/^set$/i));
    // Once this is answered that was, too: nothing is left to be cleaned up.
    await (await acquireLock(it.client, newKey())).release();
  });

  test(
    `${name}: an abort while the server is away ends it, and nothing stays`,
    async () => {
      await using away = await startRedis();
      await using it = await open(away.url);
      // So that only what was asked meanwhile is left to do when it is back.
      await (await acquireLock(it.client, "errors:before")).release();
      const quitter = new AbortController();
      const reason = new Error("enough");

      await away.kill();
      const attempt = acquireLock(it.client, "errors:k", {
        signal: quitter.signal,
      });
      quitter.abort(reason);
      assertStrictEquals(await caught(() => attempt), reason);

      await comeBack(away, it.client);
    },
  );
}

/**
 * Brings `away` back, and waits until the client works again and nothing is left
 * of the holds of which nobody could know whether they came about.
 */
async function comeBack(away: RedisServer, on: LockTarget): Promise<void> {
  await away.restart();
  const key = newKey();
  await worksAgain(
    on,
    key,
    (error) => assertBackendError(error as Error, key, undefined),
  );
  await until(
    "all is cleaned up",
    async () => await away.command("DBSIZE") === 0,
  );
  // Else what was to be released would be tried again in the next test.
  await timersEnd();
}

// ── The server says no ─────────────────────────────────────────────────────

for (
  const [type, ...fill] of [
    ["list", "RPUSH", "a", "b"],
    ["set", "SADD", "a"],
    ["hash", "HSET", "a", "b"],
    ["sorted set", "ZADD", 1, "a"],
    ["stream", "XADD", "1-1", "a", "b"],
  ] as [string, string, ...(string | number)[]][]
) {
  test(`a key that holds a ${type} is an error, and the ${type} is left alone`, async () => {
    const [command, ...values] = fill;
    for (const { name, on } of everyone) {
      if (name === "memory") continue;
      const key = newKey();
      await server.command(command, key, ...values);
      const before = await server.command("DUMP", key);
      for (const throwOnFail of [true, false]) {
        const error = await caught(() => acquireLock(on, key, { throwOnFail }));
        assertBackendError(error, key, "WRONGTYPE");
        assertEquals(
          error.message,
          `Cannot acquire "${key}": the server answered WRONGTYPE`,
        );
      }
      assertEquals(await server.command("DUMP", key), before);
      assertEquals(await server.command("DEL", key), 1);
    }
  });
}

/** How a real server is brought to say no, and to its senses again. */
const refusals: {
  what: string;
  reply: string;
  /** The reply to who holds a lock already; null where he may go on with it. */
  toHolder: string | null;
  spoil: () => Promise<unknown>;
  mend: () => Promise<unknown>;
}[] = [
  {
    what: "a replica",
    reply: "READONLY",
    toHolder: "READONLY",
    spoil: () => server.command("REPLICAOF", "127.0.0.1", 1),
    mend: () => server.command("REPLICAOF", "NO", "ONE"),
  },
  {
    what: "a replica without its master",
    reply: "READONLY",
    toHolder: "MASTERDOWN",
    spoil: async () => {
      await server.command("CONFIG", "SET", "replica-serve-stale-data", "no");
      await server.command("REPLICAOF", "127.0.0.1", 1);
    },
    mend: async () => {
      await server.command("REPLICAOF", "NO", "ONE");
      await server.command("CONFIG", "SET", "replica-serve-stale-data", "yes");
    },
  },
  {
    what: "a server out of memory",
    reply: "OOM",
    toHolder: null,
    spoil: () => server.command("CONFIG", "SET", "maxmemory", 1),
    mend: () => server.command("CONFIG", "SET", "maxmemory", 0),
  },
  {
    what: "a server that forbids SET",
    reply: "NOPERM",
    toHolder: null,
    spoil: () => server.command("ACL", "SETUSER", "default", "-set"),
    mend: () => server.command("ACL", "SETUSER", "default", "+set"),
  },
  {
    what: "a server that is busy with a script",
    reply: "BUSY",
    toHolder: "BUSY",
    async spoil() {
      await server.command("CONFIG", "SET", "lua-time-limit", 1);
      hog = new Onlooker(server.port);
      hog.ask("EVAL", "while true do end", 0).catch(() => {});
      await until(
        "it is busy",
        () => server.command("PING").then(() => false, () => true),
      );
    },
    async mend() {
      await server.command("SCRIPT", "KILL");
      hog?.close();
      await until(
        "it is idle",
        () => server.command("PING").then(() => true, () => false),
      );
    },
  },
];
let hog: Onlooker | undefined;

for (const { what, reply, toHolder, spoil, mend } of refusals) {
  test(`${what} is an error with the reply ${reply}, and never a taken lock`, async () => {
    const all = await Promise.all(
      everyone.filter(({ name }) => name !== "memory").map(async ({ on }) => {
        const key = newKey();
        const held = await acquireLock(on, `${key}:held`, { ttl: 20 });
        return { on, key, held };
      }),
    );
    await spoil();
    try {
      await Promise.all(all.map(async ({ on, key, held }) => {
        const doings: [string, () => unknown][] = [
          ["acquire", () => acquireLock(on, key)],
          ["acquire", () => acquireLock(on, key, { throwOnFail: false })],
          ["acquire", () => withLock(on, key, neverCalled)],
          [
            "acquire",
            () => new DistributedLock(on, key, "an owner", 10).acquire(),
          ],
        ];
        for (const [verb, doing] of doings) {
          const error = await caught(doing);
          assertBackendError(error, key, reply, "an owner");
          assertEquals(
            error.message,
            `Cannot ${verb} "${key}": the server answered ${reply}`,
          );
        }
        if (toHolder === null) {
          await held.extend();
          assert(held.isAcquired());
          assertEquals(await held.release(), true);
        } else {
          for (const verb of ["extend", "release"] as const) {
            assert(held.isAcquired());
            const error = await caught(() => held[verb]());
            assertBackendError(error, held.key, toHolder);
          }
          assertFalse(held.isAcquired());
        }
      }));
    } finally {
      await mend();
    }
    for (const { on, key, held } of all) {
      assertEquals(await held.release(), toHolder !== null);
      await (await acquireLock(on, key)).release();
    }
    assertEquals(await server.command("DBSIZE"), 0);
  });
}

/** Replies that a server gives too rarely to be brought to it. */
const rareReplies = [
  "LOADING Redis is loading the dataset in memory",
  "MISCONF Redis is configured to save RDB snapshots, but it's currently " +
  "unable to persist to disk.",
  "NOREPLICAS Not enough good replicas to write.",
  "CLUSTERDOWN Hash slot not served",
  "TRYAGAIN Multiple keys request during rehashing of slot",
  "MOVED 3999 127.0.0.1:6381",
  "NOAUTH Authentication required.",
  "ERR value is not an integer or out of range",
];

for (const text of rareReplies) {
  const reply = text.split(" ")[0];
  test(`${reply} in answer to SET is an error, and nothing more is sent`, async () => {
    await using fake = await startFakeRedis(() => `-${text}`);
    let asked = 0;
    for (const { name, open } of clients) {
      await using it = await open(fake.url);
      for (const throwOnFail of [true, false]) {
        const error = await caught(() =>
          acquireLock(it.client, "errors:k", { throwOnFail })
        );
        assertBackendError(error, "errors:k", reply, text);
        assertEquals(fake.requests.length, ++asked, name);
      }
    }
  });
}

for (
  const [what, answer] of [
    ["QUEUED, as in a transaction of somebody else's", "+QUEUED"],
    ["a number", ":1"],
    ["an empty list", "*0"],
  ]
) {
  test(`${what}, in answer to SET, is an error`, async () => {
    await using fake = await startFakeRedis(() => answer);
    for (const { open } of clients) {
      await using it = await open(fake.url);
      for (const throwOnFail of [true, false]) {
        const error = await caught(() =>
          acquireLock(it.client, "errors:k", { throwOnFail, ttl: 0.1 })
        );
        assertInstanceOf(error, LockBackendError);
        assertEquals(error.reply, undefined);
        assertDiscreet(error);
      }
    }
  }, { allowTimers: "it may be written yet: cleaned up after for 100 ms" });
}

for (
  const [what, answer] of [
    ["QUEUED, as in a transaction of somebody else's", "+QUEUED"],
    ["another number", ":7"],
    ["an empty text", "$0\r\n"],
    ["an empty list", "*0"],
  ]
) {
  test(`${what}, in answer to a script, is an error and no verdict`, async () => {
    const free = newKey();
    await using fake = await startFakeRedis(([command, key]) => {
      if (command.toUpperCase() !== "SET") return answer;
      return key === free ? "+OK" : "$-1";
    });
    for (const { name, open } of clients) {
      // What has four methods may be a double, which is taken at its word.
      if (name === "minimal") continue;
      await using it = await open(fake.url);
      const on = it.client;
      const held = await acquireLock(on, free, { ttl: 0.2 });
      const key = newKey();
      const doings = {
        extend: () => held.extend(),
        release: () => held.release(),
        plain: () => acquireLock(on, key, { ttl: 0.1 }),
        fence: () => acquireLock(on, key, { ttl: 0.1, fencing: true }),
        wait: () => acquireLock(on, key, { ttl: 0.1, waitMs: 5_000 }),
        several: () => acquireLock(on, [key, `${key}2`], { ttl: 0.1 }),
        force: () => forceRelease(on, key),
        inspect: () => inspectLock(on, key),
      };
      for (const [doing, does] of Object.entries(doings)) {
        const error = await caught(does);
        assertInstanceOf(error, LockBackendError, `${name}: ${doing}`);
        assertEquals(error.reply, undefined);
        assertDiscreet(error);
      }
    }
    // What was asked for may have been written: that is undone meanwhile.
    await timersEnd();
  });
}

// ── The server says nothing ────────────────────────────────────────────────

for (const { name, open, hidesEnd } of clients) {
  test(
    `${name}: a dead server is an error, and never a taken lock`,
    async () => {
      await using dead = await startRedis();
      await using it = await open(dead.url, { offline: "fail" });
      const on = it.client;
      await dead.kill();

      const doings = [
        () => acquireLock(on, "errors:k"),
        () => acquireLock(on, "errors:k", { throwOnFail: false }),
        () => withLock(on, "errors:k", neverCalled),
        () => withLock(on, "errors:k", neverCalled, { throwOnFail: false }),
        () => new DistributedLock(on, "errors:k", "an owner", 10).acquire(),
      ];
      for (const doing of doings) {
        const error = await caught(doing);
        assertBackendError(
          error,
          "errors:k",
          undefined,
          "127.0.0.1",
          "an owner",
        );
        assert(
          error.message.startsWith(
            `Cannot acquire "errors:k": no answer from the server`,
          ),
        );
      }

      await comeBack(dead, on);
    },
  );

  test(`${name}: a lock on a dead server is released once the server is back`, async () => {
    // What it wrote down it still has when it is back.
    await using dead = await startRedis({ args: ["--appendonly", "yes"] });
    await using it = await open(dead.url, { offline: "fail" });
    const lock = await acquireLock(it.client, "errors:k", { ttl: 60 });

    await dead.kill();
    const notExtended = await caught(() => lock.extend());
    assertBackendError(notExtended, "errors:k", undefined);
    assert(notExtended.message.startsWith(`Cannot extend "errors:k": no`));
    assert(lock.isAcquired(), "it is held for as long as it was anyway");
    assertFalse(lock.signal.aborted);

    for (let i = 0; i < 2; i++) {
      const notReleased = await caught(() => lock.release());
      assertBackendError(notReleased, "errors:k", undefined);
      assert(notReleased.message.startsWith(`Cannot release "errors:k": no`));
      assertFalse(lock.isAcquired(), "it counts as released all the same");
    }

    await dead.restart();
    assertEquals(await dead.command("GET", "errors:k"), lock.owner);
    await until("it is released", () => lock.release().catch(() => false));
    assertEquals(await dead.command("DBSIZE"), 0);
    assertEquals(await lock.release(), false);
    // What was to be cleaned up may be tried once more.
    await timersEnd();
  });

  test(
    `${name}: what fn returned comes out though the server died meanwhile`,
    async () => {
      await using dead = await startRedis();
      await using it = await open(dead.url, { offline: "fail" });
      const result = await withLock(it.client, "errors:k", async () => {
        await dead.kill();
        return "done";
      });
      assertEquals(result, "done");
      await comeBack(dead, it.client);
    },
  );

  test(
    `${name}: what fn returned comes out though the server says no more`,
    async () => {
      await using silent = await startRedis();
      await using it = await open(silent.url);
      const fn = () => {
        silent.freeze();
        return "done";
      };
      const result = await withLock(it.client, "errors:k", fn, { ttl: 0.5 });
      assertEquals(result, "done");
      silent.thaw();
      await until(
        "it is gone",
        async () => await silent.command("DBSIZE") === 0,
      );
      // The answer to who released it is on its way.
      await timersEnd();
    },
  );

  // Of such an object nobody can tell that what it wraps was closed.
  if (hidesEnd) continue;

  test(
    `${name}: a closed client is an error, and leaves no timer`,
    async () => {
      const it = await open(server.url);
      const lock = await acquireLock(it.client, newKey(), { ttl: 60 });
      await it.close();
      for (const throwOnFail of [true, false]) {
        const key = newKey();
        assertBackendError(
          await caught(() => acquireLock(it.client, key, { throwOnFail })),
          key,
          undefined,
        );
      }
      for (const verb of ["extend", "release"] as const) {
        assertBackendError(
          await caught(() => lock[verb]()),
          lock.key,
          undefined,
        );
      }
      await server.command("DEL", lock.key);
      assertEquals(await server.command("DBSIZE"), 0);
    },
  );
}

test("a node-redis client that was never connected is an error", async () => {
  for (const { name, open } of clients) {
    // ioredis connects by itself, as soon as it is asked for something.
    if (!name.startsWith("redis")) continue;
    await using it = await open(server.url, { connect: false });
    const key = newKey();
    const error = await caught(() => acquireLock(it.client, key));
    assertBackendError(error, key, undefined);
  }
});

for (
  const [what, password, reply] of [
    ["no password", undefined, "NOAUTH"],
    ["a wrong password", "s3cret-but-wrong", "WRONGPASS"],
  ] as const
) {
  test(`${what} is an error of the server, and is not told`, async () => {
    await using locked = await startRedis({ password: "s3cret" });
    const auth = password === undefined ? "" : `:${password}@`;
    const url = `redis://${auth}127.0.0.1:${locked.port}`;
    for (const { name, open } of clients) {
      // The pool has nobody to ask and keeps its callers waiting: 3 s at least.
      // Of GLIDE there is no client then; and whoever connects what is behind a
      // function hears of it.
      if (["redis pool", "glide", "function"].includes(name)) continue;
      await using it = await open(url, { connect: false });
      const client = it.client as { connect?(): Promise<unknown> };
      const connecting = client.connect?.().catch(() => {});
      const error = await caught(() => acquireLock(it.client, "errors:k"));
      assertInstanceOf(error, LockBackendError);
      // Some go on without, and then the server says of every command:
      assert([reply, "NOAUTH"].includes(`${error.reply}`), `${name}: ${error}`);
      assertDiscreet(error, "127.0.0.1");
      await it.close();
      await connecting;
    }
    assertEquals(await locked.command("DBSIZE"), 0);
  });
}

test("nothing of all this is left on the server", async () => {
  assertEquals(await server.command("KEYS", "*"), []);
});
