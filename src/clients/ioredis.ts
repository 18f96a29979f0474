/** ioredis 5 and 6, single servers and clusters. */

import { type Port, SCAN_COUNT } from "./port.ts";

/** What tells an ioredis client: any command, by name. */
export interface IoredisClient {
  /** Sends one command. */
  call(command: string, ...args: (string | number)[]): Promise<unknown>;
}

/**
 * What is called of one. By their own names, which are up to a tenth faster
 * than `call`; they have more overloads than a type could sum up.
 */
interface Commands {
  set(...args: (string | number)[]): Promise<unknown>;
  eval(...args: (string | number)[]): Promise<unknown>;
  evalsha(...args: (string | number)[]): Promise<unknown>;
  scan(...args: (string | number)[]): Promise<[string, string[]]>;
  /** Members that are only read, and not on every kind of ioredis client. */
  readonly status?: string;
  readonly stream?: unknown;
  readonly isCluster?: boolean;
  readonly options?: { keyPrefix?: string };
  nodes?(role: "master"): Commands[];
}

/** Speaks through an ioredis client. */
export function ioredis(ioredisClient: IoredisClient): Port {
  const client = ioredisClient as unknown as Commands;
  return {
    setIfAbsent: (key, value, unit, amount) =>
      client.set(key, value, unit, amount, "NX"),
    eval: (lua, keys, args) => client.eval(lua, keys.length, ...keys, ...args),
    evalSha: (sha, keys, args) =>
      client.evalsha(sha, keys.length, ...keys, ...args),
    // A new socket for each reconnect. A cluster has many and shows none.
    connection: () => client.stream,
    isClosed: () => client.status === "end",
    isCluster: client.isCluster ?? false,
    async *scan(pattern) {
      // SCAN is not told of the prefix that all other commands get.
      const prefix = client.options?.keyPrefix ?? "";
      for (
        const node of client.isCluster ? client.nodes!("master") : [client]
      ) {
        let cursor = "0";
        do {
          const [next, keys] = await node.scan(
            cursor,
            "MATCH",
            prefix + pattern,
            "COUNT",
            SCAN_COUNT,
            "TYPE",
            "string",
          );
          yield keys.map((key) => key.slice(prefix.length));
          cursor = next;
        } while (cursor !== "0");
      }
    },
  };
}
