/**
 * Compares what the package exports with tests/public_surface.txt: a name that
 * comes or goes is a decision, and shows as a line of a diff. With `--write`
 * the list is written anew.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

import { bringDeno, capture, ROOT } from "./bring.mjs";
import { doorsOf, membersOf } from "./members.mjs";

const LIST = join(ROOT, "tests", "public_surface.txt");

const deno = await bringDeno();
const doors = [".", ...membersOf(ROOT)]
  .flatMap((member) => doorsOf(ROOT, member));
const now = (await Promise.all(doors.map(symbols))).flat();

if (process.argv.includes("--write")) {
  writeFileSync(LIST, now.join("\n") + "\n");
} else {
  const listed = existsSync(LIST)
    ? readFileSync(LIST, "utf8").split("\n").filter(Boolean)
    : [];
  const added = now.filter((line) => !listed.includes(line));
  const gone = listed.filter((line) => !now.includes(line));
  for (const line of added) console.log(`+ ${line}`);
  for (const line of gone) console.log(`- ${line}`);
  if (added.length + gone.length > 0) {
    console.log("If that is meant: node tools/surface.mjs --write");
    process.exitCode = 1;
  }
}

/** One line for each symbol behind one door: door, kind, name. */
async function symbols({ door, path }) {
  // One file at a time: among several, a symbol of another one is documented
  // as a mere reference to it.
  const { code, stdout, output } = await capture(
    deno,
    ["doc", "--json", path],
    {
      env: { ...process.env, NO_COLOR: "1" },
    },
  );
  if (code !== 0) throw new Error(`deno doc ${path} gave ${code}:\n${output}`);
  const { nodes } = JSON.parse(stdout);
  return Object.values(nodes).flatMap((node) => node.symbols)
    .map(({ name, declarations }) => {
      const kinds = declarations
        .filter((one) => one.declarationKind !== "private")
        .map((one) => one.kind);
      // An overload is a declaration, too.
      return { name, kinds: [...new Set(kinds)].sort() };
    })
    .filter(({ kinds }) => kinds.length > 0)
    .map(({ name, kinds }) => `${door} ${kinds.join("+")} ${name}`)
    .sort();
}
