/**
 * What a line of many costs the server and the process, in which order it is
 * served, and what is left when it is gone.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
} from "@std/assert";
import type { Redis } from "ioredis";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  inspectLock,
  type IoredisClient,
  LockBackendError,
  LockLostError,
  type LockOptions,
  type LockTarget,
  redis,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import {
  HAND_OVER,
  RELEASE_ALL,
  RELEASE_PLAIN,
  run,
} from "../../src/backends/scripts.ts";
import { command } from "../../src/clients/command.ts";
import type { Wish } from "../../src/core/backend.ts";
import { drawOwner } from "../../src/core/keys.ts";
import { type ClientKind, clients } from "../support/clients.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { areInLine } from "../support/line.ts";
import { runtime, spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd, timersLeft } from "../support/test.ts";
import { until } from "../support/until.ts";

/** As a kind of client. */
const IN_MEMORY = {
  name: "memory",
  open: () =>
    Promise.resolve({
      client: memory(),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    }),
};

const WAITER = new URL("../faults/waiter.ts", import.meta.url);
const PATIENT: LockOptions = { ttl: 30, waitMs: 20_000 };
const LISTENS_ON = "who waited listens on for a second";

const kinds = clients.filter(({ name }) =>
  ["ioredis", "redis", "bun"].includes(name)
);

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(async () => {
  await server.stop();
  await timersEnd();
});

/** One test for each kind of client, side by side, on a server of its own. */
function costs(
  sentence: string,
  fn: (on: LockTarget, own: RedisServer, kind: ClientKind) => Promise<void>,
): void {
  test(sentence, async () => {
    const ended = await Promise.allSettled(kinds.map(async (kind) => {
      await using own = await startRedis();
      await using it = await kind.open(own.url);
      try {
        await fn(it.client, own, kind);
        await until(
          "only fences are left",
          async () =>
            (await own.command("KEYS", "*") as string[])
              .every((key) => key.endsWith(":fence")),
        );
      } catch (cause) {
        throw new Error(`With ${kind.name}: ${cause}`, { cause });
      }
    }));
    for (const end of ended) if (end.status === "rejected") throw end.reason;
  }, { allowTimers: LISTENS_ON, timeoutMs: 60_000 });
}

function wait(on: LockTarget, key: string, options: LockOptions = {}) {
  const waiting = acquireLock(on, key, {
    ...PATIENT,
    ...options,
    throwOnFail: true,
  });
  // Looked at later, or not at all where the test fails before.
  waiting.catch(() => {});
  return waiting;
}

const inLine = (key: string, count: number, at: RedisServer) =>
  until(
    `${count} in line`,
    async () =>
      areInLine(await at.command("ZRANGE", `{${key}}:line`, 0, -1), count),
  );

/** How many connections there are. */
const connected = async (at: RedisServer) =>
  String(await at.command("CLIENT", "LIST")).match(/^id=/gm)?.length;

/** The backend of a client, one anew; or the memory that it is. */
function backendOf(name: string, client: LockTarget): Backend {
  return name === "memory" ? client as Backend : redis(client as IoredisClient);
}

/** How many connections listen there. */
async function listening(at: RedisServer): Promise<number> {
  const list = await at.command("CLIENT", "LIST", "TYPE", "pubsub");
  return String(list).split("\n").filter((line) => line !== "").length;
}

/** How many commands clients have sent: not those that scripts call. */
async function commands(at: RedisServer): Promise<number> {
  const stats = String(await at.command("INFO", "commandstats"));
  let count = 0;
  for (const [, name, calls] of stats.matchAll(/cmdstat_(\S+):calls=(\d+)/g)) {
    // What a script calls is counted too; all that we send is one of these.
    if (/^(eval|evalsha|set|subscribe|unsubscribe|ping)$/.test(name)) {
      // SET with NX is ours, that without a script's: none here is without.
      if (name !== "set") count += Number(calls);
    }
  }
  return count;
}

