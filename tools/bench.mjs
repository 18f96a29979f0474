/**
 * The benchmark, from nothing but Node and npm: under each runtime, one after
 * the other, as they would slow each other down.
 *
 *     node tools/bench.mjs
 *     node tools/bench.mjs --runtime node,bun --suite many_keys --quick
 *     node tools/bench.mjs --runtime node --cluster
 *
 * The server is the one at REDIS_URL, or else one of its own.
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

import {
  bringBenchPackages,
  bringBun,
  bringDeno,
  bringPackages,
  bringRedis,
  ROOT,
} from "./bring.mjs";

const { runtime, suite, quick, cluster } = parseArgs({
  options: {
    runtime: { type: "string", default: "node,deno,bun" },
    suite: { type: "string" },
    quick: { type: "boolean", default: false },
    cluster: { type: "boolean", default: false },
  },
}).values;

const runners = {
  // tsx comes with the packages of the root.
  node: async () => {
    await bringPackages();
    return [process.execPath, "--import", "tsx"];
  },
  deno: async () => [
    await bringDeno(),
    ...["run", "-A", "--no-config", "--no-lock"],
    // The same files as for the other two, and none of the root's: its
    // deno.json speaks of other versions of the clients.
    "--node-modules-dir=manual",
  ],
  bun: async () => [await bringBun(), "run"],
};

const chosen = runtime.split(",");
const stranger = chosen.find((name) => !Object.hasOwn(runners, name));
if (stranger !== undefined) {
  const known = Object.keys(runners).join(", ");
  console.error(`No runtime "${stranger}": there are ${known}`);
  process.exit(2);
}

await bringBenchPackages();
if (!process.env.REDIS_URL) await bringRedis();
for (const name of chosen) {
  const [program, ...how] = await runners[name]();
  const code = await run(program, [
    ...how,
    join("bench", "main.ts"),
    ...suite === undefined ? [] : ["--suite", suite],
    ...quick ? ["--quick"] : [],
    ...cluster ? ["--cluster"] : [],
  ]);
  if (code !== 0) process.exitCode = 1;
}

/** Runs it in the root, talking to the same terminal; gives its exit code. */
function run(program, args) {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: ROOT, stdio: "inherit" });
    child.on("error", (error) => {
      console.error(error.message);
      resolve(1);
    });
    child.on("exit", (code) => resolve(code ?? 1));
  });
}
