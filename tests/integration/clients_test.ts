/**
 * What is particular to one client or another, and how all of them wait for one
 * lock together.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { Redis as UpstashRedis } from "@upstash/redis";
import { Batch, ClusterBatch } from "@valkey/valkey-glide";
import { Redis as Ioredis } from "ioredis";
import { createClient } from "redis";

import {
  acquireLock,
  type CommandFunction,
  DistributedLock,
  forceRelease,
  inspectLock,
  listLocks,
  LockBackendError,
  type LockEvent,
  LockNotAcquiredError,
  type LockTarget,
  redis,
} from "@dreamer/utils/lock";
import { clients, fourMethods, sameAsTheLast } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";
import { startUpstash, type UpstashServer } from "../support/upstash_server.ts";

let server: RedisServer;
let rest: UpstashServer;
before(async () => {
  server = await startRedis();
  rest = await startUpstash(server.url);
});
after(async () => {
  await rest.stop();
  await server.stop();
});

function upstash(settings: object = {}): UpstashRedis {
  const { url, token } = rest;
  return new UpstashRedis({ url, token, enableTelemetry: false, ...settings });
}

/** Texts that JSON has another meaning for, and one that it has none for. */
const AWKWARD = ["12345", "1e5", "007", "true", "null", '"x"', '{"a":1}', ""];

for (
  const [how, settings] of [
    ["as it comes", {}],
    ["without automaticDeserialization", { automaticDeserialization: false }],
    ["without base64", { responseEncoding: false }],
    ["without auto-pipelining", { enableAutoPipelining: false }],
  ] as const
) {
  test(`upstash ${how}: an owner or a key that looks like something else is text`, async () => {
    const on = upstash(settings);
    for (const text of AWKWARD.filter((text) => text !== "")) {
      const lock = new DistributedLock(on, text, text, 10);
      assertEquals(await lock.acquire(), true);
      assertEquals(await server.command("GET", text), text);
      const again = new DistributedLock(on, text, text, 10);
      assertEquals(await again.acquire(), true, "it is not known for its own");
      assertEquals((await inspectLock(on, text)).held, true);
      await lock.extend(20);
      assertEquals(await lock.release(), true);
      assertEquals(await again.release(), false);
    }
    for (const value of AWKWARD) {
      await server.command("SET", "theirs", value);
      assertEquals((await inspectLock(on, "theirs")).held, true, value);
      assertEquals(await forceRelease(on, "theirs"), true);
    }
    const locks = await acquireLock(on, ["1", "2", "true"], { fencing: true });
    assert(Number.isSafeInteger(locks.fencingToken));
    const found: string[] = [];
    for await (const { key } of listLocks(on, "*")) found.push(key);
    assertEquals(found.sort(), ["1", "2", "true"]);
    assertEquals(await locks.release(), true);
    await server.command("FLUSHALL");
  });
}

test("upstash: pipelines of the same client, at the same time, are none of ours", async () => {
  const on = upstash();
  const [lock, ...replies] = await Promise.all([
    acquireLock(on, "beside"),
    on.set("a", 1),
    on.incr("a"),
    on.multi().set("b", "x").get("b").exec(),
  ]);
  assertEquals(replies, ["OK", 2, ["OK", "x"]]);
  assertEquals(await lock.release(), true);
  await server.command("FLUSHALL");
});

test("upstash: what the server said is told, and the owner is not", async () => {
  const on = upstash();
  await server.command("LPUSH", "a list", "x");
  const owner = "an owner";
  const error = await assertRejects(
    () => new DistributedLock(on, "a list", owner, 10).acquire(),
    LockBackendError,
  );
  assertEquals(error.reply, "WRONGTYPE");
  const { cause } = error;
  assertInstanceOf(cause, Error);
  assertEquals(cause.name, "UpstashError");
  assertFalse(`${cause.stack} ${cause.message}`.includes(owner));
  await server.command("FLUSHALL");

  const wrong = upstash({ token: "another" });
  const refused = await assertRejects(
    () => acquireLock(wrong, "k"),
    LockBackendError,
  );
  assertEquals(refused.reply, "WRONGPASS");
});

/** Redis for a function: what answers is a client with a prefix of its own. */
function prefixed(prefix: string): Ioredis {
  return new Ioredis(server.url, { keyPrefix: prefix });
}