test("a busy line sets no timer for each hand-over", async () => {
  await using own = await startRedis();
  const [kind] = kinds;
  await using one = await kind.open(own.url);
  await using other = await kind.open(own.url);
  let handOvers = 0;
  let most = 0;
  const take = async ({ client }: typeof one) => {
    for (let i = 0; i < 300; i++) {
      const lock = await wait(client, "busy", { localTurns: 0 });
      handOvers++;
      most = Math.max(most, timersLeft());
      assert(await lock.release());
    }
  };
  // Two clients have two inboxes: each calls the other, hundreds of times.
  await Promise.all([one, other, one, other].map(take));
  assertEquals(handOvers, 1_200);
  assert(most < 100, `${most} timers at a time`);
}, { allowTimers: LISTENS_ON });

costs(
  "who leaves may close the client right after",
  async (on, own, kind) => {
    const holder = await acquireLock(on, "left");
    // As in a process that has never left a line before; the server knows it.
    await own.command("SCRIPT", "LOAD", HAND_OVER.lua);
    HAND_OVER.sha = undefined;
    await using other = await kind.open(own.url);
    const client = other.client as unknown as {
      quit?(): Promise<unknown>;
      send(command: string, args: string[]): Promise<unknown>;
    };
    const stop = new AbortController();
    const waiting = wait(other.client, "left", { signal: stop.signal });
    await inLine("left", 1, own);
    stop.abort(new Error("enough"));
    // Bun's has no such thing: there it is what is answered in its place.
    await (client.quit?.() ?? client.send("PING", []));
    // Not later: a line that nobody stands in is forgotten all the same.
    assertEquals(await own.command("ZCARD", "{left}:line"), 0);
    await assertRejects(() => waiting, Error, "enough");
    await holder.release();
  },
);

costs(
  "a newcomer who does not wait never slips in between",
  async (on, own, kind) => {
    const key = "busy";
    await using other = await kind.open(own.url);
    await using newcomer = await kind.open(own.url);
    const first = await acquireLock(on, key, { ttl: 30 });
    // Everybody is in line before the first of them is served, and stands there
    // again before the last is.
    let isOver = false;
    let rounds = 0;
    const all = [on, other.client, on, other.client].map((side, i) =>
      Array.from({ length: 4 }, async () => {
        for (
          let lock = await wait(side, key, { localTurns: i < 2 ? 0 : 4 });;
        ) {
          rounds++;
          if (isOver) return void await lock.release();
          const next = wait(side, key, { localTurns: i < 2 ? 0 : 4 });
          await lock.release();
          lock = await next;
        }
      })
    ).flat();
    await inLine(key, 10, own);
    let tried = 0;
    let slipped = 0;
    const trying = Promise.all(Array.from({ length: 4 }, async () => {
      while (tried < 4_000) {
        tried++;
        const lock = await acquireLock(newcomer.client, key, {
          throwOnFail: false,
        });
        if (lock === null) continue;
        slipped++;
        await lock.release();
      }
      isOver = true;
    }));
    await first.release();
    await trying;
    await Promise.all(all);
    assertEquals(slipped, 0);
    assert(rounds > 100, `only ${rounds} changes of hands`);
  },
);

costs(
  "none of those who come as the lock is freed overtakes another",
  async (on, own) => {
    const key = "freed";
    const first = await acquireLock(on, key, { waitMs: 1_000 });
    // Each script is unknown, and sent again: the lock is freed in between.
    await own.command("SCRIPT", "FLUSH");
    const order: string[] = [];
    const all = ["a", "b", "c", "d"].map(async (label) => {
      const lock = await wait(on, key, { label, localTurns: 0 });
      order.push(label);
      await lock.release();
    });
    await first.release();
    await Promise.all(all);
    assertEquals(order, ["a", "b", "c", "d"]);
  },
);

/** All of them under one runtime: no machine should have to do it thrice. */
const MANY = runtime === "deno" ? 10_000 : 2_000;

