/** The examples do what they say, also when it gets crowded. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { acquireLock, lockKey, type LockTarget } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { createServer } from "node:http";

import { runOnce } from "../../examples/cron_job.ts";
import {
  type Bank,
  openRedis,
  withdrawals,
} from "../../examples/withdrawal.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { spawnScript } from "../support/process.ts";
import { redisMissing, startRedis } from "../support/redis_server.ts";
import { test, type TestOptions } from "../support/test.ts";

const missing = redisMissing();
function serverTest(
  name: string,
  fn: () => Promise<void>,
  options: TestOptions,
): void {
  missing ? test.unavailable(name, missing) : test(name, fn, options);
}

const cronJob = new URL("../../examples/cron_job.ts", import.meta.url);
const timeoutMs = 30_000;

serverTest(
  "cron: of three hosts at once one runs the job, two go home quietly",
  async () => {
    await using server = await startRedis();
    const host = async () => {
      await using script = spawnScript(cronJob, [], { REDIS_URL: server.url });
      const { code } = await script.exited;
      return { code, output: script.stderr };
    };
    const three = await Promise.all([host(), host(), host()]);
    // One whose clock is late comes when the job is done.
    const all = [...three, await host()];
    assertEquals(all.map(({ code }) => code), [0, 0, 0, 0]);
    const [output, ...more] = all.map(({ output }) => output).filter(Boolean);
    assertEquals(more, []);
    assertEquals(output.match(/page/g)?.length, 3);
    // Nothing stays that would not go by itself, and soon.
    const [key] = await server.command("KEYS", "*") as string[];
    const left = Number(await server.command("PTTL", key));
    assert(left > 0 && left <= 60_000, `${key} stays for ${left} ms`);
  },
  { timeoutMs },
);

test("cron: by hand, without a server, it runs in memory", async () => {
  await using script = spawnScript(cronJob, [], { REDIS_URL: "" });
  assertEquals((await script.exited).code, 0, script.stderr);
  assertEquals(script.stderr.match(/page/g)?.length, 3);
}, { timeoutMs });

const isFree = async (on: LockTarget) => {
  const lock = await acquireLock(on, lockKey("cron", "job"), {
    throwOnFail: false,
  });
  await lock?.release();
  return lock !== null;
};

test("cron: a short job keeps the others out for its time, a long one is done", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  let runs = 0;
  const job = () => void runs++;
  assertEquals(await runOnce(on, "job", job), true);
  await clock.advance(59_000);
  assertEquals(await runOnce(on, "job", job), false);
  await clock.advance(1_000);
  const spell = { atLeast: 0, atMost: 600 };
  assertEquals(await runOnce(on, "job", job, spell), true);
  assertEquals(runs, 2);
  assertEquals(await isFree(on), true);
});

test("cron: a job that fails can be started again at once", async () => {
  const on = memory();
  const job = () => Promise.reject(new Error("no paper"));
  await assertRejects(() => runOnce(on, "job", job), Error, "no paper");
  assertEquals(await isFree(on), true);
});

/** A bank as naive as they come, slow enough to be robbed. */
function openBank(balances: Record<string, number>, pauseMs = 2) {
  const pause = () => new Promise((done) => setTimeout(done, pauseMs));
  return {
    balances,
    async balance(user: string) {
      const balance = balances[user];
      await pause();
      return balance;
    },
    async setBalance(user: string, balance: number) {
      await pause();
      balances[user] = balance;
    },
  };
}

/** A server with these withdrawals; `withdraw` asks it. */
async function open(on: LockTarget, bank: Bank) {
  const server = createServer(withdrawals(on, bank));
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const address = server.address();
  const port = typeof address === "object" && address ? address.port : 0;
  return {
    async withdraw(user: string, amount: number | string) {
      const query = new URLSearchParams({ user, amount: `${amount}` });
      const response = await fetch(
        `http://127.0.0.1:${port}/withdraw?${query}`,
        { method: "POST", headers: { connection: "close" } },
      );
      return {
        status: response.status,
        retryAfter: response.headers.get("retry-after"),
        body: await response.json(),
      };
    },
    async [Symbol.asyncDispose]() {
      await new Promise((done) => server.close(done));
    },
  };
}

