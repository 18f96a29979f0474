/** A worker as a process of its own: `worker.ts <name> <key> <book>`. */
import process from "node:process";

import { args, lines, say } from "../tests/support/child.ts";
import { openClient, write } from "./client.ts";
import { type Order, Player } from "./turns.ts";

// Ctrl-C reaches the whole group. The director hears it too, and says "stop":
// so whoever is inside gives the lock back first.
process.on("SIGINT", () => {});
// With the director gone nobody reads what we say, and stdin has ended as well.
process.stdout.on("error", () => {});

const [name, key, book] = args;
try {
  const redis = await openClient(process.env.REDIS_URL ?? "");
  const player = new Player({
    on: redis,
    key,
    name,
    write: (line) => write(redis, book, line),
    say,
  });
  say({ type: "ready" });
  for await (const order of lines<Order>()) {
    if (order === "stop") break;
    player.obey(order).catch(fail);
  }
  // Told to, or as the director is gone: then stdin has ended.
  await player.obey("stop");
  await redis.quit();
  process.exit(0);
} catch (error) {
  fail(error);
}

function fail(error: unknown): void {
  const { name, message } = error as Error;
  say({ type: "failed", message: `${name}: ${message}` });
  process.exit(1);
}