costs(
  `${MANY} waits need one connection to listen, and one channel`,
  async (on, own) => {
    const keys = Array.from({ length: MANY }, (_, i) => `many:${i}`);
    const hold = `for i = 0, ${MANY - 1} do
    redis.call("SET", "many:" .. i, ARGV[1], "PX", 60000)
  end`;
    // As one of us would: who knows of the line is not asked so often.
    await own.command("EVAL", hold, 0, `${"0".repeat(32)}@`);
    // A busy machine takes its time.
    const all = keys.map((key) => wait(on, key, { waitMs: Infinity }));
    await until(
      "all are in line",
      async () => await own.command("DBSIZE") === 2 * MANY,
      50_000,
    );
    await until("one listens", async () => await listening(own) === 1);
    // The server's own word on FLUSHALL comes by another.
    const channels = await own.command(
      "PUBSUB",
      "CHANNELS",
      "lock:*",
    ) as string[];
    assertEquals(channels.length, 1, `${channels}`);
    const freed = `for i = 0, ${
      MANY - 1
    } do redis.call("DEL", "many:" .. i) end`;
    await own.command("EVAL", freed, 0);
    const locks = await Promise.all(all);
    assertEquals(await listening(own), 1);
    const results = await Promise.all(locks.map((lock) => lock.release()));
    assertEquals(results.filter((freed) => !freed).length, 0, "were lost");
    await until("it listens no more", async () => await listening(own) === 0);
  },
);

costs(
  "who listens goes when nobody waits, and with the client",
  async (_, own, kind) => {
    await using holding = await kind.open(own.url);
    const waiting = await kind.open(own.url);
    const holder = await acquireLock(holding.client, "idle");
    const next = wait(waiting.client, "idle");
    await inLine("idle", 1, own);
    await until("one listens", async () => await listening(own) === 1);
    await holder.release();
    await (await next).release();
    await until("it listens no more", async () => await listening(own) === 0);
    const again = await acquireLock(holding.client, "idle");
    const last = wait(waiting.client, "idle").catch((error) => error);
    await inLine("idle", 1, own);
    await until("one listens", async () => await listening(own) === 1);
    await waiting.close();
    await until("it went with it", async () => await listening(own) === 0);
    assertInstanceOf(await last, LockBackendError);
    await again.release();
  },
);

costs(
  "a process whose client is closed ends, whoever waits in it",
  async (on, own, kind) => {
    await using script = spawnScript(WAITER, [kind.name, own.url]);
    const holder = await acquireLock(on, "closing");
    for (const localTurns of [0, 16]) {
      const options = { ...PATIENT, waitMs: 600_000, localTurns };
      script.send({
        do: "acquire",
        id: `${localTurns}`,
        key: "closing",
        options,
      });
    }
    await inLine("closing", 2, own);
    script.send({ do: "close" });
    await script.next("closed");
    assertEquals(await script.exited, { code: 0, signal: null });
    assertEquals(script.stderr, "", "nothing is printed");
    await holder.release();
  },
);

for (const how of ["without waiting", "by a turn"]) {
  costs(
    `a hundred who wait for one who came in ${how} cost less than a command per second`,
    async (on, own, kind) => {
      await using other = await kind.open(own.url);
      let holder = await acquireLock(other.client, "held", { ttl: 60 });
      if (how === "by a turn") {
        const next = wait(other.client, "held", { ttl: 60 });
        await inLine("held", 1, own);
        await holder.release();
        holder = await next;
        // It makes a full lease of the short one, and asks for no more.
        await holder.extend();
      }
      const all = Array.from(
        { length: 100 },
        (_, i) =>
          wait(on, "held", { localTurns: i % 2 ? 16 : 0 })
            .then((lock) => lock.release()),
      );
      // Half of them share a place.
      await inLine("held", 51, own);
      // What comes in the first heartbeat is the end of standing in line.
      await new Promise((go) => setTimeout(go, 1_300));
      const before = await commands(own);
      await new Promise((go) => setTimeout(go, 4_000));
      const sent = await commands(own) - before;
      assert(sent >= 1, "nobody asks any more");
      assert(sent <= 4, `${sent} commands in 4 s`);
      await holder.release();
      await Promise.all(all);
    },
  );
}