test(
  "a key prefix is the client's affair: who has it locks under it",
  async () => {
    const one = prefixed("app:");
    try {
      const send: CommandFunction = ([name, ...args]) =>
        one.call(name, ...args);
      const lock = await acquireLock(one, "k", { fencing: true });
      assertEquals(await server.command("GET", "app:k"), lock.owner);
      // The same prefix by another way, and no prefix.
      await assertRejects(() => acquireLock(send, "k"), LockNotAcquiredError);
      const bare = await acquireLock(upstash(), "k");
      const next = acquireLock(send, "k", { waitMs: 10_000, fencing: true });
      await until(
        "it stands in line",
        async () => await server.command("ZCARD", "app:{k}:line") === 1,
      );
      assertEquals(await lock.release(), true);
      const got = await next;
      assert(got.fencingToken! > lock.fencingToken!);
      assertEquals(await server.command("GET", "app:k"), got.owner);
      assertEquals(await got.release(), true);
      assert(bare.isAcquired());
      assertEquals(await bare.release(), true);
      await server.command("FLUSHALL");
    } finally {
      one.disconnect();
    }
  },
  { allowTimers: "who waited listens on for a second" },
);

test(
  "a wrapper calls who waits, also where its client has a prefix",
  async () => {
    const one = prefixed("app:");
    const other = prefixed("app:");
    try {
      const lock = await acquireLock(fourMethods(one), "k");
      const next = acquireLock(other, "k", { waitMs: 10_000 });
      await until(
        "it stands in line",
        async () => await server.command("ZCARD", "app:{k}:line") === 1,
      );
      assertEquals(await lock.release(), true);
      // Given over by the release itself, and not found by asking later.
      const owner = await server.command("GET", "app:k");
      const got = await next;
      assertEquals(got.owner, owner);
      assertEquals(await got.release(), true);
      await server.command("FLUSHALL");
    } finally {
      one.disconnect();
      other.disconnect();
    }
  },
  { allowTimers: "who waited listens on for a second" },
);

test("node-redis: prefix and options of a client are its own affair", async () => {
  const settings = { ...sameAsTheLast, url: server.url, keyPrefix: "app:" };
  const one = createClient(settings);
  const other = createClient({ ...sameAsTheLast, url: server.url });
  await Promise.all([one.connect(), other.connect()]);
  try {
    const lock = await acquireLock(one, "k");
    assertEquals(await server.command("GET", "app:k"), lock.owner);
    const bare = await acquireLock(other, "k");
    assertEquals(await server.command("GET", "k"), bare.owner);
    assertEquals(await lock.release(), true);
    assertEquals(await bare.release(), true);
    // Told to give up at once, it sends nothing.
    const signal = AbortSignal.abort();
    const told = other.withAbortSignal(signal);
    await assertRejects(() => acquireLock(told, "k"), LockBackendError);
    assertEquals(await server.command("EXISTS", "k"), 0);
  } finally {
    one.destroy();
    other.destroy();
  }
  await timersEnd();
});

test("a function that throws, or answers nothing of Redis, is an error", async () => {
  const bad = new Error("not today");
  const throwing = () => {
    throw bad;
  };
  const error = await assertRejects(
    () => acquireLock(throwing, "k", { ttl: 0.05 }),
    LockBackendError,
  );
  assertEquals(error.cause, bad);
  const silly = (() => 7) as unknown as CommandFunction;
  await assertRejects(
    () => acquireLock(silly, "k", { ttl: 0.05, throwOnFail: false }),
    LockBackendError,
  );
  await timersEnd();
});

