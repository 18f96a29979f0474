/**
 * `Debounce` of `@upstash/lock` by its document, which promises one run a wait;
 * what it is made of is in `src/core/bursts.ts`.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";

import {
  acquireLock,
  LockBackendError,
  type LockTarget,
  redlock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { Debounce, Lock } from "@dreamer/utils/lock/upstash";

import { connect } from "../../src/connect.ts";
import type { Backend } from "../../src/core/backend.ts";
import { clients } from "../support/clients.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { type Script, spawnScript } from "../support/process.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";
import { until } from "../support/until.ts";
import { sleep, type World, worlds } from "./worlds.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

// A second each, and all in the same one.
test.sideBySide(worlds.map(({ name, open }) => [
  `${name}: the document's example runs`,
  async () => {
    await using world = await open(server);
    const { on } = world;
    const worked: string[] = [];
    const doExpensiveWork = (arg: string) => void worked.push(arg);
    const Redis = { fromEnv: () => on };

    const debouncedFunction = new Debounce({
      id: `unique-function-id on ${name}`,
      redis: Redis.fromEnv(),
      // Wait time of 1 second
      // The debounced function will only be called once per second across all instances
      wait: 1000,
      // Callback function to be debounced
      callback: (arg) => {
        doExpensiveWork(arg);
      },
    });

    // This example function is called by our app to trigger work we want to only happen once per wait period
    async function triggerExpensiveWork(arg: string) {
      // Call the debounced function
      // This will only call the callback function once per wait period
      await debouncedFunction.call(arg);
    }

    const begun = performance.now();
    await Promise.all(["a", "b", "c"].map(triggerExpensiveWork));
    assertEquals(worked, ["c"]);
    assert(performance.now() - begun >= 999);
  },
]));

for (const { name, open } of worlds) {
  const inWorld = (title: string, fn: (world: World) => Promise<void>) =>
    test(`${name}: ${title}`, async () => {
      await using world = await open(server);
      await fn(world);
    });

  inWorld("the last call runs, once across instances", async (world) => {
    const { on, other } = world;
    const ran: unknown[][] = [];
    const [here, there] = [on, other].map((redis) =>
      new Debounce({
        ...{ id: "across", redis, wait: 400 },
        callback: (...args) => ran.push(args),
      })
    );
    const calls: Promise<void>[] = [];
    for (let i = 0; i < 6; i++) {
      calls.push((i % 2 ? there : here).call(i, "of", 6));
      await sleep(20);
    }
    assertEquals(ran, []);
    await Promise.all(calls);
    assertEquals(ran, [[5, "of", 6]]);
  });

  inWorld(
    "the callback's error rejects the call that ran it",
    async (world) => {
      const boom = new Error("boom");
      const failing = new Debounce({
        ...{ id: "failing", redis: world.on, wait: 30 },
        callback: (_: number) => Promise.reject(boom),
      });
      const [first, second] = [failing.call(1), failing.call(2)];
      const outcomes = await Promise.allSettled([first, second]);
      assertEquals(outcomes.map(({ status }) => status), [
        "fulfilled",
        "rejected",
      ]);
      assertEquals((outcomes[1] as PromiseRejectedResult).reason, boom);
      const throwing = new Debounce({
        ...{ id: "throwing", redis: world.on, wait: 10 },
        callback: () => {
          throw boom;
        },
      });
      assertEquals(await throwing.call().catch((error) => error), boom);
    },
  );

  inWorld("it never meets a lock of that id", async ({ on }) => {
    const lock = new Lock({ id: "both", redis: on }); // U14
    assert(await lock.acquire());
    let ran = 0;
    const callback = () => void ran++;
    await new Debounce({ id: "both", redis: on, wait: 20, callback }).call();
    assertEquals(ran, 1);
    assertEquals(await lock.getStatus(), "ACQUIRED");
    assert(await lock.release());
    await using _ = await acquireLock(on, "both");
  });

  inWorld("told once and not heard, it is told the same", async ({ on }) => {
    const { bursts } = connect(on);
    const one = await bursts!.join("twice", 0);
    const two = await bursts!.join("twice", 0);
    assert(two > one && Number.isSafeInteger(two));
    const ask = (number: number) =>
      bursts!.ask({ key: "twice", number, waitMs: 0 });
    assertEquals([await ask(two), await ask(two)], ["run", "run"]);
    assertEquals(await ask(one), "done");
  });

  inWorld("there are never two runs within one wait", async ({ on }) => {
    const { bursts } = connect(on);
    const [key, waitMs] = [`spaced on ${name}`, 60_000];
    const ask = async (nextMs?: number) => {
      const number = await bursts!.join(key, waitMs);
      return bursts!.ask({ key, number, waitMs, nextMs });
    };
    assertEquals(await ask(), "run");
    const inMs = Number(await ask());
    assert(inMs > 40_000 && inMs <= waitMs, `${inMs} ms`);
  });

  inWorld("once a burst is over only its last call runs", async ({ on }) => {
    const { bursts } = connect(on);
    const [key, waitMs] = [`over on ${name}`, 100];
    const join = () => bursts!.join(key, waitMs);
    const ask = (number: number) => bursts!.ask({ key, number, waitMs });
    const first = await join();
    await sleep(150);
    const last = await join();
    // By then a run was due, but the last call may have its own.
    await sleep(110);
    assertEquals(typeof await ask(first), "number");
    assertEquals(await ask(last), "run");
    assertEquals(await ask(first), "done");
  });

  inWorld("who is late by a while is taken for dead", async ({ on }) => {
    const { bursts } = connect(on);
    const key = `late on ${name}`;
    const waitMs = 60_000;
    const patient = await bursts!.join(key, waitMs);
    const late = await bursts!.join(key, 0);
    const ask = (number: number, nextMs?: number) =>
      bursts!.ask({ key, number, waitMs, nextMs });
    assertEquals(await ask(patient, 0), "done");
    const inMs = Number(await ask(patient));
    assert(inMs > 0 && inMs <= 250, `${inMs} ms`);
    await sleep(260);
    assertEquals(await ask(patient), "run");
    assertEquals(await ask(late), "done");
  });
}

/** Calls every `everyMs`, for `forMs`; and when what ran, by which arguments. */
async function steadily(
  clock: FakeClock,
  redis: LockTarget,
  everyMs: number,
  forMs: number,
  wait = 1_000,
) {
  const runs: { at: number; arg: number }[] = [];
  const done: number[] = [];
  const it = new Debounce({
    ...{ id: "steady", redis, wait },
    callback: (arg: number) => void runs.push({ at: clock.now(), arg }),
  });
  const calls: Promise<unknown>[] = [];
  const begunAt = clock.now();
  for (let ms = 0; ms < forMs; ms += everyMs) {
    const at = clock.now() - begunAt;
    calls.push(it.call(at).then(() => done.push(clock.now() - begunAt - at)));
    await clock.advance(everyMs);
  }
  await clock.advance(3 * wait);
  await Promise.all(calls);
  return {
    runs: runs.map(({ at, arg }) => ({ at: at - begunAt, arg })),
    /** How long each call took. */
    done,
  };
}