for (const kind of kinds) {
  test(
    `${kind.name}: a lease that is hardly longer than a turn's is made whole`,
    async () => {
      await using own = await startRedis();
      await using one = await kind.open(own.url);
      await using two = await kind.open(own.url);
      const extended: number[] = [];
      const on = redis(two.client as IoredisClient, {
        onEvent: (event) => {
          if (event.type === "extended") extended.push(event.ttlMs);
        },
      });
      const holder = await acquireLock(one.client, "whole");
      const next = wait(on, "whole", { ttl: 2.1 });
      await inLine("whole", 1, own);
      await holder.release();
      const lock = await next;
      assert(lock.remainingMs <= 2_000, "given for longer than a turn's lease");
      await until("it is made whole", () => extended.length > 0);
      assertEquals(extended, [2_100]);
      assert(lock.isAcquired());
      await lock.release();
    },
    { allowTimers: LISTENS_ON },
  );
}

costs(
  "an acquisition costs the same, however many wait",
  async (on, own, kind) => {
    await using other = await kind.open(own.url);
    // The first who wait have more to say: who they are, and what a script is.
    for (const count of [5, 1, 200]) {
      const key = `cost:${count}`;
      const holder = await acquireLock(other.client, key, { ttl: 60 });
      const before = await commands(own);
      const all = Array.from(
        { length: count },
        () => wait(on, key, { localTurns: 0 }).then((lock) => lock.release()),
      );
      await inLine(key, count, own);
      await holder.release();
      await Promise.all(all);
      // The holder's own two, and what is asked from time to time.
      const spent = await commands(own) - before - 2;
      if (count !== 5) {
        assert(spent <= 2 * count + 3, `${spent} commands for ${count}`);
      }
    }
  },
);

costs(
  "with localTurns: 0 the order of the line is the order of grants",
  async (on, own, kind) => {
    const key = "strict";
    const scripts = Array.from(
      { length: 3 },
      () => spawnScript(WAITER, [kind.name, own.url]),
    );
    try {
      await Promise.all(scripts.map((script) => script.next("ready")));
      const holder = await acquireLock(on, key, { ttl: 60, fencing: true });
      const options = { ...PATIENT, localTurns: 0, fencing: true };
      for (const script of scripts) {
        script.send({ do: "pass", count: 25, key, options });
      }
      await inLine(key, 75, own);
      const line = await own.command("ZRANGE", `{${key}}:line`, 0, -1);
      const inOrder = (line as string[]).map((member) => member.split(" ")[2]);
      await holder.release();
      const passed: { owner: string; fencingToken: number }[] = [];
      for (const script of scripts) {
        const { locks } = await script.next("passed");
        passed.push(...locks as typeof passed);
      }
      // They say in which order they were held, whichever process it was.
      passed.sort((a, b) => a.fencingToken - b.fencingToken);
      assertEquals(passed.map(({ owner }) => owner), inOrder);
    } finally {
      for (const script of scripts) {
        script.kill();
        await script.exited;
      }
    }
  },
);

costs(
  "withLock() on a frozen server does not wait for it to tell the loss",
  async (_, own, kind) => {
    await using it = await kind.open(own.url);
    let isLost = false;
    const running = withLock(it.client, "frozen", async (lock) => {
      const { signal } = lock;
      const lost = new Promise<void>((done) =>
        signal.addEventListener("abort", () => done(), { once: true })
      );
      own.freeze();
      await lost;
      isLost = true;
      return "done";
    }, { ttl: 0.6 });
    const error = await assertRejects(() => running, LockLostError);
    assert(isLost);
    assertEquals(error.reason, "unreachable");
    // It is still frozen: nobody was waited for. Frozen, it forgot nothing.
    own.thaw();
    await until(
      "nothing is left",
      async () => await own.command("DBSIZE") === 0,
    );
  },
);

