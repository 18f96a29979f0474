/** Whatever a lock may be asked to live on becomes a backend: by its shape. */

import { RedisBackend, type RedisOptions } from "./backends/redis.ts";
import { RedlockBackend, type RedlockOptions } from "./backends/redlock.ts";
import { bun, type BunClient } from "./clients/bun.ts";
import { type CommandFunction, commandFunction } from "./clients/command.ts";
import { glide, type GlideClient } from "./clients/glide.ts";
import { ioredis, type IoredisClient } from "./clients/ioredis.ts";
import { minimal, type MinimalClient } from "./clients/minimal.ts";
import { nodeRedis, type NodeRedisClient } from "./clients/node_redis.ts";
import type { Port } from "./clients/port.ts";
import { upstash, type UpstashClient } from "./clients/upstash.ts";
import { type Backend, isBackend } from "./core/backend.ts";
import {
  checkNumber,
  checkObserver,
  checkOptions,
  isClass,
  kindOf,
  outOfRange,
  wrongType,
} from "./core/options.ts";

export type { RedlockOptions as QuorumOptions };

/**
 * What a lock can live on: a Redis client, a function that sends a command, or
 * a backend such as `memory()`.
 */
export type LockTarget =
  | IoredisClient
  | NodeRedisClient
  | UpstashClient
  | BunClient
  | GlideClient
  | CommandFunction
  | MinimalClient
  | Backend;

/** {@linkcode LockTarget} by the name that it had at first. */
export type RedisClient = LockTarget;

/** One backend for each client, for as long as the client is around. */
const known = new WeakMap<object, Backend>();

/** The client behind each backend that has one. */
const clients = new WeakMap<Backend, object>();

/**
 * A Redis client as a backend, for those who want to say more about it than
 * the client alone does. Made once for each client: each has waiters, renewals
 * and a connection to listen by of its own.
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
  const port = portOf(client);
  if (port === undefined) return notATarget("`client`", client);
  const action = "set up a backend";
  checkOptions(action, options, new Set(["onEvent"]));
  const { onEvent } = options;
  checkObserver(action, onEvent);
  const backend = new RedisBackend(port, { onEvent });
  clients.set(backend, client);
  return backend;
}

const QUORUM_OPTIONS = new Set(["serverTimeoutMs", "onEvent"]);

/** With fewer none can be missing, and one alone does as well. */
const FEWEST_SERVERS = 3;

/**
 * A quorum: locks that live on a majority of several independent servers, none
 * of which is a replica of another, so that some of them can be away, or come
 * back empty, without two ever holding the same lock (Redlock).
 *
 * All are asked at once, and a lock is acquired as soon as a majority granted
 * it: of 3 servers 1, of 5 servers 2 may be down or hang, and nobody waits for
 * them. With fewer than a majority in reach nothing is granted; the error tells
 * of each server, by an `AggregateError` as its `cause`.
 *
 * Who waits for a lock (`waitMs`) is told by the servers when it is released, in
 * about the order in which they came, and tries again every now and then in
 * case that is lost. Of several who ask in the same moment it may be that none
 * gets a majority: who doesn't wait is told that it is taken. A server that lost
 * its data should stay away for as long as the longest lease before it takes
 * part again.
 *
 * @param targets The servers: at least 3 clients or backends, of any kinds, in
 * an order of your choice, which is how messages count them. Backends with
 * clocks of their own, such as `memory()`, are to share one: the first's is
 * what holds are judged by.
 * @param options The limit for one server, an observer.
 * @throws {TypeError | RangeError} There are too few, or one comes twice; one is
 * nothing that a lock can live on, or a quorum itself; an option is bad.
 *
 * @example
 * ```ts
 * import { redlock, withLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * // … or your clients, one for each server
 * const quorum = redlock([memory(), memory(), memory()]);
 * await withLock(quorum, "lock:report:7", (lock) => {
 *   lock.signal.throwIfAborted();
 * }, { ttl: 10, fencing: true });
 * ```
 */
