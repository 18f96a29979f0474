/**
 * Ours, as its users run it. Deno and Bun take the sources as they are; Node 20
 * is given JavaScript, as the registries give it: tsx would wrap every closure
 * to keep its name, which shows in the figures.
 */
import { rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";

import { bundle } from "./size.ts";

const library = await load();

export const acquireLock: typeof library.acquireLock = library.acquireLock;
export const redis: typeof library.redis = library.redis;
export const redlock: typeof library.redlock = library.redlock;

async function load(): Promise<typeof import("../mod.ts")> {
  if ("Deno" in globalThis || "Bun" in globalThis) {
    return await import("../mod.ts");
  }
  const file = join(tmpdir(), `lock-bench-${process.pid}.mjs`);
  await writeFile(file, (await bundle({ minify: false })).code);
  try {
    return await import(pathToFileURL(file).href);
  } finally {
    await rm(file);
  }
}