costs(
  "a key that somebody gave no expiry is held, not lost",
  async (on, own) => {
    const lock = await acquireLock(on, "persistent", { ttl: 5 });
    assertEquals(await own.command("PERSIST", "persistent"), 1);
    const resumed = await DistributedLock.resume(on, JSON.stringify(lock));
    resumed.assertHeld();
    assert(resumed.remainingMs > 60_000);
    assertFalse(resumed.signal.aborted);
    const { held, remainingMs } = await inspectLock(on, "persistent");
    assertEquals([held, remainingMs], [true, undefined]);
    await resumed.extend();
    assert(resumed.remainingMs <= 5_000, "it has one again");
    assertEquals(await resumed.release(), true);
  },
);

costs(
  "who closes the client as patience ends leaves no place",
  async (on, own, kind) => {
    // Bun's client throws away what it has not sent when it is closed.
    if (kind.name === "bun") return;
    // On a server that has never seen how one leaves.
    const lock = await acquireLock(on, "k");
    for (const count of [1, 2]) {
      const before = await connected(own);
      const it = await kind.open(own.url);
      const end = new AbortController();
      const waiting = Array.from(
        { length: count },
        (_, i) => wait(it.client, "k", { signal: end.signal, localTurns: i }),
      );
      await inLine("k", count, own);
      end.abort();
      const ended = await Promise.allSettled(waiting);
      // As one ends a client that is still to send what it was told to.
      const { client } = it as { client: { close?(): Promise<void> } };
      if (client.close === undefined) await it.close();
      else await client.close();
      assert(ended.every(({ status }) => status === "rejected"));
      await until(
        "all of its connections are gone",
        async () => await connected(own) === before,
      );
      assertEquals(await own.command("ZCARD", "{k}:line"), 0);
      await own.command("SCRIPT", "FLUSH");
    }
    await lock.release();
  },
);

for (const { name, open } of [IN_MEMORY, ...kinds]) {
  test(`${name}: by another name one keeps the place in line, and the turn`, async () => {
    await using it = await open(server.url);
    const backend = backendOf(name, it.client);
    const line = backend.line!;
    const key = `renamed by ${name}`;
    const names = Array.from({ length: 4 }, () => drawOwner());
    const wish = (nth: number) => ({
      key,
      owner: names[nth],
      ttlMs: 30_000,
      tokens: 2,
    });
    const holder = await acquireLock(backend, key, { fencing: true });
    const [first] = await line.stand([wish(0)]);
    assert(!(first instanceof Error) && !first.granted);
    const { ticket } = first;
    await line.stand([wish(1)]);
    const [second] = await line.stand([
      { ...wish(2), ticket, former: names[0] },
    ]);
    assert(!(second instanceof Error) && !second.granted);
    assertEquals([second.ticket, second.place], [ticket, 1]);
    assertEquals((await inspectLock(backend, key)).waiting, 2);
    // The turn comes to the name before, as it is asked for by the next.
    assert(await holder.release());
    const [turn] = await line.stand([
      { ...wish(3), ticket, former: names[2] },
      wish(1),
    ]);
    assert(!(turn instanceof Error) && turn.granted);
    assert(turn.fencingToken! > holder.fencingToken!);
    assert(turn.leftMs > 0);
    const hold = { key, owner: names[3] };
    assertEquals((await backend.inquire!(hold)).verdict, "done");
    const { waiting, fencingToken } = await inspectLock(backend, key);
    assertEquals(waiting, 1);
    assertEquals(fencingToken, turn.fencingToken! + 1);
    // Who leaves under way to another name, leaves by both.
    line.leave({ ...wish(0), ticket, former: names[1] });
    // Sooner than the server forgets a line by itself.
    await until(
      "nobody stands there",
      async () => (await inspectLock(backend, key)).waiting === 0,
      5_000,
    );
    assertEquals((await line.handOver(hold, undefined)).verdict, "done");
    assertEquals((await inspectLock(backend, key)).held, false);
  });
}