serverTest(
  "withdrawal: parallel ones on two servers never overdraw",
  async () => {
    await using redisServer = await startRedis();
    const clients = [
      await openRedis(redisServer.url),
      await openRedis(redisServer.url),
    ];
    try {
      const bank = openBank({ ann: 100, bob: 65 });
      await using one = await open(clients[0], bank);
      await using two = await open(clients[1], bank);
      let refusals = 0;
      const insist = async (index: number) => {
        const server = index % 2 ? one : two;
        const user = index % 4 < 2 ? "ann" : "bob";
        for (;;) {
          const { status, retryAfter } = await server.withdraw(user, 30);
          if (status !== 423) return `${user} ${status}`;
          // We come back sooner than it says, to make it a crowd.
          assertMatch(retryAfter ?? "", /^[1-5]$/);
          refusals++;
          await new Promise((done) => setTimeout(done, Math.random() * 20));
        }
      };
      const outcomes = await Promise.all(
        Array.from({ length: 24 }, (_, i) => insist(i)),
      );
      const count = (what: string) => outcomes.filter((o) => o === what).length;
      assertEquals(count("ann 200"), 3);
      assertEquals(count("ann 409"), 9);
      assertEquals(count("bob 200"), 2);
      assertEquals(count("bob 409"), 10);
      assertEquals(bank.balances, { ann: 10, bob: 5 });
      assert(refusals > 0, "nobody met anybody");
      assertEquals(await redisServer.command("DBSIZE"), 0);
    } finally {
      for (const client of clients) client.disconnect();
    }
  },
  { timeoutMs },
);

test("withdrawal: who comes second is told when to come back", async () => {
  const bank = openBank({ ann: 100, bob: 100 });
  let open1 = () => {};
  const gate = new Promise<void>((done) => open1 = done);
  let arrive = () => {};
  const inside = new Promise<void>((done) => arrive = done);
  await using server = await open(memory(), {
    ...bank,
    async balance(user) {
      if (user === "ann") {
        arrive();
        await gate;
      }
      return await bank.balance(user);
    },
  });
  const first = server.withdraw("ann", 30);
  await inside;
  const second = await server.withdraw("ann", 30);
  assertEquals(second.status, 423);
  assertMatch(second.retryAfter ?? "", /^[1-5]$/);
  assertEquals(second.body.error, "Another withdrawal is under way");
  // Another user has nothing to wait for.
  assertEquals((await server.withdraw("bob", 30)).status, 200);
  open1();
  assertEquals((await first).body, { balance: 70 });
});

serverTest(
  "withdrawal: with the lock server killed it is 503, and no money moves",
  async () => {
    await using redisServer = await startRedis();
    const redis = await openRedis(redisServer.url);
    try {
      const bank = openBank({ ann: 100 });
      await using server = await open(redis, bank);
      assertEquals((await server.withdraw("ann", 30)).status, 200);
      await redisServer.kill();
      const { status, retryAfter } = await server.withdraw("ann", 30);
      assertEquals([status, retryAfter], [503, "1"]);
      assertEquals(bank.balances.ann, 70);
      // And when the server is back, so are we.
      await redisServer.restart();
      let again: number;
      do again = (await server.withdraw("ann", 30)).status; while (
        again === 503
      );
      assertEquals(again, 200);
      assertEquals(bank.balances.ann, 40);
    } finally {
      redis.disconnect();
    }
  },
  { timeoutMs, allowTimers: "what may have been acquired is cleaned up" },
);

test("withdrawal: a lock that runs out while reading stops the write", async () => {
  const clock = new FakeClock();
  const bank = openBank({ ann: 100 });
  await using server = await open(memory({ clock }), {
    ...bank,
    async balance(user) {
      clock.stall(6_000);
      return await bank.balance(user);
    },
  });
  assertEquals((await server.withdraw("ann", 30)).status, 500);
  assertEquals(bank.balances.ann, 100);
});

test("withdrawal: what makes no sense is refused before anything is locked", async () => {
  const bank = openBank({ ann: 100 });
  await using server = await open(memory(), bank);
  for (const amount of ["", "-1", "0", "1.5", "much", "1e999"]) {
    assertEquals((await server.withdraw("ann", amount)).status, 400);
  }
  assertEquals((await server.withdraw("", 30)).status, 400);
  assertEquals((await server.withdraw("ann", 101)).status, 409);
  assertEquals(bank.balances.ann, 100);
});
