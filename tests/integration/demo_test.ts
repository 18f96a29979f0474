/** The demo as a whole: it ends well, ends when told to, and leaves nothing. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";

import {
  type Event,
  handOvers,
  overlaps,
  overtakings,
  turnsOf,
} from "../../demo/check.ts";
import { type Script, spawnScript } from "../support/process.ts";
import {
  redisMissing,
  type RedisServer,
  startRedis,
} from "../support/redis_server.ts";
import { test } from "../support/test.ts";

const main = new URL("../../demo/main.ts", import.meta.url);
/** No program is here to be found. */
const NOWHERE = { PATH: "/nonexistent", REDIS_URL: "" };
const PASSWORD = "p4ss of nobody";
/** It takes what it takes: mostly the ttl of the one who is killed. */
const timeoutMs = 60_000;

/** Runs the demo for `seconds`: its exit code, and all that it said. */
async function run(seconds: number, env: Record<string, string>) {
  await using script = spawnScript(main, [seconds], env);
  const { code } = await script.exited;
  // What is no JSON, the script keeps with what went to stderr.
  return { code, output: script.stderr };
}

/** Record in short: `".a +a -a +b †b"`. */
function record(text: string): Event[] {
  const kinds = {
    ".": "come",
    "!": "refused",
    "+": "enter",
    "-": "leave",
    "?": "lost",
    "†": "dead",
  };
  return text.split(" ").map(([kind, who], at) => ({
    who,
    what: kinds[kind as keyof typeof kinds] as Event["what"],
    at,
  }));
}

const clashes = (text: string) =>
  overlaps(turnsOf(record(text))).map(([a, b]) => a.who + b.who);

test("the demo's check finds two at once, however they meet", () => {
  assertEquals(clashes("+a +b -a -b"), ["ab"]);
  assertEquals(clashes("+a +b -b -a"), ["ab"]);
  assertEquals(clashes("+a +b -b +c -c -a"), ["ab", "ac"]);
  assertEquals(clashes("+a -a +b +c †b -c"), ["bc"]);
  assertEquals(clashes("+a +b -b"), ["ab"]); // a is inside to this day
});

test("the demo's check is content with turns one after the other", () => {
  assertEquals(clashes("+a -a +b -b +a -a"), []);
  assertEquals(clashes("+a †a +b -b"), []);
  assertEquals(clashes("+a -a †a +b -b"), []);
  // Told that its time is up, however late it says so.
  assertEquals(clashes("+a +b ?a -b"), []);
  assertEquals(turnsOf(record("+a -a +b †b")).length, 2);
});

const pushers = (text: string) =>
  overtakings(record(text)).map(([who, whom]) => who + whom);

test("the demo's check finds who went in before others who had come sooner", () => {
  assertEquals(pushers(".a .b +b -b +a -a"), ["ba"]);
  assertEquals(pushers(".a +a .b .c .d -a +d -d +b -b +c"), ["db", "dc"]);
  assertEquals(pushers(".a +a .b -a .a +a -a +b"), ["ab"]);
  assertEquals(pushers(".a .b .c †a +c -c +b"), ["cb"]);
  assertEquals(pushers(".a .b +c -c +a -a +b"), ["ca", "cb"]);
  assertEquals(pushers(".a +b"), ["ba"]); // a waits to this day
});

test("the demo's check is content with turns in order of arrival", () => {
  assertEquals(pushers(".a +a .b .c -a .a +b -b +c -c +a -a"), []);
  assertEquals(pushers(".a +a .b .c †b -a +c †c .a +a"), []);
  assertEquals(pushers(".a +a .b .c !b -a +c -c .b +b"), []);
  assertEquals(pushers("+a !b -a +b !a -b"), []);
});

test("the demo's hand-overs are to those who were waiting", () => {
  const pairs = (text: string) =>
    handOvers(turnsOf(record(text))).map(([a, b]) => a.who + b.who);
  assertEquals(pairs(".a +a .b .c -a +b -b +c -c"), ["ab", "bc"]);
  assertEquals(pairs(".a +a -a .b +b -b +c -c"), []); // nobody was there yet
  assertEquals(pairs(".a +a .b .c †a +b ?b +c -c"), []); // not given by anybody
  assertEquals(pairs(".a +a .b -a +b -b †a .c +c"), ["ab"]);
  assertEquals(pairs(".a +a .b !b -a +b"), []);
});