test("a doubt about a key that has no expiry ends with the lock held", async () => {
  await using it = await kinds[0].open(server.url);
  const clock = new FakeClock();
  const inner = redis(it.client as IoredisClient);
  const on = {
    name: "redis, by a clock that can be set",
    clock,
    tryAcquire: inner.tryAcquire.bind(inner),
    extend: inner.extend.bind(inner),
    release: inner.release.bind(inner),
    discard: inner.discard.bind(inner),
    inquire: inner.inquire.bind(inner),
  };
  const lock = await acquireLock(on, "doubt", { ttl: 5 });
  const { signal } = lock;
  assertEquals(await server.command("PERSIST", "doubt"), 1);
  clock.stepWall(3_600_000);
  assertFalse(lock.isAcquired(), "held before the server was asked");
  await until("the server has been asked", () => lock.isAcquired());
  assertFalse(signal.aborted);
  lock.assertHeld();
  assert(lock.remainingMs > 60_000);
  assertEquals(await lock.release(), true);
});

test("who comes stands behind all others also where the clock was set back", async () => {
  await using it = await kinds[0].open(server.url);
  const { line } = redis(it.client as IoredisClient);
  const key = "set back";
  const beside = `{${key}}:line`;
  const wish = { key, ttlMs: 30_000, tokens: 0 };
  await server.command("SET", key, "somebody", "PX", 60_000);
  // As of a server whose clock was far ahead.
  const ahead = 2 ** 52;
  const before = `30000 0 ${drawOwner()}`;
  await server.command("ZADD", beside, String(ahead), before);
  const tickets: (number | undefined)[] = [];
  for (let place = 2; place < 5; place++) {
    const [answer] = await line!.stand([{ ...wish, owner: drawOwner() }]);
    assert(!(answer instanceof Error) && !answer.granted);
    assertEquals(answer.place, place);
    tickets.push(answer.ticket);
  }
  assertEquals(tickets, [ahead + 1, ahead + 2, ahead + 3]);
  await server.command("DEL", key, beside);
});

test("a line that nobody asks for any more is forgotten by itself", async () => {
  await using it = await kinds[0].open(server.url);
  const { line } = redis(it.client as IoredisClient);
  const key = "forgotten";
  const beside = `{${key}}:line`;
  const wish = { key, owner: drawOwner(), ttlMs: 30_000, tokens: 0 };
  const leftMs = async () => Number(await server.command("PTTL", beside));
  await server.command("SET", key, "somebody", "PX", 60_000);
  await line!.stand([wish]);
  assert(await leftMs() > 0, "it is there for ever");
  await server.command("PEXPIRE", beside, 500);
  // And each question has it kept on.
  await line!.stand([wish]);
  assert(await leftMs() > 5_000);
  await server.command("DEL", key, beside);
});

for (const by of ["stands in line", "wants several"]) {
  test(`whoever finds a key free, and ${by}, has the next look after a brief lease`, async () => {
    await using it = await kinds[0].open(server.url);
    await using ear = await kinds[0].open(server.url);
    const on = redis(it.client as IoredisClient);
    const key = `brief, by one who ${by}`;
    const inbox = drawOwner().slice(0, 16);
    const heard: string[] = [];
    const listener = ear.client as unknown as Redis;
    listener.on("message", (_channel, word) => heard.push(word));
    await listener.subscribe(`lock:inbox:${inbox}`);
    const wish = (ttlMs: number) => ({
      ...{ key, owner: drawOwner(undefined, inbox), ttlMs, tokens: 0 },
    });
    const [brief, next, last] = [400, 30_000, 30_000].map(wish);
    await server.command("SET", key, "somebody", "PX", 60_000);
    await on.line!.stand([brief, next]);
    await server.command("DEL", key);
    if (by === "wants several") {
      const answer = await on.tryAcquireAll!([last], false);
      assert("granted" in answer && !answer.granted);
    } else await on.line!.stand([last]);
    await until("both are told", () => heard.length >= 2);
    assert(heard[0].startsWith("turn ") && heard[0].endsWith(brief.owner));
    assertEquals(heard.slice(1), [`look ${next.owner}`]);
    await server.command("DEL", key, `{${key}}:line`);
  });
}

