/**
 * Any client that can send any command, and the plain function that does: what
 * is the same for all that take a command as a list of words.
 */

import { pages, type Port, SCAN_COUNT } from "./port.ts";

/**
 * Sends one command, given as its words (`["SET", "k", "v", "PX", "500"]`), and
 * resolves to the server's reply: text, a whole number, `null`, or an array of
 * those. An error reply rejects with an `Error` whose message is the server's
 * own, its code first (`NOSCRIPT No matching script.`).
 *
 * @param args The words of the command, the command itself first.
 *
 * @example A client that is not known here
 * ```ts
 * import { type CommandFunction, withLock } from "@dreamer/utils/lock";
 * import { createClient } from "redis";
 *
 * const client = createClient({ url: process.env.REDIS_URL! });
 * await client.connect();
 * const send: CommandFunction = (args) => client.sendCommand(args);
 * await withLock(send, "lock:doc:function", (lock) => lock.assertHeld());
 * client.destroy();
 * ```
 */
export type CommandFunction = (args: string[]) => Promise<unknown>;

/** Speaks by lists of words. */
export function command(send: CommandFunction): Port {
  return {
    setIfAbsent: (key, value, unit, amount) =>
      send(["SET", key, value, unit, String(amount), "NX"]),
    eval: (lua, keys, args) =>
      send(["EVAL", lua, String(keys.length), ...keys, ...args]),
    evalSha: (sha, keys, args) =>
      send(["EVALSHA", sha, String(keys.length), ...keys, ...args]),
    scan: (pattern) => scan(send, pattern),
  };
}

/** The same by a stranger's function, which may throw where it should reject. */
export function commandFunction(send: CommandFunction): Port {
  return command(async (args) => await send(args));
}

/** The string keys that match, of the server that `send` asks. */
export function scan(
  send: CommandFunction,
  pattern: string,
): AsyncGenerator<readonly string[]> {
  return pages((cursor) =>
    send([
      ...["SCAN", cursor, "MATCH", pattern],
      ...["COUNT", String(SCAN_COUNT), "TYPE", "string"],
    ]) as Promise<[unknown, unknown[]]>
  );
}
