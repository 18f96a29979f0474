/** `ls`, `show`, `watch` and `free`, as a person or a script would use them. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import process from "node:process";

import { acquireLock, type DistributedLock } from "@dreamer/utils/lock";
import { clients, type OpenClient } from "../../tests/support/clients.ts";
import {
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import { after, before, test } from "../../tests/support/test.ts";
import { until } from "../../tests/support/until.ts";
import { asked, type Cli, lockCli, START, testFew } from "./support/cli.ts";
import { openTerminal, terminalMissing, word } from "./support/terminal.ts";

let server: RedisServer;
let other: OpenClient;
let env: { REDIS_URL: string };
before(async () => {
  server = await startRedis();
  other = await clients[0].open(server.url);
  env = { REDIS_URL: server.url };
});
after(async () => {
  await other.close();
  await server.stop();
});

/** Holds `key`, as any program with the library may. */
function hold(key: string, label: string): Promise<DistributedLock> {
  const options = { label, autoExtend: true, fencing: true };
  return acquireLock(other.client, key, options);
}

/** Stands in line for `key` until it is disposed of. */
async function wait(key: string, label: string): Promise<AsyncDisposable> {
  const controller = new AbortController();
  const { signal } = controller;
  const options = { label, signal, waitMs: Infinity, localTurns: 0 };
  const ended = acquireLock(other.client, key, options).then(
    (lock) => lock.release(),
    () => {},
  );
  const line = `{${key}}:line`;
  await until(
    `${label} is in line`,
    async () => Number(await server.command("ZCARD", line)) > 0,
  );
  return {
    async [Symbol.asyncDispose]() {
      controller.abort();
      await ended;
    },
  };
}

/** Has the program hold `key` until it is disposed of. */
async function run(key: string, label: string): Promise<Cli> {
  const own = ["--label", label, "--ttl", "6s"];
  const args = ["run", key, ...own, "--", "sh", "-c", "echo up; cat"];
  const cli = lockCli(args, { env, isOpen: true });
  await cli.says(/up/);
  return cli;
}

const look = (...args: string[]) => asked(args, { env });