test("who is called by one who leaves is reminded", async () => {
  await using it = await kinds[0].open(server.url);
  await using ear = await kinds[0].open(server.url);
  const { line } = redis(it.client as IoredisClient);
  const inbox = drawOwner().slice(0, 16);
  const heard: string[] = [];
  const listener = ear.client as unknown as Redis;
  listener.on("message", (_channel, word) => heard.push(word));
  await listener.subscribe(`lock:inbox:${inbox}`);
  const reminders: string[] = [];
  for (const key of ["handed on", "and another"]) {
    const [leaving, next] = [drawOwner(), drawOwner(undefined, inbox)].map(
      (owner) => ({ key, owner, ttlMs: 30_000, tokens: 0 }),
    );
    const [turn] = await line!.stand([leaving]);
    assert("granted" in turn && turn.granted);
    await line!.stand([next]);
    line!.leave(leaving);
    // The call is heard, and nobody comes.
    await until("it is called", () => heard.length >= 1);
    const [call] = heard.splice(0);
    assert(call.startsWith("turn ") && call.endsWith(next.owner));
    reminders.push(`look ${next.owner}`);
    // Not so long that the first is reminded, and the other is not due with it.
    await new Promise((go) => setTimeout(go, 50));
  }
  await until("both are reminded", () => heard.length >= 2);
  assertEquals(heard, reminders);
  await server.command("DEL", "handed on", "and another");
});

test("a place is left also where the lease that it was to bring would be over", async () => {
  await using it = await kinds[0].open(server.url);
  const client = it.client as unknown as Redis;
  let fails = 0;
  const { line } = redis(async ([command, ...words]) => {
    if (fails-- > 0) throw new Error("Connection is closed.");
    return await client.call(command, ...words);
  });
  const key = "left late";
  await server.command("SET", key, "somebody", "PX", 60_000);
  const [brief, other] = [1, 30_000].map((ttlMs) => ({
    ...{ key, owner: drawOwner(), ttlMs, tokens: 0 },
  }));
  // As long as others stand there the line is not forgotten.
  await line!.stand([brief, other]);
  fails = 3;
  line!.leave(brief);
  const size = () => server.command("ZCARD", `{${key}}:line`);
  await until("it has left", async () => await size() === 1);
  assert(fails <= 0, "nothing has failed");
  await server.command("DEL", key, `{${key}}:line`);
});

test("who was passed over, and comes back, stands where it stood", async () => {
  await using it = await kinds[0].open(server.url);
  const { line } = redis(it.client as IoredisClient);
  const key = "passed over";
  const beside = `{${key}}:line`;
  const [first, second] = [1, 2].map(() => ({
    ...{ key, owner: drawOwner(), ttlMs: 30_000, tokens: 0 },
  }));
  const stand = async (wish: Wish) => {
    const [answer] = await line!.stand([wish]);
    assert("granted" in answer);
    return answer;
  };
  await server.command("SET", key, "somebody", "PX", 60_000);
  const before = await stand(first);
  await stand(second);
  assert(!before.granted);
  const { ticket } = before;
  const passOver = () =>
    server.command("ZREM", beside, `30000 0 ${first.owner}`);
  await passOver();
  const back = await stand({ ...first, ticket });
  assert(!back.granted);
  assertEquals([back.ticket, back.place, back.isAnew], [ticket, 1, true]);
  const again = await stand({ ...first, ticket });
  assertEquals(!again.granted && again.isAnew, false);
  await passOver();
  await server.command("DEL", key);
  assertEquals((await stand({ ...first, ticket })).granted, true);
  await server.command("DEL", key, beside);
});

