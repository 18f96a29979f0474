/**
 * Builds the command line tool as one file for Node, client and all, or as a
 * program that needs no runtime:
 *
 *     node tools/build_cli.mjs             # cli/dist/lock-cli.mjs, and licences
 *     node tools/build_cli.mjs FILE        # only that file
 *     node tools/build_cli.mjs --binary    # cli/dist/lock-cli, by Bun
 */
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

import { bringBun, bringPackages, capture, ROOT } from "./bring.mjs";

await bringPackages();
const { values: { binary }, positionals: [file] } = parseArgs({
  options: { binary: { type: "boolean" } },
  allowPositionals: true,
});
if (binary) {
  const program = file ?? join(ROOT, "cli", "dist", "lock-cli");
  const { code, output } = await capture(await bringBun(), [
    ...["build", "--compile", "--minify-syntax", join(ROOT, "cli", "mod.ts")],
    ...["--outfile", program],
  ]);
  if (code !== 0) throw new Error(output);
  console.log(program);
  process.exit(0);
}
const { build } = await import("esbuild");
const outfile = file ?? join(ROOT, "cli", "dist", "lock-cli.mjs");
const { metafile } = await build({
  absWorkingDir: ROOT,
  entryPoints: ["cli/mod.ts"],
  bundle: true,
  platform: "node",
  target: "node20",
  format: "esm",
  minifySyntax: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
  outfile,
  banner: {
    // The client is CommonJS, and asks for Node's modules by require().
    js: `#!/usr/bin/env node
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);`,
  },
});
chmodSync(outfile, 0o755);

if (file === undefined) {
  // Each package that is in there, under its own licence.
  const packages = new Set(
    Object.keys(metafile.inputs).flatMap((path) =>
      /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []
    ),
  );
  const notices = [...packages].sort().map((path) => {
    const { name, version, license } = JSON.parse(
      readFileSync(join(ROOT, path, "package.json"), "utf8"),
    );
    const text = ["LICENSE", "LICENSE.md", "LICENSE.txt", "license", "LICENCE"]
      .map((name) => join(ROOT, path, name)).find(existsSync);
    const body = text ? readFileSync(text, "utf8").trim() : license;
    return `${name} ${version} (${license})\n\n${body}\n`;
  });
  writeFileSync(
    join(dirname(outfile), "LICENSES.txt"),
    notices.join(`\n${"-".repeat(72)}\n\n`),
  );
  console.log(outfile);
}
