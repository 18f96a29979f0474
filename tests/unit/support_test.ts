import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { Buffer } from "node:buffer";
import { createConnection, type Socket } from "node:net";

import { FakeClock } from "../support/fake_clock.ts";
import { spawnScript } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { redisMissing, startRedis } from "../support/redis_server.ts";
import { Onlooker, parseReply } from "../support/resp.ts";
import { besideEachOther, test, watched } from "../support/test.ts";

// So that this file's own timers count as the library's.
const folder = "/tests/unit/support_test.ts";
const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));
const echo = new URL("../support/echo_script.ts", import.meta.url);

test("watched() tells of a timer left behind, and where it was set", async () => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const error = await assertRejects(
    () =>
      watched(() => {
        timer = setTimeout(() => {}, 60_000);
      }, { folder }),
    Error,
    "1 timer(s) left behind",
  );
  clearTimeout(timer);
  assertStringIncludes(error.message, "support_test.ts");
});

test("watched() tells of an interval, and of a timer without a reference", async () => {
  const timers: ReturnType<typeof setTimeout>[] = [];
  await assertRejects(
    () =>
      watched(() => {
        timers.push(setInterval(() => {}, 60_000));
        const timer = setTimeout(() => {}, 60_000);
        (timer as unknown as { unref?(): void }).unref?.();
        timers.push(timer);
      }, { folder }),
    Error,
    "2 timer(s) left behind",
  );
  for (const timer of timers) clearTimeout(timer);
});

test("watched() is content with timers fired, cleared, allowed or not ours", async () => {
  await watched(async () => {
    clearTimeout(setTimeout(() => {}, 60_000));
    clearTimeout(Number(setTimeout(() => {}, 60_000)));
    clearInterval(setInterval(() => {}, 60_000));
    await sleep(1);
  }, { folder });
  let timer: ReturnType<typeof setTimeout> | undefined;
  const leak = () => {
    timer = setTimeout(() => {}, 60_000);
  };
  await watched(leak, { folder, allowTimers: "this is about the option" });
  clearTimeout(timer);
  await watched(leak, { folder: "/nowhere/" });
  clearTimeout(timer);
});

test("a patched timer calls back with its arguments, and repeats", async () => {
  const given = await new Promise((done) =>
    setTimeout((...args: unknown[]) => done(args), 1, "a", 2)
  );
  assertEquals(given, ["a", 2]);
  let ticks = 0;
  await new Promise<void>((done) => {
    const timer = setInterval(() => {
      if (++ticks < 3) return;
      clearInterval(timer);
      done();
    }, 1);
  });
});

test("watched() passes on what the test throws, at once or later", async () => {
  await assertRejects(
    () =>
      watched(() => {
        throw new TypeError("at once");
      }),
    TypeError,
    "at once",
  );
  await assertRejects(
    () => watched(() => sleep(1).then(() => Promise.reject(new Error("late")))),
    Error,
    "late",
  );
});

test("watched() ends a test that does not end", async () => {
  await assertRejects(
    () => watched(() => new Promise(() => {}), { timeoutMs: 10 }),
    Error,
    "Not done after 10 ms",
  );
});

test("besideEachOther() begins all with the first, and each has its own end", async () => {
  const seen: string[] = [];
  let meet = () => {};
  const met = new Promise<void>((done) => meet = done);
  const [first, second, third] = besideEachOther([
    () => met.then(() => seen.push("first")),
    () => sleep(1).then(() => Promise.reject(new Error("second"))),
    () => {
      seen.push("third");
      meet();
    },
  ], () => seen.push("finale"));
  assertEquals(seen, []);
  await first();
  await assertRejects(second, Error, "second");
  await third();
  assertEquals(seen, ["third", "first", "finale"]);
});

test("besideEachOther() begins the next when one is done, where so told", async () => {
  const inside = new Set<number>();
  const most: number[] = [];
  const fns = [0, 1, 2, 3, 4].map((i) => async () => {
    inside.add(i);
    most.push(inside.size);
    await sleep(1);
    inside.delete(i);
    if (i === 1) throw new Error("one");
  });
  const runs = besideEachOther(fns, () => {}, { atOnce: 2 });
  const ends = await Promise.allSettled(runs.map((run) => run()));
  assertEquals(most, [1, 2, 2, 2, 2]);
  const failed = ends.map(({ status }) => status === "rejected");
  assertEquals(failed, [false, true, false, false, false]);
});

