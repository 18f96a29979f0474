/** Runs the demo under Deno, which npm brings where there is none. */
import { spawn } from "node:child_process";
import process from "node:process";

import { bringDeno, ROOT } from "./bring.mjs";

const child = spawn(
  await bringDeno(),
  ["run", "-A", "demo/main.ts", ...process.argv.slice(2)],
  { cwd: ROOT, stdio: "inherit" },
);
child.on("exit", (code) => process.exitCode = code ?? 1);
// The demo has things to put away, so we outlast it. Ctrl-C it hears from the
// terminal by itself, and would take a second one for impatience.
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.removeAllListeners(name);
  process.on(name, () => name === "SIGINT" || child.kill(name));
}
