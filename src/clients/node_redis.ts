/**
 * node-redis 4, 5 and 6: clients, pools and clusters.
 *
 * By its typed commands rather than `sendCommand`: they alone are the same for
 * all three kinds, and they apply the client's own key prefix.
 */

import type { Port } from "./port.ts";

/** What is called of a node-redis client. */
export interface NodeRedisClient {
  /** Whether somebody opened it and nobody closed it. */
  readonly isOpen: boolean;
  /** `SET`, with its options by name. */
  set(
    key: string,
    value: string,
    options: { NX: true; EX?: number; PX?: number },
  ): Promise<unknown>;
  /** `EVAL`. */
  eval(script: string, options: NodeRedisEval): Promise<unknown>;
  /** `EVALSHA`. */
  evalSha(sha: string, options: NodeRedisEval): Promise<unknown>;
}

/** The keys and arguments of a script, as node-redis wants them. */
export interface NodeRedisEval {
  /** The script's KEYS. */
  keys: string[];
  /** The script's ARGV. */
  arguments: string[];
}

/** Speaks through a node-redis client. */
export function nodeRedis(client: NodeRedisClient): Port {
  return {
    setIfAbsent: (key, value, unit, amount) =>
      client.set(
        key,
        value,
        unit === "EX" ? { EX: amount, NX: true } : { PX: amount, NX: true },
      ),
    eval: (lua, keys, args) =>
      client.eval(lua, { keys: [...keys], arguments: [...args] }),
    evalSha: (sha, keys, args) =>
      client.evalSha(sha, { keys: [...keys], arguments: [...args] }),
    isClosed: () => !client.isOpen,
  };
}