test("calls that keep coming run once in every wait", async () => { // U11
  for (const everyMs of [7, 100, 300, 499, 700, 999]) {
    const clock = new FakeClock();
    const { runs, done } = await steadily(
      clock,
      memory({ clock }),
      everyMs,
      8_000,
    );
    const gaps = runs.slice(1).map(({ at }, i) => at - runs[i].at);
    const story = `every ${everyMs}: ${JSON.stringify(runs)}`;
    assert(runs[0].at <= 2_010, story);
    for (const gap of gaps) assert(gap >= 1_000 && gap <= 1_010, story);
    // What was last is not lost, and each call has its own arguments.
    const last = Math.ceil(8_000 / everyMs) * everyMs - everyMs;
    assertEquals(runs.at(-1)!.arg, last, story);
    for (const { at, arg } of runs) assert(at - arg >= 1_000, story);
    assert(Math.min(...done) >= 1_000 && Math.max(...done) <= 2_000, story);
    assertEquals(clock.pending, 0);
  }
});

test("a burst of less than a wait is one run, of its last call", async () => {
  for (const [everyMs, forMs] of [[1, 900], [100, 300], [450, 900], [1, 1]]) {
    const clock = new FakeClock();
    const on = memory({ clock });
    for (let again = 0; again < 3; again++) {
      const { runs, done } = await steadily(clock, on, everyMs, forMs);
      const last = Math.ceil(forMs / everyMs) * everyMs - everyMs;
      assertEquals(runs, [{ at: last + 1_000, arg: last }]);
      assertEquals([...new Set(done)], [1_000]);
    }
  }
});

