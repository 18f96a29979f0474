/**
 * Brings what a machine with no more than Node and npm lacks. Each function
 * gives the path of the thing, and touches nothing when it is there already.
 */
import { spawn } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../", import.meta.url));

const RUNTIMES = join(ROOT, "tools", "runtimes");
const windows = process.platform === "win32";

/** The npm packages of the root: gives its node_modules. */
export async function bringPackages() {
  await install(ROOT, "the npm packages");
  return join(ROOT, "node_modules");
}

/** What only the benchmark needs: the peers, and a bundler. */
export async function bringBenchPackages() {
  const folder = join(ROOT, "bench");
  await install(folder, "the benchmark's packages");
  return join(folder, "node_modules");
}

/** What a workspace member needs under Node and Bun, if anything. */
export async function bringMemberPackages(member) {
  const folder = join(ROOT, member);
  if (!existsSync(join(folder, "package-lock.json"))) return;
  await install(folder, `the npm packages of ${member}`);
}

/** Deno, 2.9 or newer: before, its node:test lacks what the suites use. */
export async function bringDeno() {
  const found = await onPath("deno", [2, 9]);
  if (found) return found;
  await install(RUNTIMES, "Deno and Bun");
  const deno = join(RUNTIMES, "node_modules", "deno");
  const program = join(deno, windows ? "deno.exe" : "deno");
  // As bun's below; without it npm leaves a script that starts the program.
  if (!existsSync(program)) {
    await run(process.execPath, [join(deno, "install.cjs")]);
  }
  return await working(program);
}

/** Bun, 1.3 or newer. */
export async function bringBun() {
  const found = await onPath("bun", [1, 3]);
  if (found) return found;
  await install(RUNTIMES, "Deno and Bun");
  const bun = join(RUNTIMES, "node_modules", "bun");
  const program = join(bun, "bin", "bun.exe"); // so named on every system
  // The package holds a stub until its postinstall has run, which npm skips
  // where scripts are switched off.
  if (!await version(program)) {
    await run(process.execPath, [join(bun, "install.js")]);
  }
  return await working(program);
}

/** A Redis-compatible server. */
export async function bringRedis() {
  const found = server();
  if (found) return found;
  if (which("apt-get")) {
    const sudo = process.getuid?.() === 0 ? [] : ["sudo", "-n"];
    if (sudo.length === 0 || await succeeds("sudo", ["-n", "true"])) {
      // The tools alone: they hold the server, and start no service.
      const [command, ...rest] = [
        ...sudo,
        ...["apt-get", "install", "-y", "--no-install-recommends"],
        "redis-tools",
      ];
      say("redis-tools, by apt-get");
      if (!await succeeds(command, rest)) {
        const [command, ...update] = [...sudo, "apt-get", "update"];
        await run(command, update);
        await run(command, rest);
      }
    }
  } else if (process.platform === "darwin" && which("brew")) {
    say("redis, by brew");
    await run("brew", ["install", "redis"]);
  }
  const brought = server();
  if (brought) return brought;
  throw new Error(
    "No Redis server: put redis-server or valkey-server on PATH, e.g. by " +
      "`apt-get install redis-tools` (Debian, Ubuntu; needs root, or sudo " +
      "without a password) or `brew install redis` (macOS)",
  );
}

/** Debian's redis-check-rdb is the server, when it is run under that name. */
function server() {
  return ["redis-server", "valkey-server", "redis-check-rdb"]
    .map(which).find(Boolean);
}

const installs = new Map();

/** `npm ci` in `folder`, unless that was done since its lock file changed. */
function install(folder, what) {
  // Deno and Bun come out of one folder, and may be asked for at once.
  if (!installs.has(folder)) {
    const wanted = join(folder, "package-lock.json");
    const there = join(folder, "node_modules", ".package-lock.json");
    const done = existsSync(there) &&
      statSync(there).mtimeMs >= statSync(wanted).mtimeMs;
    if (!done) say(`${what}, by npm ci`);
    installs.set(
      folder,
      done ? Promise.resolve() : run(
        windows ? "npm.cmd" : "npm",
        [
          // Here all of it is wanted, whatever NODE_ENV or an .npmrc leaves out.
          ...["ci", "--prefix", folder, "--include=dev", "--include=optional"],
          ...["--no-audit", "--no-fund"],
        ],
      ),
    );
  }
  return installs.get(folder);
}

/** Where PATH has the program. */
function which(name) {
  const names = windows ? [`${name}.exe`, `${name}.cmd`] : [name];
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    for (const name of folder === "" ? [] : names) {
      if (existsSync(join(folder, name))) return join(folder, name);
    }
  }
}

/** The same, if it is at least that version. */
async function onPath(name, [major, minor]) {
  const program = which(name);
  const found = program && await version(program);
  if (!found) return undefined;
  const [, a, b] = found.map(Number);
  return a > major || (a === major && b >= minor) ? program : undefined;
}

async function version(program) {
  const { code, output } = await capture(program, ["--version"]);
  return code === 0 ? /(\d+)\.(\d+)\.\d+/.exec(output) : undefined;
}

async function working(program) {
  if (await version(program)) return program;
  throw new Error(`Installed, but does not run: ${program}`);
}

async function succeeds(command, args) {
  return (await capture(command, args)).code === 0;
}

async function run(command, args) {
  const { code, output } = await capture(command, args);
  if (code === 0) return;
  throw new Error(`${[command, ...args].join(" ")} gave ${code}:\n${output}`);
}

/**
 * Runs a command to its end: its exit code, what it wrote to stdout, and all
 * that it said in the order in which it said it.
 */
export function capture(command, args, { env = process.env, limitMs } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: ROOT,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      shell: windows && command.endsWith(".cmd"),
      // A group of its own, so that a limit ends its children with it.
      detached: limitMs !== undefined && !windows,
    });
    let output = "";
    let stdout = "";
    const limit = limitMs && setTimeout(() => {
      output += `\nNot done after ${limitMs} ms: killed\n`;
      kill(child);
    }, limitMs);
    if (limitMs !== undefined) open.add(child);
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => output += text);
    }
    child.stdout.on("data", (text) => stdout += text);
    const done = (code) => {
      clearTimeout(limit);
      open.delete(child);
      resolve({ code, stdout, output });
    };
    child.on("error", (error) => {
      output += `${error.message}\n`;
      done(1);
    });
    child.on("close", (code) => done(code ?? 1));
  });
}

// What leads a group of its own does not hear the terminal's Ctrl-C.
const open = new Set();
process.on("exit", () => open.forEach(kill));
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(name, () => process.exit(1));
}

function kill(child) {
  try {
    if (windows) child.kill();
    else process.kill(-child.pid, "SIGKILL");
  } catch {
    // It was faster.
  }
}

function say(what) {
  process.stderr.write(`bringing ${what}\n`);
}
