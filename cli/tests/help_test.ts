/** What the program says about itself, and how it takes being called wrongly. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { existsSync, readFileSync } from "node:fs";
import process from "node:process";

import {
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import { after, before, test } from "../../tests/support/test.ts";
import { SUBCOMMANDS } from "../src/options.ts";
import {
  plain,
  readDuration,
  redact,
  safe,
  showDuration,
} from "../src/text.ts";
import {
  asked,
  launch,
  lockCli,
  ran,
  ROOT,
  START,
  testFew,
} from "./support/cli.ts";
import { word } from "./support/terminal.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

const names = Object.keys(SUBCOMMANDS);
const lockCliFunction = `lock-cli() { ${
  [process.execPath, ...START].map(word).join(" ")
} "$@"; }`;

/** What bash offers for the last of these words, once it knows `completion`. */
async function offered(
  completion: string,
  words: readonly string[],
): Promise<string[]> {
  const script = `${lockCliFunction}
${completion}
COMP_WORDS=(lock-cli ${words.map(word).join(" ")})
COMP_CWORD=${words.length}
COMP_LINE=${word(["lock-cli", ...words].join(" ").replace(" : ", ":"))}
COMP_POINT=\${#COMP_LINE}
_lock_cli
printf '%s\\n' "\${COMPREPLY[@]}"`;
  const bash = launch("bash", ["--norc", "-c", script], {
    env: { REDIS_URL: server.url },
  });
  assertEquals(await bash.exited, 0, bash.stderr);
  assertEquals(bash.stderr, "");
  return bash.stdout.trim().split("\n").filter(Boolean);
}

test("times are read with their units, and shown in two of them", () => {
  const read = Object.entries({
    "250ms": 250,
    "30s": 30_000,
    "5m": 300_000,
    "1h30m": 5_400_000,
    "1.5s": 1_500,
    "2d": 172_800_000,
    "0": 0,
    "30": undefined,
    "": undefined,
    "-5s": undefined,
    "5 s": undefined,
    "1e3s": undefined,
    "s": undefined,
  });
  for (const [text, ms] of read) assertEquals(readDuration(text), ms, text);
  const shown = [
    [0, "0ms"],
    [999, "999ms"],
    [1_000, "1s"],
    [123_456, "2m 3s"],
    [3_600_000, "1h"],
    [90_061_000, "1d 1h"],
  ] as const;
  for (const [ms, text] of shown) assertEquals(showDuration(ms), text);
});

test("a password is shown nowhere, whatever is in it", () => {
  for (
    const password of ["hunter2", "hun ter2", "hun/ter2", "h@ter2", "hun\nter2"]
  ) {
    const text = `no use for "redis://me:${password}@localhost/0" here`;
    const expected = 'no use for "redis://***@localhost/0" here';
    assertEquals(redact(text), expected, password);
  }
  assertEquals(redact("mail me@home"), "mail me@home");
});

test("a label is shown without passwords, and else as it is", () => {
  for (
    const login of ["me:hunter2", ":hun/ter2", "me:h@ter2", ":hun\nter2"]
  ) {
    const label = `see "redis://${login}@localhost/0" or me@home`;
    const expected = 'see "redis://***@localhost/0" or me@home';
    assertEquals(safe(label), expected, login);
  }
  for (
    const label of [
      "me@home",
      "https://ci.example/jobs/7",
      "https://ci.example/jobs/7 me@home",
      "'https://ci.example' by 'me@home'",
    ]
  ) assertEquals(safe(label), label);
});

test("a key is shown as it is, but for what could move the cursor", () => {
  const key = "crawl:https://example.com/@me";
  assertEquals(plain(key), key);
  assertEquals(plain("a\x1b[2Jb\nc\u2028"), "a?[2Jb?c?");
});