testFew([
  ["ls is a table of who holds what, by pattern", async () => {
    await using _ = await hold("a:2", "web-2");
    await using _1 = await hold("a:1", "web-1");
    await using _2 = await wait("a:1", "web-3");
    const { code, stdout, stderr } = await look("ls", "a:*");
    assertEquals([code, stderr], [0, ""]);
    const time = "(\\d+ms|\\d+s)";
    assertMatch(
      stdout,
      new RegExp(
        `^KEY  HOLDER +HELD +LEFT +LINE\n` +
          `a:1  web-1 +${time} +${time} +1\n` +
          `a:2  web-2 +${time} +${time} +0\n$`,
      ),
    );
    assertEquals((await look("ls", "-q", "a:*")).stdout, "a:1\na:2\n");
    const [first, second] = JSON.parse(
      (await look("ls", "--json", "a:*")).stdout,
    );
    assertEquals([first.key, first.label, first.waiting], [
      "a:1",
      "web-1",
      1,
    ]);
    assertEquals(first.line[0].label, "web-3");
    assertEquals([second.key, second.held], ["a:2", true]);
    assert(second.heldMs > 0 && second.remainingMs > 0);
    assertEquals(await look("ls", "b:*"), {
      code: 0,
      stdout: "",
      stderr: "",
    });
  }],

  [
    "a key that is a URL is shown as it is, a label without logins",
    async () => {
      const key = "crawl:https://example.com/@me/post";
      const label = "see redis://:hunter2@localhost";
      const shown = "see redis://***@localhost";
      await using _ = await hold(key, label);
      await using _1 = await wait(key, label);
      assertEquals((await look("ls", "-q", "crawl:*")).stdout, `${key}\n`);
      const told = [];
      for (const args of [["ls", "crawl:*"], ["show", key]]) {
        const { code, stdout } = await look(...args);
        assertEquals(code, 0);
        assertStringIncludes(stdout, key);
        assertStringIncludes(stdout, shown);
        const json = await look(...args, "--json");
        told.push(...[JSON.parse(json.stdout)].flat());
        assertEquals(`${stdout}${json.stdout}`.includes("hunter2"), false);
      }
      for (const info of told) {
        assertEquals([info.key, info.label], [key, shown]);
        assertEquals(info.line[0].label, shown);
      }
      const taken = await look("run", "-n", key, "--", "true");
      assertStringIncludes(
        taken.stderr,
        `lock-cli: "${key}" is taken: held by ${shown} for `,
      );
      const json = await look("run", "-n", "--json", key, "--", "true");
      const { event, ...rest } = JSON.parse(json.stderr);
      assertEquals([event, rest.key, rest.label], ["taken", key, shown]);
    },
  ],

  ["ls leaves out what other programs keep, unless told --all", async () => {
    await server.command("SET", "c:cache", "a value", "PX", 60_000);
    await server.command("SET", "c:\x1b[2J", "for good");
    await server.command("LPUSH", "c:list", "no string");
    assertEquals((await look("ls", "c:*")).stdout, "");
    const { stdout } = await look("ls", "--all", "c:*");
    assertMatch(
      stdout,
      /^KEY +HOLDER.*\nc:\?\[2J +another program +for good +0\nc:cache +another program +\d+s +0\n$/,
    );
    const [, cache] = JSON.parse(
      (await look("ls", "-a", "--json", "c:*")).stdout,
    );
    assertEquals([cache.key, cache.isForeign], ["c:cache", true]);
  }],

  [
    "show tells all of one lock, and by its exit code whether it is held",
    async () => {
      {
        await using _ = await hold("shown", "web-1");
        await using _1 = await wait("shown", "web-2");
        const { code, stdout, stderr } = await look("show", "shown");
        const token = await server.command("GET", "{shown}:fence");
        assertEquals([code, stderr], [0, ""]);
        assertMatch(
          stdout,
          new RegExp(
            `^key        shown\nholder     web-1\n` +
              `held       \\S+, since [\\d :-]+\n` +
              `remaining  \\S+, unless renewed\n` +
              `token      ${token}\nline       1\n` +
              `  1        web-2, for \\S+\n$`,
          ),
        );
        const info = JSON.parse(
          (await look("show", "shown", "--json")).stdout,
        );
        assertEquals([info.label, info.waiting], ["web-1", 1]);
        assertEquals(`${info.fencingToken}`, token);
      }
      const { code, stdout } = await look("show", "nothing");
      assertEquals([code, stdout], [
        1,
        "key        nothing\nholder     nobody\nline       nobody\n",
      ]);
    },
  ],

  ["show says of what is no lock that it is none", async () => {
    await server.command("LPUSH", "list", "x");
    const { code, stderr } = await look("show", "list");
    assertEquals(code, 69);
    assertEquals(
      stderr,
      `lock-cli: what is under "list" is no string, and hence no lock\n`,
    );
  }],

  ["so do run and once", async () => {
    await server.command("LPUSH", "a list", "x");
    for (const args of [["run", "-n"], ["run"], ["once", "--keep", "1h"]]) {
      const outcome = await look(...args, "a list", "--", "true");
      const stderr =
        `lock-cli: what is under "a list" is no string, and hence no lock\n`;
      assertEquals(outcome, { code: 69, stdout: "", stderr });
    }
  }],

  ["free frees with --yes alone where nobody can be asked", async () => {
    await using cli = await run("freed", "web-1");
    const unasked = await look("free", "freed");
    assertEquals([unasked.code, unasked.stdout], [64, ""]);
    assertStringIncludes(unasked.stderr, "--yes");
    assertEquals(await server.command("EXISTS", "freed"), 1);
    const { code, stdout } = await look("free", "freed", "--yes");
    assertEquals(code, 0);
    assertMatch(stdout, /^"freed" taken from web-1 for \S+\n$/);
    assertEquals(await cli.exited, 76);
    const again = await look("free", "freed", "--yes", "--json");
    assertEquals([again.code, again.stdout], [
      1,
      '{"key":"freed","freed":false}\n',
    ]);
  }],

  ["free gives the lock to the next in line", async () => {
    await using holder = await run("next", "web-1");
    const args = ["run", "-v", "next", "--label", "web-2", "--", "true"];
    await using waiter = lockCli(args, { env });
    await waiter.says(/waiting/);
    await look("free", "-y", "next");
    assertEquals(await waiter.exited, 0, waiter.stderr);
    assertEquals(await holder.exited, 76);
  }],

  ["watch prints what changes, where there is no terminal", async () => {
    const args = ["watch", "w:*", "--every", "100ms"];
    await using plain = lockCli(args, { env });
    await using json = lockCli([...args, "--json"], { env });
    {
      const lock = await hold("w:1", "web-1");
      await plain.says(/w:1 held by web-1 for \S+, 0 in line\n/);
      await using _1 = await wait("w:1", "web-2");
      await plain.says(/w:1 held by web-1 for \S+( \S+)?, 1 in line\n/);
      await json.says(/"line"/);
      await server.command("DEL", "w:1", "{w:1}:line");
      await plain.says(/w:1 free\n/);
      await json.says(/"free"/);
      assertEquals(await lock.release(), false);
    }
    plain.kill("SIGINT");
    assertEquals(await plain.exited, 0);
    const told = json.stdout.trim().split("\n").map((line) => JSON.parse(line));
    assertEquals([told[0].event, told[0].label], ["held", "web-1"]);
    assertEquals(plain.stderr, "");
  }],
]);

const missing = terminalMissing();
const program = [process.execPath, ...START].map(word).join(" ");
if (missing !== undefined) test.unavailable("look at a terminal", missing);
else {
  testFew([
    ["watch redraws its table in place", async () => {
      await using first = await hold("t:1", "web-1");
      const columns = 50;
      await using terminal = openTerminal(
        `exec ${program} watch 't:*' --every 200ms`,
        { env, columns },
      );
      await terminal.shows(
        /^t:\* +1 lock +\d\d:\d\d:\d\d\nKEY.*\nt:1 +web-1/,
      );
      const label = "somebody with a very long name indeed, and then some";
      await using second = await hold("t:2", label);
      await terminal.shows(
        /^t:\* +2 locks .*\nKEY.*\nt:1 +web-1.*\nt:2 +some.*…/,
      );
      for (const line of terminal.lines) assert(line.length <= columns, line);
      await first.release();
      await second.release();
      await terminal.shows(/^t:\* +0 locks +[\d:]+$/);
      terminal.type("\x03");
      assertEquals(await terminal.exited, 0);
      assert(terminal.raw.includes("\x1b[?25h"), "the cursor is back");
    }],

    ["watch shows no more than fits the screen", async () => {
      const keys = [1, 2, 3, 4, 5, 6].map((i) => `many:${i}`);
      for (const key of keys) await server.command("SET", key, "x", "EX", 60);
      await using terminal = openTerminal(
        `exec ${program} watch -a 'many:*' --every 200ms`,
        { env, rows: 6 },
      );
      await terminal.shows(/^many:\* +6 locks/);
      await until(
        "it is redrawn",
        () => terminal.raw.split("KEY").length > 3,
      );
      assertEquals(terminal.lines.length, 5);
      assertEquals(terminal.lines.at(-1), "… and 4 more");
    }],

    ["free asks at a terminal, and takes no for an answer", async () => {
      await using holder = await run("asked", "web-1");
      for (const answer of ["n", "", "y"]) {
        await using terminal = openTerminal(`exec ${program} free asked`, {
          env,
        });
        await terminal.shows(
          /"asked" is held by web-1 for .*Free it\? \[y\/N\]/,
        );
        terminal.type(`${answer}\n`);
        assertEquals(await terminal.exited, answer === "y" ? 0 : 1);
        const isHeld = await server.command("EXISTS", "asked") === 1;
        assertEquals(isHeld, answer !== "y");
      }
      assertEquals(await holder.exited, 76);
    }],
  ]);
}
