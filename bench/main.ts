/**
 * How does the library compare, on this machine, under this runtime? Runs every
 * suite, prints its table, and writes all of it to results.json beside this
 * file, where each runtime has its own entry.
 *
 *     node tools/bench.mjs [--runtime node,deno,bun] [--suite size] [--quick]
 *     node tools/bench.mjs [--runtime node] --cluster [--quick]
 *
 * A further suite is a file of its own, and a name in the list below.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";

import { runtime } from "../tests/support/process.ts";
import { startCluster } from "../tests/support/redis_cluster.ts";
import { startRedis } from "../tests/support/redis_server.ts";
import { compat } from "./compat.ts";
import { contended } from "./contended.ts";
import { type Report, type Settings, tableOf } from "./harness.ts";
import { held } from "./held.ts";
import { manyKeys } from "./many_keys.ts";
import { quorum } from "./quorum.ts";
import { quorumWaiting } from "./quorum_waiting.ts";
import { several } from "./several.ts";
import { size } from "./size.ts";
import { uncontended } from "./uncontended.ts";

const suites: Record<
  string,
  (settings: Settings) => Promise<Report | readonly Report[]>
> = {
  uncontended,
  many_keys: manyKeys,
  contended,
  held,
  several,
  quorum,
  quorum_waiting: quorumWaiting,
  compat,
  size,
};

const RESULTS = new URL("./results.json", import.meta.url);

const { suite, quick, cluster: isCluster } = parseArgs({
  args: process.argv.slice(2),
  options: {
    suite: { type: "string" },
    quick: { type: "boolean", default: false },
    // Waiting in line in a Cluster of three masters, and nothing else.
    cluster: { type: "boolean", default: false },
  },
}).values;
const chosen = isCluster
  ? ["contended"]
  : suite?.split(",") ?? Object.keys(suites);
const stranger = chosen.find((name) => !(name in suites));
if (stranger !== undefined) {
  throw new Error(
    `No suite "${stranger}": there are ${Object.keys(suites).join(", ")}`,
  );
}

const server = process.env.REDIS_URL ? undefined : await startRedis();
const url = server?.url ?? process.env.REDIS_URL!;
const cluster = isCluster ? await startCluster() : undefined;
const { versions } = process;
const version = runtime === "node"
  ? versions.node
  : (versions as Record<string, string>)[runtime];
console.log(`\n## ${runtime} ${version}`);
const reports: Report[] = [];
try {
  for (const name of chosen) {
    const found = [await suites[name]({ url, quick, cluster: cluster?.urls })]
      .flat();
    reports.push(...found);
    for (const report of found) console.log(`\n${tableOf(report)}`);
  }
} finally {
  await server?.stop();
  await cluster?.stop();
}

const results = existsSync(RESULTS)
  ? JSON.parse(readFileSync(RESULTS, "utf8"))
  : {};
const at = new Date().toISOString();
const earlier = results[runtime]?.reports ?? {};
const now = reports.map(({ name, ...report }) => [
  name,
  { at, quick, ...report },
]);
results[runtime] = {
  version,
  packages: packages(),
  // A suite that was left out this time keeps what it had.
  reports: { ...earlier, ...Object.fromEntries(now) },
};
writeFileSync(RESULTS, JSON.stringify(results, null, 2) + "\n");

/** Which version of each package it was. */
function packages(): Record<string, string> {
  const read = (path: string) =>
    JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8"));
  const versionOf = (name: string) =>
    read(`./node_modules/${name}/package.json`).version;
  return Object.fromEntries(
    Object.keys(read("./package.json").devDependencies)
      .map((name) => [name, versionOf(name)]),
  );
}
