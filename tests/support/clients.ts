/**
 * Every supported client, opened over a real server: what the suites run
 * through. The packages are the real ones, each of its versions by its own name,
 * and loaded by who opens one: a second process needs no more than its own.
 */
import type { Redis } from "ioredis";
import process from "node:process";

import type {
  BunClient,
  CommandFunction,
  IoredisClient,
  LockTarget,
  MinimalClient,
  NodeRedisClient,
} from "@dreamer/utils/lock";
import { startUpstash } from "./upstash_server.ts";

/** How a client is opened. */
export interface OpenOptions {
  /**
   * What a command does while the server is away: `queue`, the default of every
   * client, waits for it to come back; `fail` rejects at once.
   */
  offline?: "queue" | "fail";
  /**
   * Whether to connect, and wait until it has; true unless given. Without, it
   * is as it came from its constructor.
   */
  connect?: boolean;
  /**
   * Duplicates as they come. Otherwise each is given an 'error' listener, so
   * that a cut ends no process; whoever makes one ought to do that himself.
   */
  bareDuplicates?: boolean;
}

/** An open client. */
export interface OpenClient extends AsyncDisposable {
  /** What the library is given. */
  readonly client: LockTarget;
  /** Ends it at once; harmless the second time. */
  close(): Promise<void>;
}

/** One kind of client. */
export interface ClientKind {
  /** What it is called in the names of tests. */
  readonly name: string;
  /** Whether it can be called when a turn comes; else it has to ask. */
  readonly isCalled?: boolean;
  /**
   * Whether it sends again, by itself, what was left without an answer; and,
   * where it does, whether anybody can see that.
   */
  readonly resends?: "seen" | "unseen";
  /** Whether nobody can see that it was closed, if that can be done at all. */
  readonly hidesEnd?: boolean;
  /** Opens one; rejects where it can't connect, having closed it again. */
  open(url: string, options?: OpenOptions): Promise<OpenClient>;
}

/** Between two tries to connect: a test has no time for the usual seconds. */
const RETRY_MS = 20;

/** All kinds of clients. */
export const clients: readonly ClientKind[] = [
  {
    name: "ioredis",
    isCalled: true,
    resends: "seen",
    async open(url, how) {
      const { Redis } = await import("ioredis");
      return openIoredis(new Redis(url, ioSettings(how)), how);
    },
  },
  {
    name: "ioredis5",
    isCalled: true,
    resends: "seen",
    async open(url, how) {
      const { Redis } = await import("ioredis5");
      return openIoredis(new Redis(url, ioSettings(how)), how);
    },
  },
  {
    name: "redis",
    isCalled: true,
    async open(url, how) {
      const { createClient } = await import("redis");
      return openNodeRedis(createClient(nodeSettings(url, how)), how);
    },
  },
  {
    name: "redis5",
    isCalled: true,
    async open(url, how) {
      const { createClient } = await import("redis5");
      return openNodeRedis(createClient(nodeSettings(url, how)), how);
    },
  },
  {
    name: "redis4",
    isCalled: true,
    async open(url, how) {
      const { createClient } = await import("redis4");
      return openNodeRedis(createClient(nodeSettings(url, how)), how);
    },
  },
  {
    name: "redis pool",
    async open(url, how) {
      const { createClientPool } = await import("redis");
      return openNodeRedis(createClientPool(nodeSettings(url, how)), how);
    },
  },
  {
    name: "minimal",
    resends: "unseen",
    hidesEnd: true,
    async open(url, how) {
      const { Redis } = await import("ioredis");
      const inner = new Redis(url, ioSettings(how));
      const { close } = await openIoredis(inner, how);
      return opened(fourMethods(inner), close);
    },
  },
  {
    name: "upstash",
    resends: "unseen",
    hidesEnd: true,
    async open(url, { offline, connect = true } = {}) {
      const { Redis } = await import("@upstash/redis");
      const server = await startUpstash(url);
      const client = new Redis({
        url: server.url,
        token: server.token,
        enableTelemetry: false,
        retry: {
          retries: offline === "fail" ? 0 : 200,
          backoff: () => RETRY_MS,
        },
      });
      const it = opened(client, () => server.stop());
      if (connect) await orClosed(server.connect(), it);
      return it;
    },
  },
  {
    name: "glide",
    async open(url, { offline } = {}) {
      const { GlideClient, Logger } = await import("@valkey/valkey-glide");
      // It writes a line for each error reply.
      Logger.setLoggerConfig("off");
      const { hostname, port, password } = new URL(url);
      const client = await GlideClient.createClient({
        addresses: [{ host: hostname, port: Number(port) }],
        ...password && { credentials: { password } },
        requestTimeout: offline === "fail" ? 100 : 10_000,
        connectionBackoff: {
          numberOfRetries: 3,
          factor: RETRY_MS,
          exponentBase: 1,
        },
      });
      return opened(client, () => client.close());
    },
  },
  {
    name: "function",
    hidesEnd: true,
    async open(url, how) {
      const { createClient } = await import("redis");
      const inner = createClient(nodeSettings(url, how));
      const { close } = await openNodeRedis(inner, how);
      const send: CommandFunction = (args) => inner.sendCommand(args);
      return opened(send, close);
    },
  },
  // Nowhere else is there such a client.
  ...process.versions.bun === undefined ? [] : [{
    name: "bun",
    isCalled: true,
    async open(url: string, { offline, connect = true }: OpenOptions = {}) {
      const { RedisClient } = await import("bun" as string);
      const client: BunClient & {
        connect(): Promise<void>;
        close(): void;
      } = new RedisClient(url, { enableOfflineQueue: offline !== "fail" });
      const it = opened(client, () => client.close());
      if (connect) await orClosed(client.connect(), it);
      return it;
    },
  }],
];