test("besideEachOther() tells at the end of what was left behind", async () => {
  const idle = () => {};
  let timer: ReturnType<typeof setTimeout> | undefined;
  const leak = () => {
    timer = setTimeout(() => {}, 60_000);
  };
  const runs = besideEachOther([leak, idle], idle, { folder });
  await runs[0]();
  await assertRejects(runs[1], Error, "1 timer(s) left behind");
  clearTimeout(timer);
  const [only] = besideEachOther([idle], () => {
    throw new Error("finale");
  });
  await assertRejects(only, Error, "finale");
});

test("besideEachOther() ends what does not end", async () => {
  const never = () => new Promise(() => {});
  const limit = { timeoutMs: 10 };
  const runs = besideEachOther([never, () => {}], () => {}, limit);
  await assertRejects(runs[0], Error, "Not done after 10 ms");
  await assertRejects(runs[1], Error, "Not done after 10 ms");
});

test("FakeClock fires due timers in order, each at its own instant", async () => {
  const clock = new FakeClock();
  const seen: [string, number][] = [];
  const note = (name: string) => () => void seen.push([name, clock.now()]);
  clock.setTimer(note("late"), 30);
  clock.setTimer(note("early"), 10);
  clock.setTimer(note("early too"), 10);
  const cancel = clock.setTimer(note("never"), 20);
  clock.setTimer(async () => {
    note("outer")();
    await Promise.resolve();
    clock.setTimer(note("inner"), 5);
  }, 12);
  cancel();
  assertEquals(clock.pending, 4);
  assertEquals(clock.nextInMs, 10);
  await clock.advance(29);
  assertEquals(seen, [["early", 10], ["early too", 10], ["outer", 12], [
    "inner",
    17,
  ]]);
  assertEquals(clock.pending, 1);
  await clock.advance(1);
  assertEquals(seen.at(-1), ["late", 30]);
  assertEquals(clock.nextInMs, undefined);
});

test("FakeClock tells a stall, a suspended machine and a clock step apart", async () => {
  const clock = new FakeClock(1_000);
  let fired = 0;
  clock.setTimer(() => fired++, 10);
  clock.stall(50);
  assertEquals([clock.now(), clock.wall(), fired], [50, 1_050, 0]);
  clock.suspend(100);
  assertEquals([clock.now(), clock.wall(), fired], [50, 1_150, 0]);
  clock.stepWall(-500);
  assertEquals([clock.now(), clock.wall(), fired], [50, 650, 0]);
  await clock.advance(0);
  assertEquals([clock.now(), clock.wall(), fired], [50, 650, 1]);
});

test("parseReply() reads every kind of reply, and waits for the rest", () => {
  const bytes = Buffer.from(
    "*6\r\n+OK\r\n:-7\r\n$-1\r\n$4\r\n\u00e9\u00e9\r\n-ERR no\r\n*-1\r\n",
  );
  for (let size = 0; size < bytes.length; size++) {
    assertEquals(parseReply(bytes.subarray(0, size)), undefined);
  }
  const all = parseReply(bytes);
  assertEquals(all?.end, bytes.length);
  assertEquals(String(all?.value), "OK,-7,,\u00e9\u00e9,Error: ERR no,");
});

const missing = redisMissing();
function serverTest(name: string, fn: () => Promise<void>): void {
  missing ? test.unavailable(name, missing) : test(name, fn);
}

serverTest(
  "startRedis() starts, is frozen and thawed, and is killed",
  async () => {
    await using server = await startRedis();
    assertEquals(await server.command("PING"), "PONG");
    assertEquals(await server.command("SET", "k", 1, "NX"), "OK");
    assertEquals(await server.command("SET", "k", 2, "NX"), null);
    assertEquals(await server.command("INCR", "k"), 2);
    assertEquals(await server.command("MGET", "k", "none"), ["2", null]);
    await assertRejects(
      () => server.command("LPUSH", "k", "x"),
      Error,
      "WRONGTYPE",
    );

    server.freeze();
    const answer = server.command("PING");
    assertEquals(await Promise.race([answer, sleep(100)]), undefined);
    server.thaw();
    assertEquals(await answer, "PONG");

    const { pid } = server;
    await server.kill();
    await assertRejects(() => server.command("PING"), Error);
    await server.restart();
    assertEquals(await server.command("GET", "k"), null);
    assert(server.pid !== pid);
  },
);

serverTest(
  "startRedis() ends a frozen server, and leaves no process",
  async () => {
    const server = await startRedis();
    server.freeze();
    await server.stop();
    await server.stop();
    await assertRejects(() => server.command("PING"), Error);
  },
);

