/** `run`, as a person or a script would use it. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readFileSync,
  symlinkSync,
} from "node:fs";
import { constants } from "node:os";
import process from "node:process";

import {
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import { after, before, test } from "../../tests/support/test.ts";
import { until } from "../../tests/support/until.ts";
import {
  asked,
  type Cli,
  isAlive,
  lockCli,
  ran,
  scratchFile,
  START,
  testFew,
} from "./support/cli.ts";
import {
  openTerminal,
  type Terminal,
  terminalMissing,
  word,
} from "./support/terminal.ts";

let server: RedisServer;
let env: { REDIS_URL: string };
before(async () => {
  server = await startRedis();
  env = { REDIS_URL: server.url };
});
after(() => server.stop());

const run = (...args: (string | number)[]) =>
  lockCli(["run", ...args], { env });

/** Waits until the command of `cli` has said that it runs: its process. */
async function started(cli: Cli): Promise<number> {
  await cli.says(/^up \d+$/m);
  return Number(/^up (\d+)$/m.exec(cli.stdout)![1]);
}

/** Says that it runs, and waits for its end. */
const WAITER = `echo up $$; while :; do sleep 0.2; done`;
/** The same, and will not hear of a SIGTERM. */
const STUBBORN = `trap '' TERM; ${WAITER}`;

async function inLine(key: string, count: number): Promise<void> {
  await until(
    `${count} in line for ${key}`,
    async () => await server.command("ZCARD", `{${key}}:line`) === count,
  );
}

/** Whether somebody sees to the end of the command should that one die. */
function isGuarded(cli: number): boolean {
  const list = execFileSync("ps", ["-A", "-ww", "-o", "args="]);
  return `${list}`.includes(`guard of lock-cli ${cli} `);
}

async function isGone(key: string, at: RedisServer = server) {
  assertEquals(await at.command("EXISTS", key, `{${key}}:line`), 0, key);
}

