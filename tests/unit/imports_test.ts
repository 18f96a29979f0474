/**
 * The map of the house as a test: who may import whom. An edge that goes red
 * here is a wall to be moved on purpose, or not at all.
 */
import { assertEquals } from "@std/assert";
import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { fileURLToPath } from "node:url";

import { test } from "../support/test.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** An import: both ends as paths from the root, or a specifier as it stands. */
interface Edge {
  from: string;
  to: string;
}

/** Who may import what besides files of its own room; the first rule counts. */
const RULES: [from: RegExp, allowed: RegExp][] = [
  // Behind a door of its own, as it alone needs a node: module.
  [/^src\/diagnostics\.ts$/, /^(src\/core\/|node:diagnostics_channel$)/],
  [/^mod\.ts$/, /^src\/(?!diagnostics\.ts$|compat\/)/],
  [/^src\/core\//, /^src\/core\//],
  // Where a client takes any command, the others' words for it will do.
  [
    /^src\/clients\/(bun|glide|upstash)\.ts$/,
    /^src\/(core\/|clients\/(port|command)\.ts$)/,
  ],
  [/^src\/clients\//, /^src\/(core\/|clients\/port\.ts$)/],
  // The helpers first: they serve one neighbour, and know at most a helper of it.
  [
    /^src\/backends\/(scripts|slots|failure|quorum)\.ts$/,
    /^src\/(core\/|clients\/port\.ts$)/,
  ],
  [
    /^src\/backends\/departures\.ts$/,
    /^src\/(core\/|clients\/port\.ts$|backends\/(scripts|failure)\.ts$)/,
  ],
  [
    /^src\/backends\/quorum_watch\.ts$/,
    /^src\/(core\/|backends\/quorum\.ts$)/,
  ],
  [
    /^src\/backends\/redis\.ts$/,
    /^src\/(core\/|clients\/port\.ts$|backends\/(scripts|slots|inbox|departures|failure|clean_up)\.ts$)/,
  ],
  [
    /^src\/backends\/inbox\.ts$/,
    /^src\/(core\/|clients\/port\.ts$|backends\/scripts\.ts$)/,
  ],
  [
    /^src\/backends\/redlock\.ts$/,
    /^src\/(core\/|clients\/port\.ts$|backends\/quorum(_watch)?\.ts$)/,
  ],
  [/^src\/backends\//, /^src\/(core\/|clients\/port\.ts$)/],
  [/^src\/connect\.ts$/, /^src\/(core|clients|backends)\//],
  [/^src\/(lock|inspect)\.ts$/, /^src\/(core\/|connect\.ts$)/],
  // The one that may open a connection, if it was given none: see the test.
  [
    /^src\/compat\/redis_mutex\.ts$/,
    /^(src\/(core\/|(lock|inspect|connect)\.ts$)|\(computed\)$)/,
  ],
  [/^src\/compat\//, /^src\/(core\/|(lock|inspect|connect)\.ts$)/],
  // A member of the workspace has what everybody has: the front door.
  [/^cli\//, /^(cli\/src\/|node:\w+$|@dreamer\/utils\/lock$|ioredis$)/],
];

/** The edges that no rule allows. */
function forbidden(edges: Edge[]): Edge[] {
  return edges.filter(({ from, to }) => {
    const rule = RULES.find(([who]) => who.test(from));
    return !rule?.[1].test(to);
  });
}

/** The specifiers that a file imports, dynamic ones and types included. */
function specifiers(source: string): string[] {
  // Examples in comments import as their reader would, by public names.
  const code = source.replace(/^\s*\/\/.*$/gm, "")
    .replace(/\/\*[\s\S]*?\*\//g, "");
  const statement =
    /(?:^|;)\s*(?:import|export)\b[^;"'`]*?\bfrom\s*["']([^"']+)["']/gm;
  const bare = /(?:^|;)\s*import\s*["']([^"']+)["']/gm;
  const dynamic = /\bimport\s*\(\s*(?:["']([^"']+)["'])?/g;
  return [statement, bare, dynamic].flatMap((pattern) =>
    [...code.matchAll(pattern)].map((match) => match[1] ?? "(computed)")
  );
}

function edgesOf(from: string, source: string): Edge[] {
  return specifiers(source).map((specifier) => ({
    from,
    to: specifier.startsWith(".")
      ? posix.join(posix.dirname(from), specifier)
      : specifier,
  }));
}

/** The paths of the files in `folder`, from the root. */
function filesIn(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { withFileTypes: true })
    .flatMap((entry) => {
      const path = posix.join(folder, entry.name);
      if (entry.isDirectory()) return filesIn(path);
      return path.endsWith(".ts") ? [path] : [];
    });
}

test("every import of the sources follows the map", () => {
  const edges = [
    "mod.ts",
    ...filesIn("src"),
    "cli/mod.ts",
    ...filesIn("cli/src"),
  ]
    .flatMap((path) => edgesOf(path, readFileSync(join(ROOT, path), "utf8")));
  assertEquals(edges.length > 0, true);
  assertEquals(forbidden(edges), []);
});

test("what a computed import names is ioredis, and nothing else", () => {
  const path = "src/compat/redis_mutex.ts";
  const source = readFileSync(join(ROOT, path), "utf8");
  const computed = edgesOf(path, source).filter(({ to }) =>
    to === "(computed)"
  );
  assertEquals(computed.length, 1);
  assertEquals(source.match(/\bimport\s*\([^)]*\)/g), ["import(IOREDIS)"]);
  assertEquals(source.match(/\bIOREDIS\b.*=.*$/gm), [
    'IOREDIS: string = "ioredis";',
  ]);
});

test("the map refuses an import across a wall", () => {
  const walls: [string, string][] = [
    ["mod.ts", "npm:ioredis"],
    ["mod.ts", "src/diagnostics.ts"],
    ["mod.ts", "src/compat/redis_mutex.ts"],
    ["src/lock.ts", "src/diagnostics.ts"],
    ["src/connect.ts", "src/diagnostics.ts"],
    ["src/core/events.ts", "src/diagnostics.ts"],
    ["src/core/events.ts", "node:diagnostics_channel"],
    ["src/diagnostics.ts", "node:process"],
    ["src/diagnostics.ts", "src/lock.ts"],
    ["src/lock.ts", "node:crypto"],
    ["src/lock.ts", "ioredis"],
    ["src/lock.ts", "src/backends/redis.ts"],
    ["src/core/wait.ts", "src/backends/memory.ts"],
    ["src/core/wait.ts", "jsr:@std/async"],
    ["src/core/wait.ts", "@std/assert"],
    ["src/clients/bun.ts", "src/clients/ioredis.ts"],
    ["src/clients/ioredis.ts", "src/clients/command.ts"],
    ["src/clients/command.ts", "src/clients/bun.ts"],
    ["src/clients/bun.ts", "src/connect.ts"],
    ["src/backends/memory.ts", "src/backends/scripts.ts"],
    ["src/backends/redis.ts", "src/backends/quorum.ts"],
    ["src/backends/scripts.ts", "src/backends/redis.ts"],
    ["src/backends/redlock.ts", "src/clients/ioredis.ts"],
    ["src/backends/quorum_watch.ts", "src/backends/redlock.ts"],
    ["src/backends/inbox.ts", "src/backends/redis.ts"],
    ["src/backends/redlock.ts", "src/backends/inbox.ts"],
    ["src/connect.ts", "src/lock.ts"],
    ["src/compat/redlock.ts", "src/compat/upstash.ts"],
    ["src/compat/redlock.ts", "(computed)"],
    ["src/compat/redis_mutex.ts", "ioredis"],
    ["src/compat/redis_mutex.ts", "src/backends/redis.ts"],
    ["src/core/wait.ts", "mod.ts"],
    ["src/attic.ts", "src/core/wait.ts"],
    ["cli/src/run.ts", "src/inspect.ts"],
    ["cli/src/run.ts", "redis"],
    ["src/lock.ts", "cli/src/run.ts"],
  ];
  const edges = walls.map(([from, to]) => ({ from, to }));
  assertEquals(forbidden(edges), edges);
});

test("the map is read off every form of import, and not off comments", () => {
  const source = `
import a from "./a.ts";
import {
  type B,
  c,
} from './b.ts';
import * as d from "../d.ts"; import "./e.ts";
export { f } from "./f.ts";
export * from "./g.ts";
export type { H } from "./h.ts";
type I = import("./i.ts").I;
const j = await import( "./j.ts" );
const k = await import(name);
const from = "nothing";
/** import { x } from "@dreamer/utils/lock"; */
// import { y } from "y";
import.meta.url;
`;
  const found = edgesOf("src/core/x.ts", source).map((edge) => edge.to).sort();
  assertEquals(found, [
    "(computed)",
    ...["src/core/a.ts", "src/core/b.ts", "src/core/e.ts", "src/core/f.ts"],
    ...["src/core/g.ts", "src/core/h.ts", "src/core/i.ts", "src/core/j.ts"],
    "src/d.ts",
  ]);
});
