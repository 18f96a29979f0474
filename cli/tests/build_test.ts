/** What is built: a file that npm links, and a program without a runtime. */
import { assertEquals, assertMatch } from "@std/assert";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

import { runtime } from "../../tests/support/process.ts";
import { startRedis } from "../../tests/support/redis_server.ts";
import { test } from "../../tests/support/test.ts";
import { launch, ROOT, scratchFile, START } from "./support/cli.ts";

/** Runs a command under the lock, by that program. */
async function works(program: string) {
  await using server = await startRedis();
  const args = ["run", "built", "--", "sh", "-c", "echo $LOCK_KEY; exit 3"];
  const cli = launch(program, args, { env: { REDIS_URL: server.url } });
  assertEquals(await cli.exited, 3, cli.stderr);
  assertEquals([cli.stdout, cli.stderr], ["built\n", ""]);
}

if (runtime === "deno") {
  test("the package runs by its name, as it does from JSR", async () => {
    await using server = await startRedis();
    const args = [
      "run",
      "-A",
      "--no-check",
      "--quiet",
      "jsr:@dreamer/lock-cli",
    ];
    const command = ["run", "named", "--", "sh", "-c", "exit 3"];
    const cli = launch(process.execPath, [...args, ...command], {
      env: { REDIS_URL: server.url },
    });
    assertEquals([await cli.exited, cli.stderr], [3, ""]);
  });
}

if (runtime === "node") {
  test("the file for npm runs by its own name, and is what bin names", async () => {
    await works(START[0]);
    const { bin } = JSON.parse(
      readFileSync(join(ROOT, "cli/package.json"), "utf8"),
    );
    const builder = readFileSync(join(ROOT, "tools/build_cli.mjs"), "utf8");
    assertMatch(builder, /"cli", "dist", "lock-cli\.mjs"/);
    assertEquals(bin, { "lock-cli": "./dist/lock-cli.mjs" });
  });
}

if (runtime === "bun") {
  test("the program that Bun compiles needs no runtime", async () => {
    const program = scratchFile("lock-cli");
    const tool = join(ROOT, "tools/build_cli.mjs");
    execFileSync("node", [tool, "--binary", program], { env: process.env });
    await works(program);
  });
}
