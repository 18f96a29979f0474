/**
 * The packages that are measured, described by the members that are called and
 * imported by computed names: type-checking the benchmark takes none of them.
 */
import type { IoredisClient, NodeRedisClient, NodeRedisEval } from "../mod.ts";
import type { Commands, Subscriber } from "./limits.ts";

/** The package of that name, which is to be such a one. */
export async function load<Package>(name: string): Promise<Package> {
  return await import(name);
}

/** A client of ioredis 6. */
export interface Ioredis extends IoredisClient, Commands, Subscriber {
  set(...args: (string | number)[]): Promise<unknown>;
  keys(pattern: string): Promise<string[]>;
  exists(...keys: string[]): Promise<number>;
  info(section: string): Promise<string>;
  config(command: "RESETSTAT"): Promise<unknown>;
  ping(): Promise<unknown>;
  quit(): Promise<unknown>;
  disconnect(): void;
  /** The nodes of a Cluster. */
  nodes?(role: "master"): Ioredis[];
}

/** How such clients send whatever it is. */
export type Send = (this: unknown, command: unknown, more: unknown) => unknown;

/** `ioredis`. */
export interface IoredisPackage {
  Redis: {
    new (url: string): Ioredis;
    readonly prototype: { sendCommand: Send };
  };
  Cluster: new (urls: readonly string[]) => Ioredis;
}

/** A client of node-redis 5 or 6. */
export interface NodeRedis extends NodeRedisClient {
  evalSha(sha: string, call: NodeRedisEval): Promise<unknown>;
  scriptLoad(lua: string): Promise<string>;
  keys(pattern: string): Promise<string[]>;
  on(event: "error", listener: () => void): unknown;
  connect(): Promise<unknown>;
  close(): Promise<unknown>;
  destroy(): void;
}

/** `redis`. */
export interface NodeRedisPackage {
  createClient(options: { url: string }): NodeRedis;
}

/** What `redis-semaphore` calls a mutex. */
interface Mutex {
  readonly isAcquired: boolean;
  acquire(): Promise<void>;
  release(): Promise<void>;
}

/** `redis-semaphore`. */
export interface RedisSemaphorePackage {
  Mutex: new (client: Ioredis, key: string, options: object) => Mutex;
  RedlockMutex: new (
    clients: readonly Ioredis[],
    key: string,
    options: object,
  ) => Mutex;
}

/** What `redlock-universal` calls a lock. */
interface UniversalLock {
  acquire(): Promise<unknown>;
  release(handle: unknown): Promise<boolean>;
}

/** `redlock-universal`. */
export interface RedlockUniversalPackage {
  IoredisAdapter: new (client: Ioredis) => object;
  createLock(options: object): UniversalLock;
  createRedlock(options: object): UniversalLock;
}

/** `redlock`, version 5. */
export interface Redlock5Package {
  default: new (clients: readonly Ioredis[], options: object) => {
    on(event: "error", listener: () => void): unknown;
    acquire(keys: readonly string[], ttlMs: number): Promise<{
      release(): Promise<unknown>;
    }>;
    using<T>(
      keys: readonly string[],
      ttlMs: number,
      routine: () => Promise<T>,
    ): Promise<T>;
  };
}

/** `@redis-kit/lock`. */
export interface RedisKitPackage {
  Redlock: new (clients: readonly NodeRedis[], options: object) => {
    acquire(key: string, ttlMs: number): Promise<
      {
        release(): Promise<boolean>;
      } | null
    >;
  };
}

/** `esbuild`. */
export interface Esbuild {
  build(options: object): Promise<unknown>;
  stop(): Promise<void>;
}

/** Opens a client of node-redis, of the package of that name. */
export async function openNodeRedis(
  name: string,
  url: string,
): Promise<NodeRedis> {
  const { createClient } = await load<NodeRedisPackage>(name);
  const client = createClient({ url });
  // Without a listener a cut ends the process before anybody is told why.
  client.on("error", () => {});
  await client.connect();
  return client;
}
