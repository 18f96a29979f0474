/** Whatever a lock may be asked to live on becomes a backend: by its shape. */

import { RedisBackend, type RedisOptions } from "./backends/redis.ts";
import { ioredis, type IoredisClient } from "./clients/ioredis.ts";
import { minimal, type MinimalClient } from "./clients/minimal.ts";
import { nodeRedis, type NodeRedisClient } from "./clients/node_redis.ts";
import type { Port } from "./clients/port.ts";
import { type Backend, isBackend } from "./core/backend.ts";
import { kindOf, wrongType } from "./core/options.ts";

/** What a lock can live on: a Redis client, or a backend such as `memory()`. */
export type LockTarget =
  | IoredisClient
  | NodeRedisClient
  | MinimalClient
  | Backend;

/** One backend for each client, for as long as the client is around. */
const known = new WeakMap<object, Backend>();

/**
 * A Redis client as a backend, for those who want to say more about it than
 * the client alone does. Without options it is what a bare client becomes.
 *
 * @param client Any client that a lock can live on.
 * @param options An observer.
 * @throws {TypeError} It is no such client.
 *
 * @example Counting what is refused
 * ```ts
 * import { acquireLock, redis } from "@dreamer/utils/lock";
 * import { Redis } from "ioredis";
 *
 * const client = new Redis(process.env.REDIS_URL ?? "redis://localhost:6379");
 * let refused = 0;
 * const here = redis(client, {
 *   onEvent: (event) => event.type === "refused" && refused++,
 * });
 * await using first = await acquireLock(here, "lock:doc:redis");
 * await acquireLock(here, "lock:doc:redis", { throwOnFail: false });
 * if (refused !== 1) throw new Error(`${refused} refused`);
 * await first.release();
 * client.disconnect();
 * ```
 */
export function redis(
  client: Exclude<LockTarget, Backend>,
  options: RedisOptions = {},
): Backend {
  const port = typeof client === "object" && client !== null
    ? portOf(client)
    : undefined;
  if (port === undefined) return notATarget("`client`", client);
  const { onEvent } = options;
  if (onEvent !== undefined && typeof onEvent !== "function") {
    wrongType("set up a backend", "onEvent must be a function", onEvent);
  }
  return new RedisBackend(port, { onEvent });
}

/**
 * The backend for `on`.
 *
 * @throws {TypeError} It is nothing that a lock can live on.
 */
export function connect(on: LockTarget): Backend {
  const seen = known.get(on);
  if (seen !== undefined) return seen;
  if (typeof on === "object" && on !== null) {
    if (isBackend(on)) return on;
    const port = portOf(on);
    if (port !== undefined) {
      const backend = new RedisBackend(port);
      known.set(on, backend);
      return backend;
    }
  }
  return notATarget("`on`", on);
}

/** Its kind only: a URL in the wrong place has a password in it. */
function notATarget(name: string, value: unknown): never {
  wrongType(
    "find the server",
    `${name} must be an ioredis or node-redis client, an object with set, ` +
      "get, del and eval in the style of ioredis, or a backend such as memory()",
    value,
    kindOf(value),
  );
}

/**
 * The order matters: every client has `set` and `get`, and each but the last
 * line is about something that only one library has.
 */
function portOf(on: object): Port | undefined {
  const client = on as Record<string, unknown>;
  const has = (...names: string[]) =>
    names.every((name) => typeof client[name] === "function");
  // A pipeline or transaction has a client's commands, but only writes them
  // down: they would take effect later, with nobody to hold the lock.
  if (client.isPipeline === true || has("execAsPipeline")) return undefined;
  if (has("call", "set", "eval", "evalsha")) {
    return ioredis(on as IoredisClient);
  }
  if (typeof client.isOpen === "boolean" && has("set", "eval", "evalSha")) {
    return nodeRedis(on as NodeRedisClient);
  }
  // Upstash's, Valkey GLIDE's and Bun's: set, get and del, but called otherwise.
  if (has("createScript") || has("customCommand") || has("send")) {
    return undefined;
  }
  if (has("set", "get", "del", "eval")) return minimal(on as MinimalClient);
  return undefined;
}
