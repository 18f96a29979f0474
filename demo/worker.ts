/** A worker as a process of its own: `worker.ts <name> <key> <book>`. */
import process from "node:process";

import { args, lines, say } from "../tests/support/child.ts";
import { openClient, write } from "./client.ts";
import { Cue, type Order, takeTurns } from "./turns.ts";

// Ctrl-C reaches the whole group. The director hears it too, and says "stop":
// so whoever is inside gives the lock back first.
process.on("SIGINT", () => {});
// With the director gone nobody reads what we say, and stdin has ended as well.
process.stdout.on("error", () => {});

const [name, key, book] = args;
const cue = new Cue();
try {
  const redis = await openClient(process.env.REDIS_URL ?? "");
  const turns = takeTurns({
    on: redis,
    key,
    name,
    write: (line) => write(redis, book, line),
    say,
  }, cue);
  listen();
  say({ type: "ready" });
  await turns;
  await redis.quit();
  process.exit(0);
} catch (error) {
  const { name, message } = error as Error;
  say({ type: "failed", message: `${name}: ${message}` });
  process.exit(1);
}

/** Obeys until stdin ends, as it does when the director is gone. */
async function listen(): Promise<void> {
  for await (const order of lines<Order>()) cue.obey(order);
  cue.obey("stop");
}
