/**
 * Ours, as its users run it. Deno and Bun take the sources as they are; Node 20
 * is given JavaScript, as the registries give it: tsx would wrap every closure
 * to keep its name, which shows in the figures.
 */
import { rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { bundle } from "./size.ts";

const library = await load<typeof import("../mod.ts")>("../mod.ts");

export const acquireLock: typeof library.acquireLock = library.acquireLock;
export const redis: typeof library.redis = library.redis;
export const redlock: typeof library.redlock = library.redlock;

/** The module at `path`, seen from here, each with a library of its own. */
export async function load<Module>(path: string): Promise<Module> {
  const source = new URL(path, import.meta.url);
  if ("Deno" in globalThis || "Bun" in globalThis) {
    return await import(source.href);
  }
  const file = join(tmpdir(), `lock-bench-${crypto.randomUUID()}.mjs`);
  await writeFile(file, (await bundle({ minify: false, file: source })).code);
  try {
    return await import(pathToFileURL(file).href);
  } finally {
    await rm(file);
  }
}