serverTest(
  "startRedis() asks for the password and keeps data when told to",
  async () => {
    await using server = await startRedis({
      password: "se:cret",
      args: ["--appendonly", "yes"],
    });
    assertMatch(server.url, /^redis:\/\/:se%3Acret@127\.0\.0\.1:\d+$/);
    await server.command("SET", "k", "kept");
    const { port } = server;
    await server.restart();
    assertEquals(server.port, port);
    assertEquals(await server.command("GET", "k"), "kept");
    const stranger = new Onlooker(port);
    await assertRejects(() => stranger.ask("GET", "k"), Error, "NOAUTH");
    stranger.close();
  },
);

serverTest("startProxy() passes on what both sides say", async () => {
  await using server = await startRedis();
  await using proxy = await startProxy(server.port);
  const client = new Onlooker(proxy.port);
  assertEquals(await client.ask("SET", "k", "v"), "OK");
  proxy.delayReplies(50);
  const order: string[] = [];
  await Promise.all([
    client.ask("GET", "k").then((value) => order.push(`delayed ${value}`)),
    server.command("GET", "k").then((value) => order.push(`direct ${value}`)),
  ]);
  assertEquals(order, ["direct v", "delayed v"]);
  assertEquals(proxy.requests, [["SET", "k", "v"], ["GET", "k"]]);
  assertStringIncludes(proxy.seen, "$3\r\nGET\r\n");
  assertEquals(proxy.connections, 1);
  client.close();
});

serverTest("startProxy() loses a reply after the write, once", async () => {
  await using server = await startRedis();
  await using proxy = await startProxy(server.port);
  const client = new Onlooker(proxy.port);
  const happened = proxy.dropRepliesAfter("lost-key");
  assertEquals(await client.ask("INCR", "other"), 1);
  // Sent in one go: the reply that is lost is not the first on its way.
  const replies = await Promise.allSettled([
    client.ask("INCR", "other"),
    client.ask("INCR", "lost-key"),
    client.ask("INCR", "never-sent"),
  ]);
  await happened;
  assertEquals(replies[1].status, "rejected");
  assertEquals(replies[2].status, "rejected");
  assertEquals(await server.command("GET", "lost-key"), "1");
  assertEquals(await server.command("GET", "never-sent"), null);
  assertEquals(await client.ask("INCR", "lost-key"), 2);
  client.close();
});

serverTest("startProxy() cuts, refuses and holds connections", async () => {
  await using server = await startRedis();
  await using proxy = await startProxy(server.port);
  const client = new Onlooker(proxy.port);
  await client.ask("PING");

  proxy.hold(true);
  const answer = client.ask("INCR", "k");
  assertEquals(await Promise.race([answer, sleep(50)]), undefined);
  assertEquals(await server.command("GET", "k"), null);
  proxy.hold(false);
  assertEquals(await answer, 1);

  const idle = await connected(proxy.port);
  const closed = new Promise((done) => idle.on("close", done));
  proxy.cut();
  await closed;
  proxy.refuse(true);
  await assertRejects(() => client.ask("PING"), Error);
  proxy.refuse(false);
  assertEquals(await client.ask("PING"), "PONG");
  client.close();
});

test("spawnScript() talks with a second process, which can be killed", async () => {
  await using script = spawnScript(echo, ["a b", 7], { WORD: "w" });
  const ready = await script.next("ready");
  assertEquals(ready.pid, script.pid);
  assertEquals([ready.args, ready.word], [["a b", "7"], "w"]);
  script.send({ n: 1 });
  assertEquals(await script.next(), { type: "echo", message: { n: 1 } });
  script.send({ n: 2 });
  await assertRejects(() => script.next("other", 100), Error, "in 100 ms");
  assertEquals((await script.next("echo")).message, { n: 2 });

  script.kill("SIGSTOP");
  script.send({ n: 3 });
  await assertRejects(() => script.next("echo", 100), Error, "in 100 ms");
  script.kill("SIGCONT");
  assertEquals((await script.next("echo")).message, { n: 3 });

  script.kill();
  assertEquals((await script.exited).signal, "SIGKILL");
  await assertRejects(() => script.next(), Error, "SIGKILL");
});

test("spawnScript() tells what a failing script said last", async () => {
  await using script = spawnScript(new URL("none.ts", echo));
  await assertRejects(() => script.next(), Error, "none.ts");
});

function connected(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ host: "127.0.0.1", port });
    socket.on("error", reject);
    socket.on("connect", () => resolve(socket));
  });
}
