/** How backends and older APIs are set up: what is wrong is told, by its name. */
import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  fencedSet,
  LockBackendError,
  redis,
  redlock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { Redlock } from "@dreamer/utils/lock/redlock";
import { RedisMutex } from "@dreamer/utils/lock/redis-mutex";
import { Debounce, Lock } from "@dreamer/utils/lock/upstash";
import { test } from "../support/test.ts";

/** Passes for whatever is wanted. */
// deno-lint-ignore no-explicit-any
const wrong = (value: unknown): any => value;

const here = memory();
const client = () => Promise.resolve(null);
const three = () => [memory(), memory(), memory()];
class Redis {}

const cases: [what: string, call: () => unknown, message: RegExp][] = [
  [
    "memory() with an observer that is none",
    () => memory(wrong({ onEvent: 5 })),
    /onEvent must be a function: current value is 5$/,
  ],
  [
    "memory() with a misspelt option",
    () => memory(wrong({ onevent: () => {} })),
    /options must be among clock, onEvent: current value is "onevent"$/,
  ],
  [
    "memory(null)",
    () => memory(wrong(null)),
    /options must be an object: current value is null$/,
  ],
  [
    "redis() with a misspelt option",
    () => redis(client, wrong({ observer: () => {} })),
    /options must be among onEvent: current value is "observer"$/,
  ],
  [
    "redlock() with a misspelt option",
    () => redlock(three(), wrong({ serverTimeout: 5 })),
    /options must be among serverTimeoutMs, onEvent: current value/,
  ],
  [
    "new Lock()",
    () => new Lock(wrong(undefined)),
    /options must be an object: current value is undefined$/,
  ],
  [
    "new Lock() without a client",
    () => new Lock(wrong({ id: "report" })),
    /`redis` must be a client .* current value is undefined$/,
  ],
  [
    "new Lock() without an id",
    () => new Lock(wrong({ redis: here })),
    /id must be a string: current value is undefined$/,
  ],
  [
    "new Debounce(null)",
    () => new Debounce(wrong(null)),
    /options must be an object: current value is null$/,
  ],
  [
    "new Redlock() with options that are none",
    () => new Redlock([here], wrong(null)),
    /^Invalid options: expected object, got object \(null\)$/,
  ],
  [
    "new RedisMutex() with an address, which may have a password in it",
    () => new RedisMutex(wrong("redis://:secret@localhost")),
    /options must be an object: current value is a string$/,
  ],
];

for (const [what, call, message] of cases) {
  test(`${what} is refused in a sentence`, () => {
    assertMatch(assertThrows(call, TypeError).message, message);
  });
}

const rejected: [what: string, call: () => unknown, message: RegExp][] = [
  [
    "a class in place of a client",
    () => acquireLock(wrong(Redis), "key"),
    /: current value is a class$/,
  ],
  [
    "several clients",
    () => acquireLock(wrong(three()), "key"),
    /, of several, redlock\(\): current value is an array$/,
  ],
  [
    "a fencing token of 0",
    () => fencedSet(here, "key", "value", 0),
    /fencingToken must be a positive safe integer: current value is 0$/,
  ],
  [
    "a ttl in place of the options",
    () => fencedSet(here, "key", "value", 1, wrong(60)),
    /options must be an object: current value is a number$/,
  ],
];

for (const [what, call, message] of rejected) {
  test(`${what} is told from what was wanted`, async () => {
    const error = await assertRejects(async () => await call(), Error);
    assertMatch(error.message, message);
  });
}

test("tries without end or pauses are patience without end", async () => {
  const retryOptions = { retries: Infinity, minTimeout: 0, maxTimeout: 0 };
  const mutex = new RedisMutex({ client: memory(), retryOptions });
  const { unlock } = await mutex.lock("report");
  await unlock();
});

test("an owner's value is in no message", async () => {
  const lock = new Lock({ id: "report", redis: redlock(three()) });
  for (const uuid of ["a secret", wrong({ toString: () => "a secret" })]) {
    const error = await assertRejects(() => lock.acquire({ uuid }), Error);
    assertEquals(error.message.includes("secret"), false);
  }
});

test("a first no of servers that aren't ready is waited over, by the older API, too", async () => {
  const members = three().map((member, i) => {
    let isReady = i === 0;
    return new Proxy(member, {
      get(target, name) {
        const value = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        return (...args: unknown[]) => {
          if (isReady || name !== "tryAcquire") {
            return value.apply(target, args);
          }
          isReady = true;
          const text = "Cannot acquire: the server answered LOADING";
          return Promise.reject(
            new LockBackendError("report", text, undefined, "LOADING"),
          );
        };
      },
    });
  });
  const lock = await new Redlock(members).acquire("report", 5_000);
  assertEquals(await lock?.release(), true);
});
