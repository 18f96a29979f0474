/**
 * Any object with `set`, `get`, `del` and `eval` in the style of ioredis: a
 * thin wrapper around some client, or the ten-line double of a unit test.
 */

import type { Port } from "./port.ts";

/** The least that a client can be. */
export interface MinimalClient {
  /** Called as `set(key, value, "EX" | "PX", amount, "NX")`: `"OK"` or `null`. */
  set(key: string, value: string, ...args: (string | number)[]): Promise<
    unknown
  >;
  /** The value of `key`, or `null`. */
  get(key: string): Promise<unknown>;
  /** Asked for only to tell such an object from others. */
  del(key: string): Promise<unknown>;
  /** Called as `eval(lua, keyCount, ...keys, ...args)`. */
  eval(script: string, keyCount: number, ...args: string[]): Promise<unknown>;
}

/** Speaks through an object that has only what the interface above says. */
export function minimal(client: MinimalClient): Port {
  return {
    // Async, as a double may throw where a client rejects, or answer at once.
    setIfAbsent: async (key, value, unit, amount) =>
      await client.set(key, value, unit, amount, "NX"),
    get: (key) => client.get(key),
    eval: async (lua, keys, args) =>
      await client.eval(lua, keys.length, ...keys, ...args),
  };
}