/** ioredis clients of both versions, as far as they are alike. */
type AnyIoredis = IoredisClient & {
  connect(): Promise<unknown>;
  disconnect(): void;
  on(event: "error", listener: () => void): unknown;
};

/** node-redis clients and pools of all versions, as far as they are alike. */
type AnyNodeRedis = NodeRedisClient & {
  connect(): Promise<unknown>;
  /** The one is the other's old name. */
  destroy?(): unknown;
  disconnect?(): unknown;
  on(event: "error", listener: () => void): unknown;
};

function ioSettings({ offline }: OpenOptions = {}) {
  return {
    lazyConnect: true,
    retryStrategy: () => RETRY_MS,
    // A frozen server does not answer a goodbye either.
    disconnectTimeout: 100,
    ...offline === "fail"
      ? { enableOfflineQueue: false, maxRetriesPerRequest: 0 }
      // By default it gives up after 20 tries: 73 s, but not if they are quick.
      : { maxRetriesPerRequest: null },
  };
}

/**
 * For settings of node-redis: it builds a class of all the server's commands for
 * every client, which takes longer than most of our tests, unless the settings
 * of the last one were the same, as JSON.
 */
export const sameAsTheLast = { toJSON: () => "the same" } as const;

function nodeSettings(url: string, { offline }: OpenOptions = {}) {
  return {
    ...sameAsTheLast,
    url,
    disableOfflineQueue: offline === "fail",
    socket: { reconnectStrategy: () => RETRY_MS },
  };
}

/** What somebody's wrapper of an ioredis client may have, and no more. */
export function fourMethods(
  inner: Pick<Redis, "call" | "get" | "del" | "eval">,
): MinimalClient {
  return {
    set: (key: string, value: string, ...args: (string | number)[]) =>
      inner.call("SET", key, value, ...args),
    get: (key: string) => inner.get(key),
    del: (key: string) => inner.del(key),
    eval: (script: string, keyCount: number, ...args: string[]) =>
      inner.eval(script, keyCount, ...args),
  };
}

async function openIoredis(
  client: AnyIoredis,
  { connect = true, bareDuplicates }: OpenOptions = {},
): Promise<OpenClient> {
  hush(client, bareDuplicates);
  const it = opened(client, () => client.disconnect());
  if (connect) await orClosed(client.connect(), it);
  return it;
}

async function openNodeRedis(
  client: AnyNodeRedis,
  { connect = true, bareDuplicates }: OpenOptions = {},
): Promise<OpenClient> {
  hush(client, bareDuplicates);
  const it = opened(client, () => {
    // Closed twice, it throws.
    if (client.isOpen) {
      return (client.destroy ?? client.disconnect)?.call(client);
    }
  });
  if (connect) await orClosed(client.connect(), it);
  return it;
}

/** Without a listener for 'error' a cut ends the process. */
function hush(
  client: {
    on(event: "error", listener: () => void): unknown;
    duplicate?: unknown;
  },
  bareDuplicates = false,
): void {
  client.on("error", () => {});
  const { duplicate } = client;
  if (bareDuplicates || typeof duplicate !== "function") return;
  client.duplicate = (...args: unknown[]) => {
    const twin = duplicate.apply(client, args);
    hush(twin);
    return twin;
  };
}

function opened(client: LockTarget, end: () => unknown): OpenClient {
  const close = async () => void await end();
  return { client, close, [Symbol.asyncDispose]: close };
}

async function orClosed(
  connected: Promise<unknown>,
  it: OpenClient,
): Promise<void> {
  try {
    await connected;
  } catch (error) {
    await it.close();
    throw error;
  }
}
