/**
 * node-redis 4, 5 and 6: clients, pools and clusters.
 *
 * By its typed commands rather than `sendCommand`: they alone are the same for
 * all three kinds, and they apply the client's own key prefix.
 */

import { type Port, SCAN_COUNT } from "./port.ts";

/** What is called of a node-redis client. */
export interface NodeRedisClient {
  /** Whether somebody opened it and nobody closed it. */
  readonly isOpen: boolean;
  /** `SET`, with its options by name. */
  set(
    key: string,
    value: string,
    options: { NX: true; EX: number } | { NX: true; PX: number },
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

/** Members that not every kind of node-redis client has. */
interface Extras {
  scan?(
    cursor: string,
    options: { MATCH: string; COUNT: number; TYPE: string },
  ): Promise<{ cursor: string | number; keys: string[] }>;
  readonly masters?: readonly unknown[];
  nodeClient?(node: unknown): Extras | Promise<Extras>;
}

/** Speaks through a node-redis client. */
export function nodeRedis(client: NodeRedisClient): Port {
  const extras = client as Extras;
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
    isCluster: extras.masters !== undefined,
    async *scan(pattern) {
      const nodes = extras.masters?.map((node) => extras.nodeClient!(node)) ??
        [extras];
      for (const node of nodes) {
        const one = await node;
        let cursor = "0";
        do {
          const options = { MATCH: pattern, COUNT: SCAN_COUNT, TYPE: "string" };
          const reply = await one.scan!(cursor, options);
          yield reply.keys;
          cursor = String(reply.cursor);
        } while (cursor !== "0");
      }
    },
  };
}