test("what only writes commands down, or makes clients, is refused", () => {
  const stranger: unknown[] = [
    upstash().pipeline(),
    upstash().multi(),
    new Batch(false),
    new ClusterBatch(true),
    UpstashRedis,
    Ioredis,
  ];
  for (const on of stranger) {
    const error = assertThrows(
      () => new DistributedLock(on as LockTarget, "k", "owner", 10),
      TypeError,
    );
    for (const name of ["ioredis", "node-redis", "@upstash/redis", "GLIDE"]) {
      assert(error.message.includes(name), error.message);
    }
    assert(/Bun's RedisClient.*a function that sends/.test(error.message));
    assert(/set, get, del and eval.*memory\(\)/.test(error.message));
  }
});

for (const { name, open, isCalled } of clients) {
  if (isCalled) continue;
  test(`${name}: that nobody can call those who wait is told`, async () => {
    await using it = await open(server.url);
    const events: LockEvent[] = [];
    const on = redis(it.client as Ioredis, {
      onEvent: (event) => events.push(event),
    });
    const holder = await acquireLock(it.client, "told");
    const next = acquireLock(on, "told", { waitMs: 10_000, label: "patient" });
    await until(
      "it is told",
      () =>
        events.some(({ type, key, label }) =>
          type === "push-failed" && key === "told" && label === "patient"
        ),
    );
    await holder.release();
    await (await next).release();
    await until(
      "nothing is left",
      async () => await server.command("DBSIZE") === 0 && timersLeft() === 0,
    );
  });
}

test("all clients together: one line, in its order, whoever is called or asks", async () => {
  const key = "together";
  const open = await Promise.all(
    clients.map(async ({ name, open }) => ({
      name,
      it: await open(server.url),
    })),
  );
  try {
    const holder = await acquireLock(open[0].it.client, key);
    const order: number[] = [];
    let inside = 0;
    const all: Promise<void>[] = [];
    for (let round = 0; round < 2; round++) {
      for (const { it } of open) {
        const place = all.length;
        const waiting = acquireLock(it.client, key, {
          waitMs: 20_000,
          localTurns: 0,
        });
        all.push(waiting.then(async (lock) => {
          assertEquals(++inside, 1, "two inside");
          order.push(place);
          assert(lock.isAcquired());
          inside--;
          assertEquals(await lock.release(), true);
        }));
        await until(
          `${place + 1} in line`,
          async () =>
            await server.command("ZCARD", `{${key}}:line`) === place + 1,
        );
      }
    }
    await holder.release();
    await Promise.all(all);
    assertEquals(order, all.map((_, place) => place));
  } finally {
    for (const { it } of open) await it.close();
  }
  await timersEnd();
  assertEquals(await server.command("DBSIZE"), 0);
});

test("all clients together: nobody starves, and never two inside", async () => {
  const key = "busy";
  const TURNS = 6;
  const open = await Promise.all(
    clients.map(async ({ name, open }) => ({
      name,
      it: await open(server.url),
    })),
  );
  try {
    let inside = 0;
    const served: string[] = [];
    await Promise.all(open.map(async ({ name, it }) => {
      for (let turn = 0; turn < TURNS; turn++) {
        const lock = await acquireLock(it.client, key, {
          waitMs: 20_000,
          ttl: 10,
        });
        assertEquals(++inside, 1, "two inside");
        served.push(name);
        await new Promise((go) => setTimeout(go, 1));
        inside--;
        assertEquals(await lock.release(), true);
      }
    }));
    // Whoever comes again stands behind all who waited: between two turns of
    // one each of the others has two at most, one before and one after it came.
    for (const { name } of open) {
      const turns = served.flatMap((who, at) => who === name ? [at] : []);
      for (let i = 1; i < turns.length; i++) {
        const between = turns[i] - turns[i - 1] - 1;
        const most = 2 * (open.length - 1);
        assert(between <= most, `${between} before ${name} again: ${served}`);
      }
    }
  } finally {
    for (const { it } of open) await it.close();
  }
  await timersEnd();
  assertEquals(await server.command("DBSIZE"), 0);
});

test("one who asks does so less often the longer it is the first in line", async () => {
  await using own = await startRedis();
  let asked = 0;
  const send: CommandFunction = (args) => {
    asked++;
    return own.command(...args);
  };
  const holder = await acquireLock(send, "held");
  const next = acquireLock(send, "held", { waitMs: 20_000 });
  await until("it stands there", () => asked > 12);
  const before = asked;
  await new Promise((go) => setTimeout(go, 1_500));
  // Of 120 ms each, give or take a half; it was asked every 25 ms at first.
  assert(asked - before >= 3, `asked ${asked - before} times`);
  assert(asked - before <= 25, `asked ${asked - before} times`);
  assertEquals(await holder.release(), true);
  assertEquals(await (await next).release(), true);
});
