/**
 * The table of docs/clients.md: which client runs under which runtime, and how
 * it waits there, made from what the tests did.
 *
 *     node tools/clients_table.mjs          # runs them, compares
 *     node tools/clients_table.mjs --write  # runs them, writes it anew
 *     node tools/clients_table.mjs --log f  # compares with a run that noted f
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

import { capture, ROOT } from "./bring.mjs";

const PAGE = join(ROOT, "docs", "clients.md");
const RUNTIMES = ["Deno", "Bun", "Node"];
const BEGIN = "<!-- clients: made by tools/clients_table.mjs -->";
const END = "<!-- clients: end -->";

/** What a client's tests begin with, and what readers call it. */
const CLIENTS = {
  "ioredis": "ioredis 6",
  "ioredis5": "ioredis 5",
  "ioredis Cluster": "ioredis 6, `Cluster`",
  "redis": "node-redis 6",
  "redis5": "node-redis 5",
  "redis4": "node-redis 4",
  "redis pool": "node-redis 6, pool",
  "redis cluster": "node-redis 6, cluster",
  "upstash": "@upstash/redis 1",
  "bun": "Bun's `RedisClient`",
  "glide": "Valkey GLIDE 2",
  "glide cluster": "Valkey GLIDE 2, cluster",
  "function": "a function",
  "minimal": "four methods",
};

/** The tests that every client has to pass, where there is one. */
const FILES = [
  "tests/contract/redis_test.ts",
  "tests/contract/wait_test.ts",
  "tests/contract/cluster_test.ts",
  "tests/contract/event_redis_test.ts",
  "tests/integration/several_keys_test.ts",
  "tests/faults/lost_reply_test.ts",
];

/** What a test shows by having passed. */
const SIGNS = {
  waiting: {
    "an observer is told of the wait": "called",
    "an observer is told of the wait, and that nobody can call": "asks",
  },
  "several keys": {
    "several keys: taken all, each once and sorted, and freed all": "yes",
    "keys of several slots are taken together, or none": "yes",
  },
  "a lost reply to an acquire": {
    "an acquire that is sent again finds its own lock": "sent again, found",
    "an acquire whose reply is lost leaves no orphan": "cleaned away",
  },
};

const { write, log } = parseArgs({
  options: { write: { type: "boolean" }, log: { type: "string" } },
}).values;

const ends = log === undefined ? await run() : noted(log);
const bad = ends.filter(({ ok, name }) => !ok && clientOf(name));
for (const { runtime, name } of bad) console.log(`FAIL ${runtime}: ${name}`);
if (bad.length > 0) process.exit(1);

const table = tableOf();
const page = readFileSync(PAGE, "utf8");
const [from, to] = [page.indexOf(BEGIN), page.indexOf(END)];
if (from < 0 || to < from) throw new Error(`${PAGE} has no place for it`);
const anew = `${page.slice(0, from)}${BEGIN}\n\n${table}\n${page.slice(to)}`;
if (write) writeFileSync(PAGE, anew);
else if (anew !== page) {
  console.log(`docs/clients.md has another table than this:\n\n${table}`);
  console.log("If that is meant: node tools/clients_table.mjs --write");
  process.exitCode = 1;
}

/** Runs the tests: how each of them ended. */
async function run() {
  const folder = mkdtempSync(join(tmpdir(), "lock-clients-"));
  try {
    const file = join(folder, "ran.jsonl");
    const args = ["--only", "deno,bun,node", "--files", FILES.join()];
    const { output } = await capture(
      process.execPath,
      [join(ROOT, "tools", "test.mjs"), ...args],
      { env: { ...process.env, TEST_LOG: file } },
    );
    console.log(output.trimEnd().split("\n").at(-1));
    return noted(file);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** How each ended; the last time, where it was run again. */
function noted(file) {
  const lines = readFileSync(file, "utf8").trim().split("\n");
  const ends = lines.map((line) => JSON.parse(line));
  return [
    ...new Map(ends.map((end) => [`${end.runtime} ${end.name}`, end])).values(),
  ];
}

function clientOf(test) {
  return Object.keys(CLIENTS).find((name) => test.startsWith(`${name}: `));
}

/** The table, with columns as wide as `deno fmt` has them. */
function tableOf() {
  const rows = [["client", ...RUNTIMES, ...Object.keys(SIGNS)]];
  for (const [name, title] of Object.entries(CLIENTS)) {
    const its = ends.filter((end) => clientOf(end.name) === name);
    if (its.length === 0) throw new Error(`No test of ${name} has run`);
    const cells = RUNTIMES.map((under) =>
      its.some(({ runtime }) => runtime === under) ? "yes" : "–"
    );
    for (const signs of Object.values(SIGNS)) {
      const [sign] = Object.entries(signs).filter(([sentence]) => {
        return its.some((end) => end.name === `${name}: ${sentence}`);
      });
      cells.push(sign?.[1] ?? "–");
    }
    rows.push([title, ...cells]);
  }
  const widths = rows[0].map((_, i) =>
    Math.max(...rows.map((row) => row[i].length))
  );
  rows.splice(1, 0, widths.map((width) => "-".repeat(width)));
  return rows.map((row) =>
    `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |\n`
  ).join("");
}