export function redlock(
  targets: readonly LockTarget[],
  options: RedlockOptions = {},
): Backend {
  return quorumOf(targets, options, FEWEST_SERVERS);
}

/** The same, of `fewest` servers or more, by the name that a face has for them. */
export function quorumOf(
  targets: readonly LockTarget[],
  options: RedlockOptions,
  fewest: number,
  name = "targets",
): Backend {
  const action = "set up a quorum";
  if (!Array.isArray(targets)) {
    wrongType(action, "targets must be an array", targets, kindOf(targets));
  }
  if (targets.length < fewest) {
    const rule = `there must be at least ${fewest} servers`;
    outOfRange(action, rule, targets.length);
  }
  checkOptions(action, options, QUORUM_OPTIONS);
  const { serverTimeoutMs, onEvent } = options;
  checkNumber(action, "serverTimeoutMs", serverTimeoutMs, "> 0");
  checkObserver(action, onEvent);
  const seen = new Map<object, number>();
  const members = Array.from(targets, (target: LockTarget, index) => {
    const member = connect(target, `${name}[${index}]`);
    const number = index + 1;
    if (member instanceof RedlockBackend) {
      wrongType(action, `server ${number} must not be a quorum`, target);
    }
    const server = clients.get(member) ?? member;
    const other = seen.get(server);
    if (other !== undefined) {
      const rule = "each server must come once, and server " +
        `${number} is server ${other}`;
      outOfRange(action, rule, target);
    }
    seen.set(server, number);
    return member;
  });
  return new RedlockBackend(members, { serverTimeoutMs, onEvent });
}

/** Whether {@linkcode connect} has a backend for it. */
export function isTarget(on: unknown): on is LockTarget {
  return isOwn(on) || portOf(on) !== undefined;
}

function isOwn(on: unknown): on is Backend {
  return typeof on === "object" && on !== null && isBackend(on);
}

/**
 * The backend for `on`, or for what a face of an older API calls otherwise.
 *
 * @throws {TypeError} It is nothing that a lock can live on.
 */
export function connect(on: LockTarget, name = "on"): Backend {
  const seen = known.get(on);
  if (seen !== undefined) return seen;
  if (isOwn(on)) return on;
  const port = portOf(on);
  if (port === undefined) return notATarget(`\`${name}\``, on);
  const backend = new RedisBackend(port);
  known.set(on, backend);
  clients.set(backend, on);
  return backend;
}

/** Its kind only: a URL in the wrong place has a password in it. */
function notATarget(name: string, value: unknown): never {
  wrongType(
    "find the server",
    `${name} must be a client (ioredis, node-redis, @upstash/redis, Valkey ` +
      "GLIDE or Bun's RedisClient), a function that sends a command, an object " +
      "with set, get, del and eval in the style of ioredis, or a backend such " +
      `as memory()${Array.isArray(value) ? " or, of several, redlock()" : ""}`,
    value,
    kindOf(value),
  );
}

/**
 * The order matters: every client has `set` and `get`, and each but the last
 * line is about something that only one library has.
 */
function portOf(on: unknown): Port | undefined {
  if (typeof on === "function") {
    // A class is what a client is made by.
    return isClass(on) ? undefined : commandFunction(on as CommandFunction);
  }
  if (typeof on !== "object" || on === null) return undefined;
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
    // Its commands answer by a callback then, and give nothing back.
    const { legacyMode } = (client.options ?? {}) as { legacyMode?: unknown };
    if (legacyMode === true) return undefined;
    return nodeRedis(on as NodeRedisClient);
  }
  if (has("createScript", "exec")) return upstash(on as UpstashClient);
  if (has("customCommand", "close")) return glide(on as GlideClient);
  if (typeof client.connected === "boolean" && has("send", "duplicate")) {
    return bun(on as BunClient);
  }
  // Their pipelines, again; and what is like one of them, but lacks the rest.
  if (
    has("exec", "length") || has("createScript") || has("customCommand") ||
    has("send")
  ) {
    return undefined;
  }
  if (has("set", "get", "del", "eval")) return minimal(on as MinimalClient);
  return undefined;
}
