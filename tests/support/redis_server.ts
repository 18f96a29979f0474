/**
 * A server of one's own: on a free port, with a temporary directory, to be
 * frozen, killed and brought back as the story wants it.
 *
 * One limit: where the test process itself is ended by SIGKILL, nobody is left
 * to stop its servers. They listen on 127.0.0.1 only and keep nothing.
 */
import { type ChildProcess, spawn } from "node:child_process";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";

import { Onlooker } from "./resp.ts";

/** How to start a server. */
export interface RedisOptions {
  /** More of its command line, e.g. `["--appendonly", "yes"]`; it wins. */
  args?: string[];
  /** A free one unless given. */
  port?: number;
  /** What clients must AUTH with. */
  password?: string;
  /** Makes it a sentinel: the lines of its settings, where it writes more. */
  sentinel?: readonly string[];
}

/** A running server. */
export interface RedisServer extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly url: string;
  readonly password: string | undefined;
  /** Another one after `restart()`. */
  readonly pid: number;
  /** Ends it in good order, and removes its directory. */
  stop(): Promise<void>;
  /** Ends it at once, by SIGKILL; `restart()` brings it back. */
  kill(): Promise<void>;
  /** Stops its clock, by SIGSTOP: connections stay up, nothing is answered. */
  freeze(): void;
  /** Undoes `freeze()`. */
  thaw(): void;
  /** Ends it, if need be, and starts it anew: same port, same directory. It
   * comes back empty, unless `args` made it write its data down. */
  restart(): Promise<void>;
  /** Asks it on a connection of our own; error replies reject as they read. */
  command(...args: (string | number)[]): Promise<unknown>;
}

/** Why no server can be started here, or undefined when one can. */
export function redisMissing(): string | undefined {
  return findServer() ? undefined : "no Redis-compatible server on PATH " +
    "(redis-server, valkey-server or redis-check-rdb)";
}

/** Starts a server; it answers when this resolves. */
export async function startRedis(
  options: RedisOptions = {},
): Promise<RedisServer> {
  const program = findServer();
  if (!program) throw new Error(`Cannot start a server: ${redisMissing()}`);
  const { args = [], password, sentinel } = options;
  const dir = mkdtempSync(join(tmpdir(), "lock-redis-"));
  dirs.add(dir);
  const settings = join(dir, "sentinel.conf");
  if (sentinel) writeFileSync(settings, `${sentinel.join("\n")}\n`);
  let port = options.port ?? 0;
  let child: ChildProcess;
  let onlooker: Onlooker;

  async function start(): Promise<void> {
    // Between finding a port free and taking it, somebody else may take it; one
    // that is to be had again is given back, as others only try it out.
    for (let tries = options.port ? 1 : port ? 20 : 5;; tries--) {
      const at = port || await freePort();
      onlooker = new Onlooker(at, password);
      child = launch(program!, [
        ...sentinel ? [settings, "--sentinel"] : [],
        ...["--port", `${at}`, "--bind", "127.0.0.1", "--dir", dir],
        ...["--save", "", "--appendonly", "no", "--logfile", "server.log"],
        ...password === undefined ? [] : ["--requirepass", password],
        ...args,
      ]);
      try {
        await answered(child, onlooker);
        port = at;
        return;
      } catch (cause) {
        onlooker.close();
        await end(child);
        if (tries > 1) {
          if (port) await new Promise((done) => setTimeout(done, 50));
          continue;
        }
        throw new Error(`No server on port ${at}:\n${logOf(dir)}`, { cause });
      }
    }
  }

  try {
    await start();
  } catch (error) {
    remove(dir);
    throw error;
  }
  const auth = password === undefined
    ? ""
    : `:${encodeURIComponent(password)}@`;
  const server: RedisServer = {
    host: "127.0.0.1",
    port,
    url: `redis://${auth}127.0.0.1:${port}`,
    password,
    get pid() {
      return child.pid!;
    },
    async stop() {
      onlooker.close();
      await end(child);
      remove(dir);
    },
    async kill() {
      onlooker.close();
      await end(child);
    },
    freeze: () => signal(child, "SIGSTOP"),
    thaw: () => signal(child, "SIGCONT"),
    async restart() {
      onlooker.close();
      await end(child);
      await start();
    },
    command: (...args) => onlooker.ask(...args),
    [Symbol.asyncDispose]: () => server.stop(),
  };
  return server;
}

/**
 * A port of 127.0.0.1 that was free a moment ago. Below those that a system
 * gives out by itself: there, while a server is away, a connection of somebody
 * else's may take its port.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    if (await isFree(port)) return port;
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE") resolve(false);
      else reject(error);
    });
    server.listen(port, "127.0.0.1", () => {
      server.close(() => resolve(true));
    });
  });
}

/** Debian's redis-check-rdb is the server by another name: it goes by argv0. */
function findServer(): string | undefined {
  const names = ["redis-server", "valkey-server", "redis-check-rdb"];
  const folders = (process.env.PATH ?? "").split(delimiter).filter(Boolean);
  for (const name of names) {
    for (const folder of folders) {
      if (existsSync(join(folder, name))) return join(folder, name);
    }
  }
}

// For the test that failed, or forgot, to stop its own.
const running = new Set<ChildProcess>();
const dirs = new Set<string>();
process.on("exit", () => {
  for (const child of running) signal(child, "SIGKILL");
  dirs.forEach(remove);
});

function remove(dir: string): void {
  rmSync(dir, { recursive: true, force: true });
  dirs.delete(dir);
}

function launch(program: string, args: string[]): ChildProcess {
  const child = spawn(program, args, {
    argv0: "redis-server",
    stdio: "ignore",
  });
  running.add(child);
  child.on("exit", () => running.delete(child));
  child.on("error", () => running.delete(child));
  return child;
}

/** Waits until it is this very child that answers at its port. */
async function answered(child: ChildProcess, server: Onlooker): Promise<void> {
  const deadline = performance.now() + 10_000;
  for (let pause = 5;; pause = Math.min(2 * pause, 100)) {
    if (!running.has(child)) throw new Error("The server ended by itself");
    try {
      const info = await server.ask("INFO", "server");
      if (!String(info).includes(`process_id:${child.pid}\r\n`)) {
        throw new Error("Somebody else answers at this port");
      }
      // INFO is answered while it still reads its data; PING says LOADING.
      await server.ask("PING");
      return;
    } catch (error) {
      // Not yet listening, or still loading.
      if (performance.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/**
 * Ends the child and waits for it. By SIGKILL, as it has nothing to save: what
 * it was told to write down is written before it answers; and it looks for a
 * SIGTERM ten times a second only.
 */
async function end(child: ChildProcess): Promise<void> {
  if (!running.has(child)) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  signal(child, "SIGKILL");
  await gone;
}

function signal(child: ChildProcess, name: NodeJS.Signals): void {
  // Only a child that has not been waited for still owns its pid.
  if (running.has(child) && child.pid) process.kill(child.pid, name);
}

function logOf(dir: string): string {
  try {
    return readFileSync(join(dir, "server.log"), "utf8").slice(-2_000);
  } catch {
    return "(it wrote no log)";
  }
}
