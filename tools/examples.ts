/**
 * Runs the examples of the documentation, as `deno test --doc` does, with a
 * Redis server at hand for those that want one.
 */
import { startRedis } from "../tests/support/redis_server.ts";

await using server = await startRedis();
const { code } = await new Deno.Command(Deno.execPath(), {
  args: ["test", "-A", "--doc", ...Deno.args],
  env: { REDIS_URL: server.url },
  stdin: "null",
}).spawn().status;
// The server is stopped by its own hand as the process ends.
Deno.exitCode = code;
