/**
 * How long it takes the command line tool from its start to a command that runs
 * under the lock, beside the bare start of each runtime:
 *
 *     REDIS_URL=redis://localhost node tools/cli_start.mjs [ROUNDS]
 */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

import { bringBun, bringDeno, capture, ROOT } from "./bring.mjs";

const rounds = Number(process.argv[2] ?? 20);
const folder = mkdtempSync(join(tmpdir(), "lock-start-"));
const nothing = join(folder, "nothing.mjs");
const file = join(folder, "lock-cli.mjs");
const binary = join(folder, "lock-cli");
writeFileSync(nothing, `process.stdout.write("x");`);
for (const args of [[file], ["--binary", binary]]) {
  const tool = join(ROOT, "tools", "build_cli.mjs");
  const { code, output } = await capture(process.execPath, [tool, ...args]);
  if (code !== 0) throw new Error(output);
}
const [deno, bun] = await Promise.all([bringDeno(), bringBun()]);
const source = join(ROOT, "cli", "mod.ts");
const command = ["run", "lock:start-time", "--", "echo", "x"];
const subjects = {
  "deno, nothing": [deno, "run", "-A", nothing],
  "deno run cli/mod.ts": [deno, "run", "-A", source, ...command],
  "node, nothing": [process.execPath, nothing],
  "node lock-cli.mjs": [process.execPath, file, ...command],
  "bun, nothing": [bun, nothing],
  "bun cli/mod.ts": [bun, source, ...command],
  "binary": [binary, ...command],
};

/** Milliseconds until it has said its first word. */
function timeOf([program, ...args]) {
  return new Promise((resolve, reject) => {
    const begunAt = performance.now();
    const child = spawn(program, args, { cwd: ROOT });
    let ms;
    child.stdout.once("data", () => ms = performance.now() - begunAt);
    let complaint = "";
    child.stderr.on("data", (text) => complaint += text);
    child.on("close", () => ms ? resolve(ms) : reject(new Error(complaint)));
  });
}

try {
  const times = {};
  for (let round = -1; round < rounds; round++) {
    for (const [name, argv] of Object.entries(subjects)) {
      const ms = await timeOf(argv);
      // The first fills the caches.
      if (round >= 0) (times[name] ??= []).push(ms);
    }
  }
  for (const [name, all] of Object.entries(times)) {
    all.sort((a, b) => a - b);
    const [least, median] = [all[0], all[all.length >> 1]]
      .map((ms) => `${ms.toFixed(0)} ms`.padStart(7));
    console.log(`${name.padEnd(20)} median ${median}, least ${least}`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
