/**
 * What does it cost to have the library in a program at all? Its size as one
 * minified file, the packages that it brings, and how much later a process is
 * done that imports it than one that does nothing.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { runtime } from "../tests/support/process.ts";
import {
  type Cell,
  inRounds,
  type Quartiles,
  quartiles,
  type Report,
  type Settings,
} from "./harness.ts";

const ROOT = fileURLToPath(new URL("../", import.meta.url));
const MOD = new URL("../mod.ts", import.meta.url);

/** What the whole library may weigh, gzipped. */
const GOAL_BYTES = 6000;

export async function size({ quick }: Settings): Promise<Report> {
  const { code, packages } = await bundle();
  const gzipped = gzipSync(code, { level: 9 }).length;
  const met = gzipped < GOAL_BYTES ? "met" : "MISSED";
  const dir = mkdtempSync(join(tmpdir(), "lock-bench-"));
  try {
    const file = (name: string, text: string | Uint8Array) => {
      writeFileSync(join(dir, name), text);
      return join(dir, name);
    };
    const empty = file("empty.mjs", "");
    const source = file("source.mjs", `import ${JSON.stringify(MOD.href)};`);
    const bundled = file("bundled.mjs", code);
    const rounds = quick ? 3 : 11;
    const rows: Record<string, Cell>[] = [
      { what: "minified, bytes", value: code.length },
      {
        what: `and gzipped, bytes (goal: < ${GOAL_BYTES}, ${met})`,
        value: gzipped,
      },
      { what: "packages imported", value: packages },
      {
        what: "import of mod.ts, ms more than nothing",
        value: await startMs(empty, source, rounds, true),
      },
      {
        what: "import of the minified file, ms more than nothing",
        value: await startMs(empty, bundled, rounds, false),
      },
    ];
    const title = `Size and start: median (quartiles) of ${rounds} fresh ` +
      "processes of each";
    return { name: "size", title, rows };
  } finally {
    rmSync(dir, { recursive: true });
  }
}

interface Esbuild {
  build(options: object): Promise<{
    outputFiles: { contents: Uint8Array }[];
    metafile: {
      inputs: Record<string, unknown>;
      outputs: Record<string, { imports: { path: string }[] }>;
    };
  }>;
  stop(): Promise<void>;
}

/**
 * All of mod.ts, or of another file, in one, and how many packages came or
 * stayed out.
 */
export async function bundle(
  { minify = true, file = MOD } = {},
): Promise<{ code: Uint8Array; packages: number }> {
  // By a computed name, as in subjects.ts.
  const name = "esbuild";
  const { build, stop }: Esbuild = await import(name);
  const { outputFiles, metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: [fileURLToPath(file)],
    bundle: true,
    minify,
    format: "esm",
    target: "es2022",
    // Left outside, a package shows as an import of the output.
    packages: "external",
    metafile: true,
    write: false,
  });
  await stop();
  const outside = Object.values(metafile.outputs)
    .flatMap(({ imports }) => imports.map(({ path }) => path));
  const foreign = Object.keys(metafile.inputs)
    .filter((path) => path !== "mod.ts" && !path.startsWith("src/"));
  const packages = new Set([...outside, ...foreign]);
  if (packages.size > 0) {
    throw new Error(`mod.ts imports ${[...packages].join(", ")}`);
  }
  return { code: outputFiles[0].contents, packages: packages.size };
}

/** How much longer a process takes with `file` than with the `empty` one. */
async function startMs(
  empty: string,
  file: string,
  rounds: number,
  typescript: boolean,
): Promise<Quartiles> {
  const took = new Map<string, number[]>([[empty, []], [file, []]]);
  await inRounds([empty, file], rounds, (path) => {
    const ms = processMs(path, typescript);
    took.get(path)!.push(ms);
    return Promise.resolve(ms);
  });
  // The first of each was the warm-up.
  const [without, within] = [empty, file].map((path) =>
    took.get(path)!.slice(1)
  );
  return quartiles(within.map((ms, round) => ms - without[round]));
}

function processMs(file: string, typescript: boolean): number {
  const how = {
    deno: ["run", "--no-config", "--no-lock", "--quiet"],
    bun: ["run"],
    // Node 20 reads no TypeScript of its own.
    node: typescript ? ["--import", "tsx"] : [],
  }[runtime];
  const begun = performance.now();
  const { status, stderr } = spawnSync(process.execPath, [...how, file], {
    cwd: ROOT,
    encoding: "utf8",
  });
  const ms = performance.now() - begun;
  if (status !== 0) throw new Error(`${file} ended with ${status}: ${stderr}`);
  return ms;
}
