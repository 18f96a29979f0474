/** The program as a person would start it, under the runtime at hand. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

import {
  type Message,
  runtime,
  type Script,
  spawnScript,
} from "../../../tests/support/process.ts";
import { after, test, timersEnd } from "../../../tests/support/test.ts";
import { until } from "../../../tests/support/until.ts";
import type { Call, Outcome } from "./caller.ts";

export const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

const scratch = mkdtempSync(join(tmpdir(), "lock-cli-"));
const running = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
  rmSync(scratch, { recursive: true, force: true });
});

/** A path for a file of a test's own; gone when all are done. */
export function scratchFile(name: string): string {
  return join(scratch, name);
}

/** What starts the program. Node gets what its users get: one file, built. */
export const START: readonly string[] = {
  deno: () => ["run", "-A", "--no-check", "--quiet", join(ROOT, "cli/mod.ts")],
  bun: () => [join(ROOT, "cli/mod.ts")],
  node: () => [build()],
}[runtime]();

function build(): string {
  const file = join(scratch, "lock-cli.mjs");
  execFileSync(process.execPath, [
    join(ROOT, "tools/build_cli.mjs"),
    file,
  ]);
  return file;
}

/** How it is to be started. */
export interface CliOptions {
  env?: Record<string, string>;
  /** What it reads; nothing unless given. */
  stdin?: string | undefined;
  /** Leaves stdin open, for `write()`. */
  isOpen?: true | undefined;
}

/** The program, started. */
export interface Cli extends AsyncDisposable {
  readonly pid: number;
  readonly stdout: string;
  readonly stderr: string;
  /** As a shell has it: 128 and so many for a signal. */
  readonly exited: Promise<number>;
  kill(signal: NodeJS.Signals): void;
  write(text: string): void;
  /** Resolves once `look` finds something in what it said. */
  says(look: RegExp): Promise<void>;
}

/** Tests side by side, but few at a time: each start of it is costly. */
export function testFew(tests: Parameters<typeof test.sideBySide>[0]): void {
  // Who has waited in line with the library listens on for a moment.
  test.sideBySide(tests, timersEnd, { atOnce: 6 });
}

/** Starts it with these arguments, without a terminal. */
export function lockCli(
  args: readonly (string | number)[],
  { env = {}, stdin, isOpen }: CliOptions = {},
): Cli {
  return launch(process.execPath, [...START, ...args.map(String)], {
    env,
    stdin,
    isOpen,
  });
}

/** Starts any program like that. */
export function launch(
  program: string,
  args: readonly string[],
  { env = {}, stdin, isOpen }: CliOptions = {},
): Cli {
  const child = spawn(program, args, {
    cwd: ROOT,
    // A session without a terminal, also where a person runs the tests at one.
    detached: true,
    env: { ...process.env, NO_COLOR: "1", REDIS_URL: "", ...env },
  });
  running.add(child);
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk) => stdout += chunk);
  child.stderr.on("data", (chunk) => stderr += chunk);
  child.stdin.on("error", () => {});
  if (stdin !== undefined) child.stdin.write(stdin);
  if (!isOpen) child.stdin.end();
  const numbers: Record<string, number> = {
    ...{ SIGHUP: 129, SIGINT: 130, SIGKILL: 137, SIGTERM: 143 },
  };
  let hasEnded = false;
  const exited = new Promise<number>((resolve) => {
    child.on("error", (error) => {
      stderr += error.message;
      resolve(-1);
    });
    // By itself, not by its streams: a command may outlive it, and hold them.
    child.on("exit", (code, signal) => {
      running.delete(child);
      hasEnded = true;
      const result = code ?? numbers[signal ?? ""] ?? -1;
      const closed = new Promise((done) => child.on("close", done));
      const limit = new Promise((done) => setTimeout(done, 300));
      Promise.race([closed, limit]).then(() => resolve(result));
    });
  });
  return {
    pid: child.pid!,
    get stdout() {
      return stdout;
    },
    get stderr() {
      return stderr;
    },
    exited,
    // Not by the child's own kill(): Deno then takes that for how it ended.
    kill(signal) {
      if (!hasEnded) process.kill(child.pid!, signal);
    },
    write: (text) => void child.stdin.write(text),
    async says(look) {
      await until(
        `${look} in ${JSON.stringify(args.slice(-4))}`,
        () => {
          if (look.test(stdout) || look.test(stderr)) return true;
          if (hasEnded) throw new Error(`Ended: ${stdout}${stderr}`);
          return false;
        },
      );
    },
    async [Symbol.asyncDispose]() {
      // Its command goes first: killed, it could not see to that by itself.
      if (!hasEnded) process.kill(child.pid!, "SIGTERM");
      const limit = new Promise((done) => setTimeout(done, 2_000));
      await Promise.race([exited, limit]);
      if (!hasEnded) process.kill(child.pid!, "SIGKILL");
      await exited;
    },
  };
}

/** Runs it to its end. */
export async function ran(
  args: readonly (string | number)[],
  options?: CliOptions,
): Promise<Outcome> {
  const cli = lockCli(args, options);
  const code = await cli.exited;
  return { code, stdout: cli.stdout, stderr: cli.stderr };
}

let caller: Script | undefined;
let last: Promise<unknown> = Promise.resolve();
after(async () => await caller?.[Symbol.asyncDispose]());

/**
 * The same without a process of its own, which costs more than most calls: one
 * serves all of them, in turn. For what starts no command and is soon over.
 */
export function asked(
  args: readonly (string | number)[],
  { env = {} }: Pick<CliOptions, "env"> = {},
): Promise<Outcome> {
  const call: Call = {
    args: args.map(String),
    env: { NO_COLOR: "1", REDIS_URL: "", ...env },
  };
  const answer = last.then(async () => {
    caller ??= spawnScript(new URL("caller.ts", import.meta.url));
    caller.send(call);
    try {
      return await caller.next(undefined, 45_000) as Message & Outcome;
    } catch (error) {
      // What is said to this call after all is no answer to the next.
      await caller[Symbol.asyncDispose]();
      caller = undefined;
      throw error;
    }
  });
  last = answer.catch(() => {});
  return answer;
}

/** Whether there is such a process, and no mere memory of it. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  try {
    const list = ["-o", "stat=", "-p", `${pid}`];
    return !execFileSync("ps", list, { encoding: "utf8" }).startsWith("Z");
  } catch {
    return false;
  }
}
