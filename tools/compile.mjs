/**
 * Compiles TypeScript for a Node that takes none, once for all processes: what
 * tsx does anew in each of them costs the suites as much as they do themselves.
 */
import { existsSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { ROOT } from "./bring.mjs";

/** In the root, or in a member that has packages of its own. */
const FOLDER = "node_modules/.cache/compiled";

/**
 * Compiles `files`, paths from the root, with all that they import. Gives where
 * each of them is then.
 */
export async function compile(files, members) {
  const { build } = await import("esbuild");
  const owners = members.filter((member) =>
    existsSync(join(ROOT, member, "package-lock.json"))
  );
  const homeOf = (file) =>
    owners.find((owner) => file.startsWith(`${owner}/`)) ?? ".";
  await Promise.all([".", ...owners].map(async (home) => {
    const outdir = join(ROOT, home, FOLDER);
    await rm(outdir, { recursive: true, force: true });
    await build({
      absWorkingDir: ROOT,
      entryPoints: files.filter((file) => homeOf(file) === home),
      bundle: true,
      splitting: true,
      packages: "external",
      platform: "node",
      target: "node20",
      format: "esm",
      sourcemap: true,
      sourcesContent: false,
      logLevel: "warning",
      define: { "import.meta.url": "moduleUrl" },
      plugins: [sourceUrls],
      outbase: ROOT,
      outdir,
    });
  }));
  return new Map(files.map((file) => [
    file,
    join(ROOT, homeOf(file), FOLDER, file.replace(/\.ts$/, ".js")),
  ]));
}

/** Has `import.meta.url` tell of the source, wherever the compiled file is. */
const sourceUrls = {
  name: "source URLs",
  setup({ onLoad }) {
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const url = JSON.stringify(pathToFileURL(path).href);
      return {
        // On the first line, so that none of the others moves.
        contents: source.includes("import.meta.url")
          ? `const moduleUrl = ${url};${source}`
          : source,
        loader: "ts",
      };
    });
  },
};
