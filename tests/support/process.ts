/**
 * A second process, which can be stopped and killed: a script of this repo
 * under the runtime at hand, spoken with in lines of JSON. `child.ts` is its
 * side of the talk.
 */
import { spawn } from "node:child_process";
import { relative } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** Under what this file runs. */
export const runtime: "deno" | "bun" | "node" = "Deno" in globalThis
  ? "deno"
  : "Bun" in globalThis
  ? "bun"
  : "node";

/** What a script says: any JSON object, told apart by its `type`. */
export type Message = { type?: string } & Record<string, unknown>;

/** How a process ended. */
export interface Exit {
  code: number | null;
  signal: string | null;
}

/** A running script. */
export interface Script extends AsyncDisposable {
  readonly pid: number;
  /**
   * The next message (of that type: the others keep waiting). Rejects when the
   * script ends before, or says nothing for `timeoutMs` (15 s).
   */
  next(type?: string, timeoutMs?: number): Promise<Message>;
  /** Sends one message to it. */
  send(message: unknown): void;
  /** Sends a signal, SIGKILL unless given; SIGSTOP and SIGCONT work too. */
  kill(signal?: NodeJS.Signals): void;
  /** Resolves when it has ended. */
  readonly exited: Promise<Exit>;
  /** What it wrote to stderr so far. */
  readonly stderr: string;
}

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** Where the gate has which script compiled for Node: see tools/compile.mjs. */
const COMPILED: Record<string, string> = JSON.parse(
  process.env.COMPILED ?? "{}",
);
const running = new Set<number>();
process.on("exit", () => {
  for (const pid of running) process.kill(pid, "SIGKILL");
});

/** Starts the TypeScript file at `file` (an URL) with the current runtime. */
export function spawnScript(
  file: URL | string,
  args: readonly (string | number)[] = [],
  env: Record<string, string> = {},
): Script {
  const path = fileURLToPath(file);
  const compiled = COMPILED[relative(ROOT, path)];
  const how = {
    deno: ["run", "-A", "--no-check", "--quiet", path],
    bun: ["run", path],
    node: compiled === undefined
      ? ["--import", "tsx", path]
      : ["--enable-source-maps", compiled],
  }[runtime];
  const child = spawn(
    process.execPath,
    [...how, ...args.map(String)],
    // The folder is where all three find their settings.
    { cwd: ROOT, env: { ...process.env, NO_COLOR: "1", ...env } },
  );
  const pid = child.pid ?? 0;
  if (pid) running.add(pid);
  const { stdin, stdout } = child;
  // Writing to one that has ended is no fault: `exited` tells.
  stdin.on("error", () => {});

  let stderr = "";
  child.stderr.on("data", (chunk) => stderr += chunk);

  const said: Message[] = [];
  const listeners = new Set<() => void>();
  let over: Exit | undefined;
  const tell = () => {
    for (const listener of [...listeners]) listener();
  };
  createInterface({ input: stdout }).on("line", (line) => {
    try {
      said.push(JSON.parse(line));
    } catch {
      // Not for us: somebody's console.log.
      stderr += `${line}\n`;
    }
    tell();
  });

  const exited = new Promise<Exit>((resolve) => {
    const ended = (code: number | null, signal: string | null) => {
      running.delete(pid);
      over = { code, signal };
      resolve(over);
      tell();
    };
    child.on("error", (error) => {
      stderr += String(error);
      ended(null, null);
    });
    // "close" and not "exit": then its last words have been read.
    child.on("close", ended);
  });

  return {
    pid,
    exited,
    get stderr() {
      return stderr;
    },
    next(type, timeoutMs = 15_000) {
      const waitedFor = type === undefined ? "anything" : `"${type}"`;
      return new Promise((resolve, reject) => {
        const done = () => {
          clearTimeout(limit);
          listeners.delete(look);
        };
        const look = () => {
          const index = said.findIndex((message) =>
            type === undefined || message.type === type
          );
          if (index >= 0) {
            done();
            resolve(said.splice(index, 1)[0]);
          } else if (over) {
            done();
            const how = over.signal ?? over.code;
            reject(
              new Error(`Ended (${how}) before ${waitedFor}:\n${stderr}`),
            );
          }
        };
        const limit = setTimeout(() => {
          done();
          reject(
            new Error(`No ${waitedFor} in ${timeoutMs} ms:\n${stderr}`),
          );
        }, timeoutMs);
        listeners.add(look);
        look();
      });
    },
    send(message) {
      stdin.write(JSON.stringify(message) + "\n");
    },
    kill(signal = "SIGKILL") {
      if (running.has(pid)) process.kill(pid, signal);
    },
    async [Symbol.asyncDispose]() {
      this.kill();
      await exited;
    },
  };
}
