/** ioredis 5 and 6, single servers and clusters. */

import {
  FLUSHED,
  type Listener,
  type Port,
  SCAN_COUNT,
  tracking,
} from "./port.ts";

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
  readonly stream?: { unref?(): void };
  readonly isCluster?: boolean;
  readonly options?: { keyPrefix?: string };
  nodes?(role: "master"): Commands[];
  call(command: string, ...args: string[]): Promise<unknown>;
  duplicate(overrides: object): Commands;
  connect(): Promise<void>;
  subscribe(channel: string): Promise<unknown>;
  disconnect(): void;
  on(event: string, listener: (...args: string[]) => void): unknown;
  off(event: string, listener: (...args: string[]) => void): unknown;
}

/** How soon a connection that listens comes back. */
const BACK_AFTER_MS = 50;

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
    ...client.isCluster
      ? {}
      : { listen: (channel, listener) => listen(client, channel, listener) },
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

function listen(
  client: Commands,
  channel: string,
  listener: Listener,
): () => void {
  const ear = client.duplicate({
    lazyConnect: true,
    // Subscribed by ourselves, to know from when on.
    autoResubscribe: false,
    retryStrategy: () => BACK_AFTER_MS,
    reconnectOnError: null,
    maxRetriesPerRequest: null,
    protocol: 2,
    commandTimeout: undefined,
    socketTimeout: undefined,
  });
  const close = () => {
    client.off("end", closed);
    ear.disconnect();
  };
  const closed = () => {
    close();
    listener.onClosed();
  };
  // Without a listener it would warn on stderr; it comes back by itself.
  ear.on("error", () => {});
  ear.on("connect", () => ear.stream?.unref?.());
  const subscribe = async () => {
    try {
      const id = await ear.call("CLIENT", "ID");
      await ear.call("CLIENT", ...tracking(id));
    } catch {
      // Forbidden, or unknown there: then we learn of it a second later.
    }
    await ear.subscribe(channel);
  };
  ear.on("ready", () => {
    subscribe().then(() => listener.onReady(), (reason) => {
      // Cut off meanwhile, it will be ready again.
      if (ear.status === "ready") listener.onFail(reason);
    });
  });
  ear.on("message", (from, message) => {
    if (from === channel) listener.onMessage(message);
    else if (from === FLUSHED) listener.onReady();
  });
  client.on("end", closed);
  ear.connect().catch(() => {});
  return close;
}