testFew([
  ["run passes stdin, stdout, stderr and the exit code through", async () => {
    const shell = "read x; echo out $x; echo err $x >&2; exit 7";
    const args = ["run", "through", "--", "sh", "-c", shell];
    const { code, stdout, stderr } = await ran(args, { env, stdin: "in\n" });
    assertEquals([code, stdout, stderr], [7, "out in\n", "err in\n"]);
    await isGone("through");
  }],

  ["run says nothing of its own", async () => {
    const { code, stdout, stderr } = await ran(
      ["run", "quiet", "--", "true"],
      { env },
    );
    assertEquals([code, stdout, stderr], [0, "", ""]);
  }],

  ["the command is told key, fencing token and deadline", async () => {
    const shell = "echo $LOCK_KEY $LOCK_FENCING_TOKEN $LOCK_DEADLINE_MS";
    const first = await ran(["run", "told", "--", "sh", "-c", shell], {
      env,
    });
    const token = await server.command("GET", "{told}:fence");
    const second = await ran(["run", "told", "--", "sh", "-c", shell], {
      env,
    });
    const [key, own, deadline] = first.stdout.trim().split(" ");
    assertEquals([key, own], ["told", token]);
    const leftMs = Number(deadline) - Date.now();
    assert(leftMs > 5_000 && leftMs < 30_000, `${leftMs} ms`);
    assert(Number(second.stdout.split(" ")[1]) > Number(own), "must grow");
  }],

  ["several keys are taken as one, each with its token", async () => {
    const shell = "echo $LOCK_FENCING_TOKENS; read x";
    const cli = lockCli(["run", "b:2", "a:1", "--", "sh", "-c", shell], {
      env,
      isOpen: true,
    });
    await cli.says(/\n/);
    const tokens = JSON.parse(cli.stdout);
    assertEquals(Object.keys(tokens), ["a:1", "b:2"]);
    assert(Object.values(tokens).every(Number.isSafeInteger));
    const { code, stderr } = await asked(["run", "-n", "b:2", "--", "true"], {
      env,
    });
    assertEquals(code, 75);
    assertStringIncludes(stderr, `"b:2" is taken`);
    cli.write("\n");
    assertEquals(await cli.exited, 0);
    await isGone("a:1");
    await isGone("b:2");
  }],

  ["taken is 75 and names holder, since when, and the place", async () => {
    await using holder = run(
      "taken",
      "--label",
      "web-3",
      "--",
      "sh",
      "-c",
      WAITER,
    );
    await started(holder);
    const said =
      /^lock-cli: "taken" is taken: held by web-3 for \S+( \S+)?, since [\d :-]+; place in line: (\d)\n$/;
    const first = await asked(["run", "-n", "taken", "--", "true"], { env });
    assertEquals([first.code, first.stdout], [75, ""]);
    assertEquals(said.exec(first.stderr)?.[2], "1", first.stderr);
    await using waiter = run("taken", "--", "true");
    await inLine("taken", 1);
    // Patience that ran out is told by one's place in line.
    const args = ["--wait", "300ms", "-E", 9, "taken", "--", "true"];
    const second = await asked(["run", ...args], { env });
    assertEquals([second.code, second.stdout], [9, ""]);
    assertEquals(said.exec(second.stderr)?.[2], "2", second.stderr);
    assertEquals(waiter.stderr, "", "who waits on a pipe is silent");
    const { stderr } = await asked(
      ["run", "-n", "--json", "taken", "--", "true"],
      {
        env,
      },
    );
    const { heldMs, ...told } = JSON.parse(stderr);
    assertEquals([told.event, told.key, told.label], [
      "taken",
      "taken",
      "web-3",
    ]);
    assert(heldMs > 0 && told.place === 2, stderr);
  }],

  ["a label of several lines can't pretend to be a message", async () => {
    const label = "nice\nlock-cli: \x1b[2Jred";
    await using holder = run(
      "sly",
      "--label",
      label,
      "--",
      "sh",
      "-c",
      WAITER,
    );
    await started(holder);
    const { stderr } = await asked(["run", "-n", "sly", "--", "true"], {
      env,
    });
    assertStringIncludes(stderr, "held by nice?lock-cli: ?[2Jred for");
  }],

  [
    "two shells take turns, and who waits is told of nothing but its turn",
    async () => {
      const book = scratchFile("turns");
      const shell = `echo in >> ${book}; sleep 0.1; echo out >> ${book}`;
      const both = [1, 2, 3].map(() =>
        ran(["run", "turns", "--", "sh", "-c", shell], { env })
      );
      for (const { code, stdout, stderr } of await Promise.all(both)) {
        assertEquals([code, stdout, stderr], [0, "", ""]);
      }
      assertEquals(readFileSync(book, "utf8"), "in\nout\n".repeat(3));
      await isGone("turns");
    },
  ],

  [
    "run is given the lock by the one before, and has its full lease",
    async () => {
      await using holder = run("given", "--", "sh", "-c", WAITER);
      await started(holder);
      await using waiter = run("-v", "given", "--", "sh", "-c", WAITER);
      await waiter.says(/waiting for "given", place 1/);
      holder.kill("SIGTERM");
      await waiter.says(/"given" is ours/);
      await started(waiter);
      const left = Number(await server.command("PTTL", "given"));
      assert(left > 15_000, `only ${left} ms`);
    },
  ],

  ["the lock is renewed for as long as the command runs", async () => {
    const args = ["--ttl", "3s", "renewed", "--", "sh", "-c", WAITER];
    await using holder = run(...args);
    await started(holder);
    let renewals = 0;
    let leftBefore = Infinity;
    // At a third each time: without, the lease would be over by then.
    await until("it is renewed four times", async () => {
      const left = Number(await server.command("PTTL", "renewed"));
      if (left > leftBefore) renewals++;
      leftBefore = left;
      return renewals === 4;
    });
    const { code } = await asked(["run", "-n", "renewed", "--", "true"], {
      env,
    });
    assertEquals(code, 75);
    assertEquals(holder.stderr, "");
  }],

  [
    "signals go to the whole group, and the exit code tells of them",
    async () => {
      const book = scratchFile("signals");
      const inner = `trap "echo inner >> ${book}; exit" TERM; echo ready; ` +
        "while :; do sleep 0.2; done";
      await using cli = run(
        "group",
        "--",
        "sh",
        "-c",
        `sh -c '${inner}' & wait`,
      );
      await cli.says(/ready/);
      cli.kill("SIGTERM");
      assertEquals(await cli.exited, 143);
      await until("the inner one heard it", () => existsSync(book));
      await isGone("group");
      for (const signal of ["HUP", "INT", "QUIT", "USR1", "USR2"]) {
        const shell = `trap "exit 42" ${signal}; ${WAITER}`;
        await using other = run("signal", "--", "sh", "-c", shell);
        await started(other);
        other.kill(`SIG${signal}` as NodeJS.Signals);
        assertEquals(await other.exited, 42, signal);
      }
    },
  ],

  ["a command that is no more is no command: 127, or 126", async () => {
    const none = await ran(["run", "none", "--", "no-such-thing"], { env });
    assertEquals(none.code, 127);
    assertStringIncludes(
      none.stderr,
      "no-such-thing: there is no such command",
    );
    const file = await ran(["run", "none", "--", "/etc/passwd"], { env });
    assertEquals(file.code, 126, file.stderr);
    await isGone("none");
  }],

  ["so is one that the system refuses at once", async () => {
    const [loop, busy] = ["loop", "busy"].map(scratchFile);
    symlinkSync(loop, loop);
    copyFileSync("/bin/sh", busy);
    chmodSync(busy, 0o755);
    const open = openSync(busy, "r+");
    try {
      for (
        const [program, code, why] of [
          ["/etc/passwd/x", 126, "it can't be executed"],
          [loop, 126, "it can't be executed"],
          [busy, 126, "it can't be executed"],
          ["x".repeat(300), 127, "there is no such command"],
        ] as const
      ) {
        const outcome = await ran(["run", "refused", "--", program], { env });
        const stderr = `lock-cli: ${program}: ${why}\n`;
        assertEquals(outcome, { code, stdout: "", stderr });
        await isGone("refused");
      }
    } finally {
      closeSync(open);
    }
  }],

  ["with --json a failure is a line of JSON as well", async () => {
    const nowhere = ["--redis", "unix:///no/such.sock"];
    const calls: [args: string[], exitCode: number, says: RegExp][] = [
      [["run", "k", "--json", ...nowhere, "--", "true"], 69, /cannot reach/],
      [["show", "k", "--json", ...nowhere], 69, /cannot reach/],
      [["run", "--json", "failed", "--", "no-such-thing"], 127, /no such/],
      [["run", "--json", "k", "--ttl", "1ms", "--", "true"], 64, /100ms/],
      [["run", "--json", "--no-such", "k", "--", "true"], 64, /no-such/],
      [["run", "--json", "failed", "--label", "a", "b"], 64, /after --/],
    ];
    for (const [args, exitCode, says] of calls) {
      const { code, stdout, stderr } = await asked(args, { env });
      assertEquals([code, stdout], [exitCode, ""], stderr);
      const lines = stderr.trim().split("\n").map((line) => JSON.parse(line));
      const { message, ...told } = lines.at(-1);
      assertEquals(told, { event: "failed", exitCode });
      assertMatch(message, says);
    }
    // That is the command's.
    const theirs = ["run", "k", ...nowhere, "--", "echo", "--json"];
    const { stderr } = await asked(theirs, { env });
    assertMatch(stderr, /^lock-cli: cannot reach/);
  }],

  ["Ctrl-C while waiting leaves no place in line behind", async () => {
    await using holder = run("patience", "--", "sh", "-c", WAITER);
    await started(holder);
    for (
      const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const
    ) {
      const waiter = run("patience", "--", "true");
      await inLine("patience", 1);
      waiter.kill(signal);
      assertEquals(await waiter.exited, code);
      assertEquals(await server.command("EXISTS", "{patience}:line"), 0);
      assertEquals(waiter.stdout + waiter.stderr, "");
    }
  }],

  [
    "a lock taken by force ends the whole group, the stubborn by SIGKILL",
    async () => {
      const shell = `trap '' TERM; sh -c "${
        WAITER.replaceAll("$", "\\$")
      }" & wait; wait`;
      const args = ["--grace", "400ms", "forced", "--", "sh", "-c", shell];
      await using cli = run(...args);
      const pid = await started(cli);
      const { code } = await asked(["free", "--yes", "forced"], { env });
      assertEquals(code, 0);
      assertEquals(await cli.exited, 76);
      assertMatch(
        cli.stderr,
        /^lock-cli: "forced" was lost \((deleted|taken)\): stopping the command\n$/,
      );
      assertEquals(isAlive(pid), false, "it was inherited SIG_IGN");
    },
  ],

  ["--on-lost ignore lets the command go on, and says so", async () => {
    const args = ["--on-lost", "ignore", "--ttl", "900ms", "ignored"];
    const shell = "echo up $$; read x; exit 5";
    await using cli = lockCli(["run", ...args, "--", "sh", "-c", shell], {
      env,
      isOpen: true,
    });
    await started(cli);
    await asked(["free", "--yes", "ignored"], { env });
    await cli.says(/"ignored" was lost \(\w+\); the command goes on\n/);
    cli.write("\n");
    assertEquals(await cli.exited, 5);
  }],

  [
    "the command is gone before a server that is silent would let others in",
    async () => {
      await using own = await startRedis();
      for (const how of ["freeze", "kill"] as const) {
        const book = scratchFile(`lease-${how}`);
        const shell = `trap '' TERM; echo up $$; ` +
          `while :; do date +%s%N >> ${book}; sleep 0.02; done`;
        const args = ["--ttl", "3s", "--grace", "500ms", "lease"];
        await using cli = lockCli(["run", ...args, "--", "sh", "-c", shell], {
          env: { REDIS_URL: own.url },
        });
        const pid = await started(cli);
        const leftMs = Number(await own.command("PTTL", "lease"));
        const expiresAt = Date.now() + leftMs;
        await (how === "freeze" ? own.freeze() : own.kill());
        assertEquals(await cli.exited, 76, cli.stderr);
        const text =
          /^lock-cli: "lease" could not be renewed: stopping the command\n$/;
        assertMatch(cli.stderr, text);
        assertEquals(isAlive(pid), false);
        const beats = readFileSync(book, "utf8").split("\n");
        const lastMs = Number(beats.at(-2)) / 1e6;
        assert(lastMs < expiresAt, `${lastMs - expiresAt} ms too late`);
        // Not for fear at the first silence, either.
        assert(lastMs > expiresAt - 1_500, `${expiresAt - lastMs} ms early`);
        if (how === "freeze") own.thaw();
      }
    },
  ],

  ["a server that comes back in time is none the wiser", async () => {
    await using own = await startRedis();
    const args = [
      "--ttl",
      "6s",
      "back",
      "--",
      "sh",
      "-c",
      "echo up $$; sleep 5",
    ];
    await using cli = lockCli(["run", ...args], {
      env: { REDIS_URL: own.url },
    });
    await started(cli);
    own.freeze();
    // A renewal is due after two seconds.
    await new Promise((done) => setTimeout(done, 2_600));
    own.thaw();
    assertEquals(await cli.exited, 0, cli.stderr);
    assertEquals(cli.stderr, "");
  }],

  [
    "kill -9 takes the command along; the lock ends with its lease",
    async () => {
      const args = ["--ttl", "2s", "--grace", "300ms", "killed"];
      await using cli = run(...args, "--", "sh", "-c", STUBBORN);
      const pid = await started(cli);
      await until("it is guarded", () => isGuarded(cli.pid));
      cli.kill("SIGKILL");
      const begunAt = Date.now();
      await until("the command is gone", () => !isAlive(pid));
      // It is not known to be gone any sooner than the lease is.
      const { code } = await ran([
        "run",
        "--wait",
        "8s",
        "killed",
        "--",
        "true",
      ], {
        env,
      });
      assertEquals(code, 0);
      assert(Date.now() - begunAt > 500, "before the lease was over");
    },
  ],

  ["kill -9 lets the command be with --on-lost ignore", async () => {
    const args = ["--ttl", "1s", "--on-lost", "ignore", "orphan"];
    await using cli = run(...args, "--", "sh", "-c", WAITER);
    const pid = await started(cli);
    cli.kill("SIGKILL");
    await cli.exited;
    await new Promise((done) => setTimeout(done, 700));
    assertEquals(isAlive(pid), true);
    process.kill(pid, "SIGKILL");
  }],

  [
    "how the command itself ended is told, also if the lock was lost",
    async () => {
      const events = (cli: Cli) =>
        cli.stderr.trim().split("\n").map((line) => JSON.parse(line))
          .filter(({ event }) => event !== "acquired")
          .map(({ keys: _, ...told }) => told);
      const shell = "echo up $$; read x; exit 3";
      const begin = async (...args: string[]) => {
        const options = { env, isOpen: true } as const;
        const cli = lockCli(["run", ...args, "--", "sh", "-c", shell], options);
        await started(cli);
        return cli;
      };
      const lost = { event: "lost", reason: "deleted" };
      // Found lost as it is to be released.
      const late = await begin("--json", "--ttl", "10m", "late");
      await server.command("DEL", "late");
      late.write("\n");
      assertEquals(await late.exited, 76, late.stderr);
      assertEquals(events(late), [lost, { event: "ended", exitCode: 3 }]);
      // Found lost on the way, and stopped for it.
      const own = ["--ttl", "900ms", "stopped"];
      const stopped = await begin("--json", ...own);
      await server.command("DEL", "stopped");
      assertEquals(await stopped.exited, 76, stopped.stderr);
      const ended = { event: "ended", exitCode: 143, signal: "SIGTERM" };
      assertEquals(events(stopped), [lost, ended]);
      const words = await begin("-v", ...own);
      await server.command("DEL", "stopped");
      assertEquals(await words.exited, 76, words.stderr);
      assertMatch(
        words.stderr,
        /\nlock-cli: the command was ended by SIGTERM\n$/,
      );
    },
  ],

  ["a command that is ended by any signal is told by its number", async () => {
    for (const name of ["BUS", "SYS", "VTALRM", "PROF"] as const) {
      const number = constants.signals[`SIG${name}`];
      const shell = ["sh", "-c", `ulimit -c 0; kill -${number} $$`];
      const { code } = await ran(["run", name, "--", ...shell], { env });
      assertEquals(code, 128 + number, name);
    }
  }],

  ["nothing is left running once a command has ended", async () => {
    const cli = run("tidy", "--", "sh", "-c", "echo up $$");
    assertEquals(await cli.exited, 0);
    await until("no guard is left", () => !isGuarded(cli.pid));
  }],
]);