test("each call for itself runs", async () => {
  const clock = new FakeClock();
  const { runs } = await steadily(clock, memory({ clock }), 1_500, 6_000);
  assertEquals(runs.map(({ at }) => at), [1_000, 2_500, 4_000, 5_500]);
});

test("after a stall it is the last call that runs", async () => {
  const clock = new FakeClock();
  const ran: number[] = [];
  const it = new Debounce({
    ...{ id: "stall", redis: memory({ clock }), wait: 100 },
    callback: (i: number) => void ran.push(i),
  });
  const calls = [1, 2, 3].map((i) => it.call(i));
  await clock.advance(0);
  clock.stall(5_000);
  await clock.advance(0);
  await Promise.all(calls);
  assertEquals(ran, [3]);
});

test("memory() forgets what is over", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const callback = () => {};
  const call = (id: string) =>
    new Debounce({ id, redis: on, wait: 10, callback }).call();
  const first = call("first");
  await clock.advance(20);
  await first;
  const { bursts } = on;
  const number = await bursts!.join("second", 10);
  await clock.advance(60_000);
  const other = await bursts!.join("third", 10);
  assert(other > number);
  // Whose burst nobody remembers runs all the same: U12.
  assertEquals(await bursts!.ask({ key: "second", number, waitMs: 10 }), "run");
});

test("on a server calls that keep coming run, and leave no key", async () => {
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using opened = await open(server.url);
  await server.command("FLUSHALL");
  const wait = 300;
  const runs: number[] = [];
  const it = new Debounce({
    ...{ id: "steady", redis: opened.client, wait },
    callback: () => void runs.push(performance.now()),
  });
  const calls: Promise<void>[] = [];
  const begun = performance.now();
  while (performance.now() - begun < 1_800) {
    calls.push(it.call());
    await sleep(40);
  }
  const meanwhile = runs.length;
  await Promise.all(calls);
  assert(meanwhile >= 3, `${meanwhile} runs`); // 4, on a machine with time
  for (let i = 1; i < runs.length; i++) {
    // As the server told it, so a little of this is the way of its word.
    assert(runs[i] - runs[i - 1] > wait - 100, `${runs[i] - runs[i - 1]} ms`);
  }
  const keys = await server.command("KEYS", "*") as string[];
  assertEquals(keys, ["{steady}:burst"]);
  const leftMs = Number(await server.command("PTTL", keys[0])); // U13
  assert(leftMs > 0 && leftMs <= 4 * wait + 10_000, `${leftMs} ms`);
});

test("what the server forgot runs all the same", async () => { // U12
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  await using opened = await open(server.url);
  const ran: number[] = [];
  const it = new Debounce({
    ...{ id: "forgotten", redis: opened.client, wait: 300 },
    callback: (i: number) => void ran.push(i),
  });
  const calls = [1, 2, 3].map((i) => it.call(i));
  await sleep(100);
  await server.command("FLUSHALL");
  await Promise.all(calls);
  assertEquals(ran.at(-1), 3);
});