/** What a run that went well has to say. */
function assertWell({ code, output }: { code: number | null; output: string }) {
  assertEquals(code, 0, output);
  assertMatch(output, /never two at once: \d+ turns checked/);
  assertMatch(output, /refused \d\.\d\d s/);
  assertMatch(output, /waits: place [123]/);
  assertMatch(output, /enters \+\d+ ms/);
  assertMatch(output, /in order of arrival: \d+ turns checked/);
  assertMatch(output, /typically [\d,]+ ms from one to the next/);
  assertMatch(output, /'s death inside cost [\d,]+ ms/);
  // Had it been given the lock, then a lease.
  const [, cost] = /'s death in line cost ([\d,]+) ms/.exec(output) ?? [];
  assert(Number(cost?.replace(",", "")) < 2_000, `${cost} ms: ${output}`);
  assertEquals(
    output.match(/ (?:SIGKILL|plays dead) at \d+\.\d\d s$/gm)?.length,
    2,
  );
  assertStringIncludes(output, "nothing left behind");
  const [, total] = /all +(\d+) +\d+/.exec(output) ?? [];
  assertStringIncludes(output, `never two at once: ${total} turns checked`);
  // deno-lint-ignore no-control-regex
  assertEquals(/\x1b/.test(output), false, "colours, though it's no terminal");
  for (const line of output.split("\n")) assert(line.length <= 80, line);
}

test("the demo gives up on a server that cannot be reached", async () => {
  const url = `redis://:${encodeURIComponent(PASSWORD)}@127.0.0.1:1`;
  const { code, output } = await run(3, { REDIS_URL: url });
  assertEquals(code, 1, output);
  assertStringIncludes(output, "cannot be reached (ECONNREFUSED)");
  assertNoPassword(output);
}, { timeoutMs });

function assertNoPassword(output: string) {
  for (const form of [PASSWORD, encodeURIComponent(PASSWORD)]) {
    assertEquals(output.includes(form), false, "it shows the password");
  }
}

/** Nobody is connected but us, and not one key is there. */
async function assertBare(server: RedisServer) {
  assertEquals(await server.command("KEYS", "*"), []);
  await until(async () => await connections(server) === 1);
}

async function connections(server: RedisServer): Promise<number> {
  return String(await server.command("CLIENT", "LIST")).trim().split("\n")
    .length;
}

async function until(isSo: () => Promise<boolean>): Promise<void> {
  // The test's own limit is the one that counts.
  while (!await isSo()) await new Promise((done) => setTimeout(done, 20));
}

/** Whether somebody is inside or waits. */
async function isBusy(server: RedisServer): Promise<boolean> {
  const keys = await server.command("KEYS", "*lock:demo:*") as string[];
  return keys.some((key) => !key.endsWith(":book"));
}

/** Whether somebody waits while another is inside. */
async function isQueued(server: RedisServer): Promise<boolean> {
  const lines = await server.command("KEYS", "{lock:demo:*}:line");
  return (lines as string[]).length > 0;
}

const missing = redisMissing();
/** Whole runs, and the ways in which it ends early: they wait more than they do. */
const runs: [name: string, fn: () => Promise<void>][] = [];

/** One that needs a server. */
function serverRun(name: string, fn: () => Promise<void>): void {
  if (missing) test.unavailable(name, missing);
  else runs.push([name, fn]);
}

runs.push([
  "the demo runs in memory, and says so, where there is no server",
  async () => {
    const result = await run(3, NOWHERE);
    assertWell(result);
    assertStringIncludes(result.output, "memory()");
    assertStringIncludes(result.output, "On no server: no Redis-compatible");
  },
]);

serverRun(
  "the demo runs on the server of REDIS_URL and leaves it bare",
  async () => {
    await using server = await startRedis({ password: PASSWORD });
    const result = await run(3, { REDIS_URL: server.url });
    assertWell(result);
    assertMatch(
      result.output,
      /processes take turns.*\nServer: \w+ [\d.]+, the one/,
    );
    assertMatch(result.output, /╳ SIGKILL/);
    assertNoPassword(result.output);
    await assertBare(server);
  },
);

serverRun("the demo starts a server of its own, and stops it", async () => {
  const result = await run(3, { REDIS_URL: "" });
  assertWell(result);
  const [, port] = /started for this on port (\d+)/.exec(result.output) ?? [];
  // If it is gone, the port is to be had.
  await using server = await startRedis({ port: Number(port) });
  await assertBare(server);
});

// Not all at the same time: each starts some processes.
test.sideBySide(runs.splice(0));

runs.push(["SIGINT ends the demo in memory, too", async () => {
  await using script = spawnScript(main, [60], NOWHERE);
  await until(() => Promise.resolve(script.stderr.includes("waits: place")));
  script.kill("SIGINT");
  const { code } = await script.exited;
  assertEquals(code, 130, script.stderr);
  assertStringIncludes(script.stderr, "Stopped.");
}]);

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  serverRun(
    `${signal} ends the demo, its workers and their lock`,
    async () => {
      await using server = await startRedis();
      await using script: Script = spawnScript(main, [60], {
        REDIS_URL: server.url,
      });
      await until(() => isQueued(server));
      script.kill(signal);
      const { code } = await script.exited;
      assertEquals(code, 130, script.stderr);
      assertStringIncludes(script.stderr, "Stopped.");
      await assertBare(server);
    },
  );
}

test.sideBySide(runs);

const killed = "the workers go home when the demo itself is killed";
if (missing) test.unavailable(killed, missing);
else {
  test(killed, async () => {
    await using server = await startRedis();
    await using script = spawnScript(main, [60], { REDIS_URL: server.url });
    await until(() => isQueued(server));
    script.kill("SIGKILL");
    await until(async () => await connections(server) === 1);
    await until(async () => !await isBusy(server));
    // Nobody is left to delete the book, so it goes by itself.
    for (const key of await server.command("KEYS", "*") as string[]) {
      assert(Number(await server.command("PTTL", key)) > 0, `${key} stays`);
    }
  }, { timeoutMs });
}
