/** @upstash/redis: Redis over HTTP, where nobody can listen. */

import { command } from "./command.ts";
import type { Port } from "./port.ts";

/** What is called of an Upstash client. */
export interface UpstashClient {
  /** Sends one command, given as its words. */
  exec(args: [command: string, ...args: string[]]): Promise<unknown>;
  /** Never called: what tells it from other clients. */
  createScript(script: string): unknown;
}

/**
 * Speaks through an Upstash client. It sends again by itself, up to five times
 * and without telling, what was left without an answer.
 */
export function upstash(client: UpstashClient): Port {
  return command((args) =>
    client.exec(args as [string, ...string[]]).catch((error) => {
      throw withoutCommand(error);
    })
  );
}

/** Its errors repeat the whole command, and so the owner. */
function withoutCommand(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const at = error.message.indexOf(", command was: ");
  if (at < 0) return error;
  const clean = new Error(error.message.slice(0, at));
  clean.name = error.name;
  return clean;
}
