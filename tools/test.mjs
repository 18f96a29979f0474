/**
 * The gate: everything that a change must pass, from nothing but Node and npm.
 *
 *     node tools/test.mjs
 *     node tools/test.mjs --only deno,lint
 *     node tools/test.mjs --only bun --files tests/unit
 *
 * Every step runs, whatever failed before it. What fails in a suite is run once
 * more when all is quiet, and counts if it fails there: on two cores that three
 * runtimes share, a server can be late by more than a test allows for. A runtime
 * that breaks down before it has told a sum is started once more. Which these
 * were is told. The last line is the sum.
 */
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, posix } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

import {
  bringBun,
  bringDeno,
  bringMemberPackages,
  bringPackages,
  bringRedis,
  capture,
  ROOT,
} from "./bring.mjs";
import { compile } from "./compile.mjs";
import { doorsOf, membersOf } from "./members.mjs";

/** What one step may take: one that hangs must not hang the gate. */
const LIMIT_MS = 600_000;
/** How many checks, or files of one suite, run at the same time. */
const AT_ONCE = 2;

const { only, files } = parseArgs({
  options: { only: { type: "string" }, files: { type: "string" } },
}).values;

const env = { ...process.env, NO_COLOR: "1" };
// Node warns when it finds both.
delete env.FORCE_COLOR;

const members = membersOf(ROOT);
const doors = [
  ...new Set(
    [".", ...members].flatMap((member) =>
      doorsOf(ROOT, member).map(({ path }) => path)
    ),
  ),
];
const code = existing([
  ...["mod.ts", "src", "tests", "examples", "demo", "bench", "tools"],
  ...members.flatMap((member) =>
    ["mod.ts", "src", "tests"].map((path) => posix.join(member, path))
  ),
]);
const documents = [
  ...existing(["mod.ts", "src", "README.md"]),
  ...filesUnder("docs", ".md"),
  ...existing(
    members.flatMap((member) =>
      ["mod.ts", "src", "README.md"].map((path) => posix.join(member, path))
    ),
  ),
];
// The units last: none of them takes long, when there is nothing else to do.
const folders = [...members.map((member) => `${member}/tests`), "tests"];
const suites = (files?.split(",") ?? folders)
  .flatMap((path) => filesUnder(posix.join(path), "_test.ts"));
/** What Node runs: the suites, and what they start. */
const scripts = [...folders, "demo"].flatMap((path) => filesUnder(path, ".ts"));

