/** ioredis 5 and 6, single servers and clusters. */

import {
  backAfterMs,
  INVALIDATED,
  listenAtAll,
  type Listener,
  literal,
  type NodeListener,
  pages,
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
  readonly manuallyClosing?: boolean;
  readonly stream?: Stream;
  readonly isCluster?: boolean;
  readonly options?: { keyPrefix?: string; host?: string; port?: number };
  nodes?(role: "master"): Commands[];
  pipeline(
    commands: (string | number)[][],
  ): { exec(): Promise<[error: Error | null, reply: unknown][] | null> };
  call(command: string, ...args: string[]): Promise<unknown>;
  duplicate(overrides: object): Commands;
  connect(): Promise<void>;
  subscribe(channel: string): Promise<unknown>;
  disconnect(): void;
  on(event: string, listener: (...args: string[]) => void): unknown;
  off(event: string, listener: (...args: string[]) => void): unknown;
}

/** The socket of one, or what stands in for it. */
interface Stream {
  unref?(): void;
  cork?(): void;
  uncork?(): void;
}

/** Speaks through an ioredis client. */
export function ioredis(ioredisClient: IoredisClient): Port {
  const client = ioredisClient as unknown as Commands;
  const gather = gatherer(client);
  return {
    setIfAbsent(key, value, unit, amount) {
      gather();
      return client.set(key, value, unit, amount, "NX");
    },
    eval(lua, keys, args) {
      gather();
      return client.eval(lua, keys.length, ...keys, ...args);
    },
    evalSha(sha, keys, args) {
      gather();
      return client.evalsha(sha, keys.length, ...keys, ...args);
    },
    async evalAndWait(lua, keys, args, replicas, ms) {
      // What is left of a pipeline is not sent again after a cut.
      const replies = await client.pipeline([
        ["eval", lua, keys.length, ...keys, ...args],
        ["wait", replicas, ms],
      ]).exec();
      const [evaluated, waited] = replies!.map(([error, reply]) => {
        if (error !== null) throw error;
        return reply;
      });
      return [evaluated, waited];
    },
    // A new socket for each reconnect.
    connection: client.isCluster ? connectionsOf(client) : () => client.stream,
    keyPrefix: client.isCluster ? client.options?.keyPrefix : undefined,
    isClosed: () => isClosed(client),
    isCluster: client.isCluster ?? false,
    listen: (channel, listener) => listen(client, channel, listener),
    async *scan(pattern) {
      // SCAN is not told of the prefix that all other commands get.
      const prefix = client.options?.keyPrefix ?? "";
      for (
        const node of client.isCluster ? client.nodes!("master") : [client]
      ) {
        const match = ["MATCH", literal(prefix) + pattern];
        const rest = [...match, "COUNT", SCAN_COUNT, "TYPE", "string"];
        yield* pages((cursor) => node.scan(cursor, ...rest), prefix);
      }
    },
  };
}

/** Of one that was closed while it was on its way back there is no last word. */
function isClosed({ status, manuallyClosing }: Commands): boolean {
  return status === "end" ||
    status === "reconnecting" && manuallyClosing === true;
}

/**
 * The sockets of a Cluster, as something that is another once one of those that
 * we have seen is another, or gone. Each is opened at its first command.
 */
function connectionsOf(cluster: Commands): () => unknown {
  let seen = new Map<Commands, unknown>();
  return () => {
    const now = new Map<Commands, unknown>();
    for (const node of cluster.nodes!("master")) {
      if (node.status === "ready") now.set(node, node.stream);
    }
    for (const [node, stream] of seen) {
      if (now.get(node) !== stream) return seen = now;
    }
    for (const [node, stream] of now) seen.set(node, stream);
    return seen;
  };
}

const settled = Promise.resolve();

/**
 * Has all that is sent in the same moment go out in one write, as node-redis
 * does by itself: under load the system calls cost more than all the rest. The
 * socket holds back for as long as this moment lasts; nothing waits any longer,
 * and what the client does with each command stays as it is. To hold back one
 * command alone would only cost: who sent one the last time is let through.
 */
function gatherer(client: Commands): () => void {
  let gathering: Stream | undefined;
  /** How many are sent in this moment, and were in the last. */
  let count = 0;
  let last = 0;
  const end = () => {
    last = count;
    count = 0;
    const stream = gathering;
    gathering = undefined;
    stream?.uncork?.();
  };
  return () => {
    // Cheaper than queueMicrotask(), which Node wraps.
    if (++count === 1) void settled.then(end);
    if (gathering !== undefined || count < 2 && last < 2) return;
    if (client.status !== "ready") return;
    const { stream } = client;
    if (stream?.cork === undefined || stream.uncork === undefined) return;
    gathering = stream;
    stream.cork();
  };
}

function listen(
  client: Commands,
  channel: string,
  listener: Listener,
): () => void {
  const hangUp = client.isCluster
    ? listenAtAll(
      () => client.nodes!("master").map((node) => [addressOf(node), node]),
      (node, listener) => listenAt(node, channel, listener, true),
      listener,
    )
    : listenAt(
      client,
      channel,
      { ...listener, onGone() {}, onClosed: () => closed() },
      false,
    );
  const close = () => {
    client.off("end", closed);
    hangUp();
  };
  const closed = () => {
    close();
    listener.onClosed();
  };
  client.on("end", closed);
  return close;
}

function addressOf({ options }: Commands): string {
  return `${options?.host}:${options?.port}`;
}

function listenAt(
  node: Commands,
  channel: string,
  listener: NodeListener,
  isOneOfMany: boolean,
): () => void {
  const ear = earAt(node, isOneOfMany);
  let isOpen = true;
  const subscribe = async () => {
    try {
      const id = await ear.call("CLIENT", "ID");
      await ear.call("CLIENT", ...tracking(id, channel));
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
    else if (from === INVALIDATED) listener.onReady();
  });
  ear.on("end", () => {
    if (isOpen) listener.onGone();
  });
  ear.on("close", () => {
    if (!isOpen) return;
    if (!isOneOfMany && isClosed(node)) listener.onClosed();
    else listener.onCut();
  });
  ear.connect().catch(() => {});
  return () => {
    isOpen = false;
    ear.disconnect();
  };
}

/** A connection of its own, like that of `node`, which keeps no process alive. */
function earAt(node: Commands, isOneOfMany: boolean): Commands {
  const ear = node.duplicate({
    lazyConnect: true,
    // Subscribed by ourselves, to know from when on.
    autoResubscribe: false,
    retryStrategy: (times: number) =>
      isOneOfMany && times > 2 ? null : backAfterMs(times),
    reconnectOnError: null,
    maxRetriesPerRequest: null,
    protocol: 2,
    commandTimeout: undefined,
    socketTimeout: undefined,
  });
  // Without a listener it would warn on stderr; it comes back by itself.
  ear.on("error", () => {});
  ear.on("connect", () => ear.stream?.unref?.());
  return ear;
}