/** Starts a process that calls a debounced function. */
function caller(id: string, waitMs: number): Script {
  const file = new URL("./debouncer.ts", import.meta.url);
  return spawnScript(file, [server.url, id, waitMs]);
}

test("one of several processes runs, by the last arguments", async () => {
  await using a = caller("processes", 600);
  await using b = caller("processes", 600);
  const both = [a, b];
  const last = () => server.command("HGET", "{processes}:burst", "last");
  await Promise.all(both.map((one) => one.next("ready")));
  for (let i = 0; i < 4; i++) {
    const before = await last();
    both[i % 2].send({ call: i });
    await until("it has joined", async () => await last() !== before);
  }
  for (let i = 0; i < 2; i++) {
    for (const one of both) await one.next("done");
  }
  a.send({ end: true });
  b.send({ end: true });
  const ran = await Promise.all(both.map((one) => one.next("ran")));
  assertEquals(ran.map(({ args }) => args), [[], [3]]);
});

test("who waits stands in for a process that died", async () => { // U12
  await using a = caller("dead", 800);
  await using b = caller("dead", 800);
  await Promise.all([a.next("ready"), b.next("ready")]);
  const last = () => server.command("HGET", "{dead}:burst", "last");
  a.send({ call: 1 });
  await until("a has joined", last);
  const first = await last();
  b.send({ call: 2 });
  await until("b has joined", async () => await last() !== first);
  b.kill();
  await b.exited;
  await a.next("done");
  a.send({ end: true });
  assertEquals((await a.next("ran")).args, [1]);
});

test("a server's failure rejects the call", async () => {
  const own = await startRedis();
  const { open } = clients.find(({ name }) => name === "ioredis")!;
  const { client, close } = await open(own.url, { offline: "fail" });
  const it = new Debounce({
    ...{ id: "down", redis: client, wait: 1_000 },
    callback: () => {},
  });
  const call = it.call();
  // Looked at once the server is gone.
  call.catch(() => {});
  await until("joined", () => own.command("EXISTS", "{down}:burst"));
  await own.kill();
  await assertRejects(() => call, LockBackendError);
  await assertRejects(() => it.call(), LockBackendError);
  await close();
  await own.stop();
});

test("a call stands in for a later one of its process that joined, and failed", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { join } = on.bursts!;
  let joined = 0;
  on.bursts!.join = async (...args) => {
    const number = await join.apply(on.bursts, args);
    if (++joined === 2) throw new LockBackendError("k", "no answer");
    return number;
  };
  const ran: string[] = [];
  const callback = (text: string) => void ran.push(text);
  const debounce = new Debounce({ id: "k", redis: on, wait: 1_000, callback });
  const first = debounce.call("first");
  await clock.advance(500);
  await assertRejects(() => debounce.call("second"), LockBackendError);
  await clock.advance(10_000);
  await first;
  assertEquals(ran, ["first"]);
});

test("a bad configuration is refused", () => {
  const on: Backend = memory();
  const bad = (
    config: object,
    error: typeof TypeError | typeof RangeError,
    text: string,
  ) =>
    assertThrows(
      () => {
        const good = { id: "bad", redis: on, callback: () => {} };
        new Debounce({ ...good, ...config } as never);
      },
      error,
      text,
    );
  bad({ id: "" }, RangeError, "id");
  bad({ redis: {} }, TypeError, "on");
  bad({ redis: redlock([on, memory(), memory()]) }, TypeError, "quorum");
  bad({ wait: "1" }, TypeError, "wait");
  for (const wait of [-1, NaN, Infinity]) bad({ wait }, RangeError, "wait");
  bad({ callback: 7 }, TypeError, "callback");
});

test("the wait is a second unless it is given", async () => {
  const clock = new FakeClock();
  let ran = 0;
  const redis = memory({ clock });
  const it = new Debounce({ id: "default", redis, callback: () => ran++ });
  const call = it.call();
  await clock.advance(999);
  assertEquals(ran, 0);
  await clock.advance(1);
  assertEquals(ran, 1);
  await call;
});
