/**
 * Runs the examples of the documentation, as `deno test --doc` does, with a
 * Redis server at hand for those that want one, and one that speaks HTTP.
 */
import { startRedis } from "../tests/support/redis_server.ts";
import { startUpstash } from "../tests/support/upstash_server.ts";

await using server = await startRedis();
await using rest = await startUpstash(server.url);
const { code } = await new Deno.Command(Deno.execPath(), {
  args: ["test", "-A", "--doc", ...Deno.args],
  env: {
    REDIS_URL: server.url,
    UPSTASH_REDIS_REST_URL: rest.url,
    UPSTASH_REDIS_REST_TOKEN: rest.token,
  },
  stdin: "null",
}).spawn().status;
// The server is stopped by its own hand as the process ends.
Deno.exitCode = code;