for (const { name, open } of [IN_MEMORY, ...kinds]) {
  test(`${name}: a release puts who is next behind all others`, async () => {
    await using it = await open(server.url);
    const backend = backendOf(name, it.client);
    const line = backend.line!;
    const key = `next by ${name}`;
    const [hold, other, next] = [1, 2, 3].map(() => ({
      ...{ key, owner: drawOwner(), ttlMs: 30_000, tokens: 0 },
    }));
    assert((await backend.tryAcquire(hold)).granted);
    const [before] = await line.stand([other]);
    assert("granted" in before && !before.granted);
    const answer = await line.handOver(hold, next);
    assertEquals(answer.verdict, "done");
    const behind = answer.next;
    assert(behind !== undefined && !behind.granted);
    assertEquals(behind.place, 1);
    assert(behind.ticket! > before.ticket!);
    assertEquals((await backend.inquire(other)).verdict, "done");
    // With nobody else there, it has the key by its own release.
    assertEquals((await line.handOver(other, undefined)).verdict, "done");
    const last = await line.handOver(next, hold);
    assert(last.next?.granted);
    assertEquals(await backend.release(hold), "done");
  });
}

test("what is had in passing, and whose answer is lost, is nobody's", async () => {
  await using it = await kinds[0].open(server.url);
  const client = it.client as unknown as Redis;
  let isLost = false;
  const on = redis(async ([command, ...words]) => {
    const answer = await client.call(command, ...words);
    if (isLost) return answer;
    isLost = true;
    throw new Error("Connection is closed.");
  });
  const key = "in passing";
  const wish = { key, owner: drawOwner(), ttlMs: 30_000, tokens: 0 };
  const [answer] = await on.line!.stand([wish], true);
  assertInstanceOf(answer, LockBackendError);
  await until(
    "it is free",
    async () => await server.command("EXISTS", key) === 0,
  );
});

test("of several releases each has its own answer, and a line is passed over by none", async () => {
  await using it = await kinds[0].open(server.url);
  const client = it.client as unknown as Redis;
  const port = command(([name, ...words]) => client.call(name, ...words));
  const names = ["ours", "wanted", "theirs", "nobody's", "no lock"];
  const keys = names.map((name) => `{several}:${name}`);
  const lines = keys.map((key) => `${key}:line`);
  for (const key of keys.slice(0, 2)) await client.set(key, "me");
  await client.set(keys[2], "another");
  await client.lpush(keys[4], "a list");
  await client.zadd(lines[1], 1, "30000 0 somebody");
  const owners = names.map(() => "me");
  const verdicts = await run(port, RELEASE_ALL, [...keys, ...lines], owners);
  assertEquals(verdicts, ["done", "wanted", "taken", "absent", "no lock"]);
  const left = [keys[1], keys[2], keys[4], lines[1]];
  assertEquals(await client.exists(...keys, ...lines), left.length);
  assertEquals(await client.exists(...left), left.length);
  await client.del(...left);
});

test("a release by what may be a double looks for the line behind a prefix", async () => {
  await using it = await kinds[0].open(server.url);
  const client = it.client as unknown as Redis;
  const port = command(([name, ...words]) => client.call(name, ...words));
  const [key, line] = ["app:k", "app:{k}:line"];
  await client.set(key, "me");
  await client.zadd(line, 1, "30000 0 somebody");
  // As a wrapper has it sent, which puts that before keys and nothing else.
  const release = () =>
    run(port, RELEASE_PLAIN, [key], ["me", "{k}:line", "k"]);
  assertEquals(await release(), "wanted");
  await client.del(line);
  assertEquals(await release(), "done");
});

test("what has no expiry is not given one by so much more, or less", async () => {
  await using it = await kinds[0].open(server.url);
  const on = redis(it.client as IoredisClient);
  const claim = { key: "without end", owner: drawOwner(), ttlMs: 5_000 };
  await on.tryAcquire(claim);
  await server.command("PERSIST", claim.key);
  for (const byMs of [1_000, -1_000]) {
    const standing = await on.prolong!(claim, byMs);
    assertEquals([standing.verdict, standing.leftMs], ["done", Infinity]);
  }
  assertEquals(await server.command("PTTL", claim.key), -1);
  assertEquals(await on.release(claim), "done");
});
