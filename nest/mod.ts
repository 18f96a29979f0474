/**
 * Distributed locks for NestJS.
 *
 * @module
 */

/**
 * The token under which the lock so named is provided.
 *
 * @param name The lock's name; that of the nameless one is `root`.
 *
 * @example
 * ```ts
 * import { getLockToken } from "@dreamer/lock-nest";
 *
 * if (getLockToken("a") === getLockToken("b")) throw new Error("the same");
 * ```
 */
export function getLockToken(name = "root"): string {
  return `@trellisorg/distributed-lock:${name}DistributedLock:token`;
}
