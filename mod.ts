/**
 * Distributed locks on Redis for Deno, Bun and Node: one of us at a time, over
 * the client that you already have.
 *
 * {@linkcode withLock} runs a function while nobody else does;
 * {@linkcode acquireLock} gives you the lock to hold by hand.
 *
 * @example
 * ```ts
 * import { lockKey, withLock } from "@dreamer/utils/lock";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * const here = memory(); // or your ioredis or node-redis client
 * await withLock(here, lockKey("report", 7), async (lock) => {
 *   // … nobody else is here, and lock.signal says should that change …
 * });
 * ```
 *
 * @module
 */

export {
  acquireLock,
  DistributedLock,
  type LockJSON,
  withLock,
} from "./src/lock.ts";
export {
  fencedSet,
  type FencedSetOptions,
  forceRelease,
  inspectLock,
  listLocks,
  type LockInfo,
  type LockWaiter,
} from "./src/inspect.ts";
export { lockKey } from "./src/core/keys.ts";
export type {
  DistributedLockOptions,
  LockOptions,
} from "./src/core/options.ts";
export {
  LockBackendError,
  LockError,
  type LockErrorCode,
  LockLostError,
  LockNotAcquiredError,
  LockReplicationError,
  type LossReason,
} from "./src/core/errors.ts";
export type {
  AcquiredEvent,
  ExtendedEvent,
  ExtendFailedEvent,
  LockEvent,
  LockEventBase,
  LostEvent,
  PushFailedEvent,
  RefusedEvent,
  ReleasedEvent,
  ReleaseFailedEvent,
  WaitingEvent,
} from "./src/core/events.ts";
export {
  type LockTarget,
  redis,
  type RedisClient,
  redlock,
} from "./src/connect.ts";
export type { RedisOptions } from "./src/backends/redis.ts";
export type { RedlockOptions } from "./src/backends/redlock.ts";
export type {
  Backend,
  BurstCall,
  Bursts,
  BurstWord,
  Called,
  Claim,
  Ears,
  Entry,
  FencedWrite,
  Grant,
  HandOver,
  Hearing,
  Hold,
  Line,
  NoticeEars,
  Notices,
  Place,
  Refusal,
  Standee,
  Standing,
  Turn,
  Verdict,
  Watch,
  Wish,
} from "./src/core/backend.ts";
export type { Clock } from "./src/core/clock.ts";
export type { BunClient } from "./src/clients/bun.ts";
export type { CommandFunction } from "./src/clients/command.ts";
export type { GlideClient } from "./src/clients/glide.ts";
export type { IoredisClient } from "./src/clients/ioredis.ts";
export type { MinimalClient } from "./src/clients/minimal.ts";
export type {
  NodeRedisClient,
  NodeRedisEval,
} from "./src/clients/node_redis.ts";
export type { UpstashClient } from "./src/clients/upstash.ts";