// Cheap ones first, two at a time, and the suites after, all side by side and
// two files of each at a time: they wait more than they compute.
const checks = [
  { name: "format", deno: ["fmt", "--check"] },
  { name: "lint", deno: ["lint"] },
  { name: "types", deno: ["check", "--doc", ...code] },
  { name: "doc-lint", deno: ["doc", "--lint", ...doors] },
  { name: "surface", node: ["tools/surface.mjs"] },
  {
    name: "examples",
    deno: ["run", "-A", "tools/examples.ts", ...documents],
    count: denoCount,
  },
  {
    name: "publish",
    deno: ["publish", "--dry-run", "--allow-dirty", "--config"],
    each: [".", ...members].map((member) => posix.join(member, "deno.json")),
  },
];
const runners = [
  {
    name: "deno",
    // The step "types" has checked them.
    deno: ["test", "-A", "--no-check", "--parallel", ...suites],
    env: { DENO_JOBS: `${AT_ONCE}` },
    count: denoCount,
    // Files of one process: what failed says whose it is.
    failedIn: (output) =>
      output.matchAll(/^\.\/(\S+_test\.ts) => .* FAILED \(/gm),
    again: ["test", "-A", "--no-check"],
  },
  {
    name: "bun",
    // Its own limit, which comes before those of the tests: see support/test.ts.
    bun: ["test", "--timeout", "70000"],
    // With the dot they are paths; without, patterns that match more.
    each: suites.map((path) => `./${path}`),
    count: bunCount,
  },
  {
    name: "node",
    node: [
      ...["--enable-source-maps", "--test-force-exit"],
      "--test-reporter=spec",
    ],
    each: suites,
    isCompiled: true,
    count: nodeCount,
  },
];

const wanted = only?.split(",");
const known = [...checks, ...runners].map((step) => step.name);
const stranger = wanted?.find((name) => !known.includes(name));
if (stranger !== undefined) {
  console.error(`No step "${stranger}": there are ${known.join(", ")}`);
  process.exit(2);
}
const chosen = (steps) =>
  steps.filter((step) => wanted?.includes(step.name) ?? true);

let passed = 0;
let failed = 0;
/** How a test says that two had a lock: no machine is too slow for that. What it
 * is called may say "never". */
const TWO_INSIDE = /Error\b.*(?<!never )\btwo (?:inside|holders)\b/;
/** What comes of compiling the suites for Node: once for all. */
let compiling;
/** Step and number of the tests that a runner skipped. */
const skips = [];
/** What the skipped tests had to say. */
const excuses = new Set();

const programs = await bringAll();
await forEach(chosen(checks), take);
// With all of the suites: what each test came to, for the table of clients.
const log = only ?? files
  ? undefined
  : join(mkdtempSync(join(tmpdir(), "lock-tests-")), "ran.jsonl");
if (log !== undefined) env.TEST_LOG = log;
/** What failed while the others ran as well. */
const suspects = [];
await Promise.all(chosen(runners).map(take));
for (const suspect of suspects) await takeAgain(suspect);
if (log !== undefined) {
  await take({
    name: "clients",
    node: ["tools/clients_table.mjs", "--log", log],
  });
  rmSync(dirname(log), { recursive: true });
}

for (const excuse of excuses) console.log(excuse);
for (const { name, skipped } of skips) {
  console.log(`skipped under ${name}: ${skipped}`);
  if (process.env.CI) failed += skipped;
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;

/** Finds what the chosen steps run with; what cannot be had fails as a step. */
async function bringAll() {
  const steps = chosen([...checks, ...runners]);
  const running = chosen(runners).length > 0;
  const found = { node: process.execPath };
  const bring = async (name, needed, how) => {
    if (!needed) return;
    try {
      found[name] = await how();
    } catch (error) {
      failed++;
      console.log(`FAIL bring ${name}\n${error.message}`);
    }
  };
  await Promise.all([
    bring(
      "packages",
      steps.some((s) => s.bun || s.count === nodeCount),
      () => Promise.all([bringPackages(), ...members.map(bringMemberPackages)]),
    ),
    // surface.mjs finds Deno by itself, but not twice at the same time.
    bring("deno", steps.some((s) => s.deno || s.name === "surface"), bringDeno),
    bring("bun", steps.some((s) => s.bun), bringBun),
    bring(
      "redis",
      running || steps.some((s) => s.name === "examples"),
      bringRedis,
    ),
  ]);
  return found;
}

/** Runs one step, tells how it went, and adds to the sum. */
async function take(step) {
  const begun = performance.now();
  const kind = ["deno", "bun", "node"].find((kind) => step[kind]);
  const program = programs[kind];
  const sum = { passed: 0, failed: 0, skipped: 0, suspected: 0 };
  const complaints = [];
  const run = async (file) => {
    const start = () => runStep(step, program, step[kind], file);
    let { code, output } = program
      ? await start()
      : { code: 1, output: `There is no ${kind} to run it with\n` };
    // A runtime that breaks down says nothing of the tests: once more, then.
    if (
      program && runners.includes(step) && code !== 0 && !step.count(output)
    ) {
      const ending = output.trimEnd().split("\n").slice(-20).join("\n");
      console.log(
        `     ${step.name} broke down, and is started again\n${ending}`,
      );
      ({ code, output } = await start());
    }
    const { remark, ...counted } = judged(step, code, output);
    for (const name of Object.keys(sum)) sum[name] += counted[name] ?? 0;
    for (const [line] of output.matchAll(/^SKIPPED .*$/gm)) excuses.add(line);
    if (counted.failed === 0) return;
    const complaint = `${output.trimEnd()}\n${remark}`;
    for (const [path, count] of failedIn(step, file, output, counted.failed)) {
      const words = step.again ?? step[kind];
      suspects.push({ step, program, words, path, count, complaint });
      sum.failed -= count;
      sum.suspected += count;
    }
    if (sum.failed > 0) complaints.push(complaint);
  };
  // Bun runs all files of one process one after the other; Deno publishes one
  // member at a time.
  await forEach(program && step.each ? step.each : [undefined], run);
  passed += sum.passed;
  failed += sum.failed;
  if (sum.skipped) skips.push({ name: step.name, skipped: sum.skipped });

  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  const doubt = sum.suspected ? `, ${sum.suspected} to be run again` : "";
  const count = step.count ? `  ${sum.passed} passed${doubt}` : "";
  if (sum.failed === 0) {
    console.log(`ok   ${step.name.padEnd(8)}  ${seconds} s${count}`);
  } else {
    console.log(`FAIL ${step.name.padEnd(8)}  ${seconds} s`);
    for (const complaint of complaints) console.log(complaint.trimEnd());
  }
}

/**
 * In which files how many tests failed that deserve a second look, as far as
 * that can be told: of a file that does not load, or a hook, it can't be.
 */
function failedIn(step, file, output, failed) {
  const counts = new Map();
  if (!runners.includes(step) || TWO_INSIDE.test(output)) return counts;
  if (step.failedIn === undefined) return counts.set(file, failed);
  for (const [, path] of step.failedIn(output)) {
    counts.set(path, (counts.get(path) ?? 0) + 1);
  }
  return counts;
}

/** Runs a file by itself in which tests have failed, and adds to the sum. */
async function takeAgain({ step, program, words, path, count, complaint }) {
  const { code, output } = await runStep(step, program, words, path);
  const alone = judged(step, code, output).failed;
  failed += alone;
  passed += Math.max(0, count - alone);
  console.log(
    `${alone ? "FAIL" : "ok  "} ${step.name.padEnd(8)}  again ${path}: ` +
      `${count} failed among others, ${alone || "none"} alone`,
  );
  const names = namesIn(complaint, path);
  for (const name of names) console.log(`     ${name}`);
  // Why, in a few words: another time it may be no matter of load.
  for (const line of reasonsIn(complaint, names)) console.log(`       ${line}`);
  if (alone > 0) console.log(`${complaint}\n${output.trimEnd()}`);
}

/** The tests of the file at `path` that have failed, in each runner's words. */
function namesIn(output, path) {
  const lines = output.matchAll(
    /^(?:\(fail\) (.*) \[|✖ (.*) \(\S+ms\)$|(?:\.\/(\S+) => )?(.*) \.\.\. FAILED \()/gm,
  );
  const names = [...lines]
    .filter(([, , , file]) => file === undefined || file === path)
    .map(([, bun, node, , deno]) => bun ?? node ?? deno);
  return new Set(names);
}

/** The first words of the errors; of these tests alone, where it is told. */
function reasonsIn(output, names) {
  const pattern = /\b\w*[Ee]rror: .*$/gm;
  // Deno has the files of all in one output, and the errors at its end.
  const own = [...names].flatMap((name) =>
    output.split(`\n${name} => ./`)[1]?.match(pattern)?.slice(0, 1) ?? []
  );
  const reasons = own.length > 0 ? own : output.match(pattern) ?? [];
  return new Set(reasons.slice(0, 3));
}

/** Runs it, compiled where it has to be: what can't be is a failure of its own. */
async function runStep(step, program, words, file) {
  const stepEnv = { ...env, ...step.env };
  let path = file;
  if (step.isCompiled) {
    try {
      const places = await (compiling ??= compile(scripts, members));
      stepEnv.COMPILED = JSON.stringify(Object.fromEntries(places));
      path = places.get(file);
    } catch (error) {
      return { code: 1, output: `${error.message}\n` };
    }
  }
  const args = [...words, ...path ? [path] : []];
  return await capture(program, args, { env: stepEnv, limitMs: LIMIT_MS });
}

/** What the end of one process of a step comes to. */
function judged(step, code, output) {
  if (!step.count) {
    return {
      passed: code === 0 ? 1 : 0,
      failed: code === 0 ? 0 : 1,
      remark: "",
    };
  }
  const counted = step.count(output);
  if (!counted || counted.passed + counted.failed === 0) {
    const remark = "No test was counted: that is a failure, too.\n";
    return { passed: 0, failed: 1, remark };
  }
  // The exit code has the last word: a hook or a load error is no test.
  if (code !== 0 && counted.failed === 0) {
    return { ...counted, failed: 1, remark: "" };
  }
  const isOdd = code === 0 && counted.failed > 0;
  return { ...counted, remark: isOdd ? "Exit code 0, though.\n" : "" };
}

/** Does it with each of the items, `AT_ONCE` at a time. */
async function forEach(items, doIt) {
  const queue = [...items];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (queue.length > 0) await doIt(queue.shift());
  }));
}

/** `ok | 3 passed (2 steps) | 0 failed | 1 ignored (83ms)` */
function denoCount(output) {
  const line = output.match(
    /^(?:ok|FAILED) \| \d+ passed.* \| \d+ failed.*$/gm,
  )?.at(-1);
  return line && {
    passed: numberBefore(" passed", line),
    failed: numberBefore(" failed", line),
    skipped: numberBefore(" ignored", line),
  };
}

/** ` 3 pass`, ` 1 skip`, ` 0 fail`, ` 1 error`, each on a line of its own. */
function bunCount(output) {
  const end = output.match(/^ \d+ (?:pass|skip|todo|fail|errors?)$/gm)
    ?.join("\n");
  return end && {
    passed: numberBefore(" pass", end),
    failed: numberBefore(" fail", end) + numberBefore(" error", end),
    skipped: numberBefore(" skip", end) + numberBefore(" todo", end),
  };
}

/** `# pass 3`, or with an i in a circle for the #, and so on. */
function nodeCount(output) {
  const read = (name) =>
    Number(
      [...output.matchAll(new RegExp(`^\\S ${name} (\\d+)$`, "gm"))]
        .at(-1)?.[1] ?? 0,
    );
  return {
    passed: read("pass"),
    failed: read("fail") + read("cancelled"),
    skipped: read("skipped") + read("todo"),
  };
}

function numberBefore(word, text) {
  return Number(new RegExp(`(\\d+)${word}`).exec(text)?.[1] ?? 0);
}

function existing(paths) {
  return paths.filter((path) => existsSync(join(ROOT, path)));
}

/** The files so named, in `path` or the file itself; sorted. */
function filesUnder(path, ending) {
  const full = join(ROOT, path);
  if (!existsSync(full)) return [];
  if (statSync(full).isFile()) return [path];
  return readdirSync(full, { withFileTypes: true })
    .flatMap((entry) =>
      entry.isDirectory()
        ? filesUnder(posix.join(path, entry.name), ending)
        : entry.name.endsWith(ending)
        ? [posix.join(path, entry.name)]
        : []
    )
    .sort();
}