testFew([
  ["a time of a thousand years is a slip of the finger", async () => {
    const { code, stderr } = await asked(
      ["run", "--ttl", "99999999999d", "key", "--", "true"],
    );
    assertEquals(code, 64);
    const text = "lock-cli: --ttl wants a time of at most ten years\n";
    assertEquals(stderr.slice(0, text.length), text);
  }],

  ["each page of help fits a screen", async () => {
    const pages = [["--help"], ...names.map((name) => [name, "--help"])];
    const answers = await Promise.all(pages.map((args) => asked(args)));
    for (const [i, { code, stdout, stderr }] of answers.entries()) {
      assertEquals([code, stderr], [0, ""], pages[i].join(" "));
      const lines = stdout.split("\n");
      assertEquals(lines.pop(), "", "it ends with a line");
      // With the prompt below it.
      assert(lines.length < 24, `${pages[i][0]}: ${lines.length} lines`);
      for (const line of lines) assert(line.length <= 80, line);
    }
    for (const name of names) assertStringIncludes(answers[0].stdout, name);
    const { code, stdout, stderr } = await ran([]);
    assertEquals([code, stdout, stderr], [64, "", answers[0].stdout]);
  }],

  ["the version is that of the package", async () => {
    const { stdout } = await ran(["--version"]);
    for (const file of ["deno.json", "package.json"]) {
      const { version } = JSON.parse(
        readFileSync(`${ROOT}/cli/${file}`, "utf8"),
      );
      assertEquals(stdout, `lock-cli ${version}\n`, file);
    }
  }],

  ["a wrong call is 64 and one line that says what is wrong", async () => {
    const calls: [args: string[], says: RegExp][] = [
      [["walk"], /there is no command "walk": run, once/],
      [["run", "--", "true"], /run wants a KEY/],
      [["run", "key"], /run wants a command, after --/],
      [["run", "", "--", "true"], /a key must not be empty/],
      [["run", "key", "--", "", "x"], /a command must not be empty/],
      [
        ["run", "key", "--now", "--", "true"],
        /Unknown option '--now'.*--help/,
      ],
      [["run", "key", "--ttl", "--", "true"], /missing; see lock-cli run/],
      [["run", "--ttl", "-n", "k", "--", "true"], /ambiguous; see lock-cli/],
      [
        ["run", "key", "--ttl", "30", "--", "true"],
        /--ttl wants a time such/,
      ],
      [["run", "key", "--ttl", "5ms", "--", "true"], /at least 100ms/],
      [["run", "key", "--grace", "20s", "--", "true"], /a third of --ttl/],
      [["run", "key", "--on-lost", "cry", "--", "true"], /stop or ignore/],
      [["run", "key", "-E", "256", "--", "true"], /from 0 to 255/],
      [["run", "-n", "--wait", "1s", "key", "--", "true"], /contradict/],
      [["run", "--label", "x".repeat(201), "k", "--", "true"], /200/],
      [["once", "a", "b", "--keep", "1h", "--", "true"], /comes after --/],
      [["show"], /show wants a KEY/],
      [["watch", "--every", "1ms"], /at least 100ms/],
      [["completion", "fish"], /bash and zsh/],
    ];
    await Promise.all(calls.map(async ([args, says]) => {
      const { code, stdout, stderr } = await asked(args);
      assertEquals([code, stdout], [64, ""], args.join(" "));
      assertMatch(stderr, /^lock-cli: [^\n]+\n$/);
      assertMatch(stderr, says);
    }));
  }],

  ["bash completes commands, options, values and keys", async () => {
    const holder = lockCli(
      ["run", "dep:1", "--", "sh", "-c", "echo up; cat"],
      {
        env: { REDIS_URL: server.url },
        isOpen: true,
      },
    );
    await holder.says(/up/);
    const offers = [
      [["o"], ["once"]],
      [["run", "--on"], ["--on-lost"]],
      [["run", "--on-lost", ""], ["stop", "ignore"]],
      [["run", "--ttl", ""], []],
      [["free", "d"], ["dep:1"]],
      // Bash takes a colon for the end of a word.
      [["free", "dep", ":", ""], ["1"]],
      [["completion", "z"], ["zsh"]],
      [["show", "--cacert", `${ROOT}/cli/deno.j`], [`${ROOT}/cli/deno.json`]],
    ];
    const { stdout } = await asked(["completion", "bash"]);
    for (const [words, offer] of offers) {
      assertEquals(await offered(stdout, words), offer, words.join(" "));
    }
    const all = await offered(stdout, [""]);
    assertEquals(all.slice(0, names.length), names);
    const programs = await offered(stdout, ["run", "x", "--", "ech"]);
    assert(programs.includes("echo"));
    // As in a .bashrc.
    const own = 'eval "$(lock-cli completion bash)"';
    assertEquals(await offered(own, ["o"]), ["once"]);
    holder.kill("SIGKILL");
    await holder.exited;
  }],

  ["zsh is told the same by the same lines", async () => {
    const [bash, zsh] = await Promise.all(
      ["bash", "zsh"].map((shell) => asked(["completion", shell])),
    );
    const common = /^_lock_cli_choose\(\) \{[\s\S]*?^\}$/m;
    assertEquals(common.exec(zsh.stdout)?.[0], common.exec(bash.stdout)?.[0]);
    assertMatch(zsh.stdout, /^#compdef lock-cli\n/);
    const shell = ["/bin/zsh", "/usr/bin/zsh"].find(existsSync);
    if (shell === undefined) return;
    const parsed = launch(shell, ["-fnc", zsh.stdout]);
    assertEquals(await parsed.exited, 0, parsed.stderr);
  }],
]);