/** Two who said that they run, each in a whole line: their processes. */
async function bothUp(terminal: Terminal): Promise<number[]> {
  const found = () =>
    [...terminal.raw.matchAll(/up (\d+)\r/g)].map(([, pid]) => Number(pid));
  await until("both are up", () => found().length === 2);
  return found();
}

const missing = terminalMissing();
const line = START.map(word).join(" ");
const program = `${word(process.execPath)} ${line}`;
if (missing !== undefined) test.unavailable("run at a terminal", missing);
else {
  testFew([
    ["at a terminal one live line tells who holds it, and goes", async () => {
      await using holder = run(
        "live",
        "--label",
        "web-3",
        "--",
        "sh",
        "-c",
        WAITER,
      );
      await started(holder);
      await using first = run("live", "--", "true");
      await inLine("live", 1);
      await using terminal = openTerminal(
        `${program} run live -- echo done`,
        {
          env,
        },
      );
      await terminal.shows(
        /^lock-cli: "live" held by web-3 for \S+( \S+)? · place 2 · waiting [1-9]\d*s$/,
      );
      assertEquals(terminal.lines.length, 1, "it is redrawn in place");
      first.kill("SIGINT");
      await terminal.shows(/ · place 1 · /);
      holder.kill("SIGTERM");
      assertEquals(await terminal.exited, 0);
      assertEquals(terminal.lines, ["done"]);
    }],

    ["Ctrl-C at a terminal while waiting leaves nothing behind", async () => {
      await using holder = run("leave", "--", "sh", "-c", WAITER);
      await started(holder);
      await using terminal = openTerminal(`${program} run leave -- true`, {
        env,
      });
      await terminal.shows(/waiting/);
      terminal.type("\x03");
      assertEquals(await terminal.exited, 130);
      assertEquals(await server.command("EXISTS", "{leave}:line"), 0);
    }],

    ["Ctrl-C at a terminal reaches the command once", async () => {
      const shell =
        `n=0; trap 'n=$((n+1)); echo int $n' INT; trap 'exit 9' USR1;` +
        ` echo up $$; while :; do sleep 0.2; done`;
      await using terminal = openTerminal(
        `exec ${program} run once -- sh -c ${word(shell)}`,
        { env },
      );
      await terminal.shows(/^up \d+$/m);
      const pid = Number(/^up (\d+)$/m.exec(terminal.lines.join("\n"))![1]);
      terminal.type("\x03");
      await terminal.shows(/int 1/);
      terminal.type("\x03");
      await terminal.shows(/int 2/);
      process.kill(pid, "SIGUSR1");
      assertEquals(await terminal.exited, 9);
      assert(!terminal.raw.includes("int 3"), "told twice");
      await isGone("once");
    }],

    ["a command at a terminal can ask for a password there", async () => {
      const shell = "read x < /dev/tty; echo got $x";
      await using terminal = openTerminal(
        `${program} run tty -- sh -c ${word(shell)}`,
        { env },
      );
      await until(
        "it runs",
        async () => await server.command("EXISTS", "tty"),
      );
      terminal.type("sesame\n");
      await terminal.shows(/^got sesame$/m);
      assertEquals(await terminal.exited, 0);
    }],

    [
      "a lock lost at a terminal ends the command and its children",
      async () => {
        const shell = `trap '' TERM; sh -c ${word(WAITER)} & sh -c ${
          word(WAITER)
        }`;
        await using terminal = openTerminal(
          `${program} run --grace 300ms nest -- sh -c ${word(shell)} | cat`,
          { env },
        );
        const pids = await bothUp(terminal);
        await asked(["free", "--yes", "nest"], { env });
        await terminal.shows(/"nest" was lost/);
        await terminal.exited;
        assertEquals(pids.map(isAlive), [false, false]);
      },
    ],

    [
      "kill -9 at a terminal takes the command and its children along",
      async () => {
        // Nor may the end of the terminal be what ends them.
        const shell = `trap '' TERM HUP; echo cli $PPID; sh -c ${
          word(WAITER)
        } & sh -c ${word(WAITER)}`;
        await using terminal = openTerminal(
          `${program} run --grace 300ms axe -- sh -c ${word(shell)}`,
          { env },
        );
        const pids = await bothUp(terminal);
        const cli = Number(/cli (\d+)\r/.exec(terminal.raw)![1]);
        await until("it is guarded", () => isGuarded(cli));
        process.kill(cli, "SIGKILL");
        await until("both are gone", () => !pids.some(isAlive));
      },
    ],
  ]);
}
