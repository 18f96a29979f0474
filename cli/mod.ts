/**
 * `flock` for many machines: runs a command while no other machine does, with a
 * lock on the Redis that is there.
 *
 * ```sh
 * deno run -A jsr:@dreamer/lock-cli run deploy -- ./deploy.sh
 * ```
 *
 * It is a program, and exports nothing. `--help` says what it can do, and
 * `docs/cli.md` of its repository how and why.
 *
 * @module
 */
import process from "node:process";

import { main } from "./src/main.ts";

// Imported, it does nothing; Node 20 can't tell, and is never asked to.
if (import.meta.main !== false) {
  const streams = [process.stdout, process.stderr];
  // Whoever reads along may have had enough; that is no fault of ours.
  for (const stream of streams) stream.on("error", () => {});
  const exitCode = await main(process.argv.slice(2));
  // What was said goes out first; no connection and no timer is waited for.
  await Promise.all(
    streams.map((stream) => new Promise((done) => stream.write("", done))),
  );
  process.exit(exitCode);
}
