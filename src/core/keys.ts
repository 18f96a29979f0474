/** The names of things: keys, and the owners of holds. */

import { outOfRange, wrongType } from "./options.ts";

/**
 * Builds a key in one consistent form: `lock:<prefix>:<part>:<part>`.
 *
 * Parts are joined as they are, so one that contains a colon can meet two that
 * do not: put what a user may choose freely last. An empty part is taken as it
 * is: `lockKey("a", "")` is `lock:a:`, as is `lockKey("a")`.
 *
 * @param prefix What kind of thing is locked.
 * @param parts Which one: strings or finite numbers.
 * @returns The key.
 * @throws {TypeError} A part is neither, such as a forgotten `undefined`,
 * which would make one lock of everybody's.
 * @throws {RangeError} `prefix` is empty.
 *
 * @example
 * ```ts
 * import { lockKey } from "@dreamer/utils/lock";
 *
 * const key = lockKey("order", "user123", 456);
 * if (key !== "lock:order:user123:456") throw new Error(key);
 * ```
 */
export function lockKey(prefix: string, ...parts: (string | number)[]): string {
  const action = "build a key";
  if (typeof prefix !== "string") {
    wrongType(action, "prefix must be a string", prefix);
  }
  if (prefix === "") outOfRange(action, "prefix must not be empty", prefix);
  for (const [index, part] of parts.entries()) {
    if (typeof part !== "string" && !Number.isFinite(part)) {
      const rule = `part ${index + 1} must be a string or a finite number`;
      wrongType(action, rule, part);
    }
  }
  return `lock:${prefix}:${parts.join(":")}`;
}

/** Owners drawn in one visit to the generator: it costs as much as 20 of them. */
const BLOCK = 128;
const OWNER_BYTES = 16;
/** What follows the random part of each: see `drawOwner`. */
const MARK = "@";
/** How long an owner is, up to and with the mark. */
export const OWNER_LENGTH: number = OWNER_BYTES * 2 + MARK.length;
const HEX = new TextEncoder().encode("0123456789abcdef");
const random = new Uint8Array(BLOCK * OWNER_BYTES);
const digits = new Uint8Array(BLOCK * OWNER_LENGTH).fill(MARK.charCodeAt(0));
const decoder = new TextDecoder();
let block = "";
let next = 0;

/**
 * A new owner: 128 random bits in hexadecimal, then `@` and the inbox of the
 * process, if it has one, then `#` if the hold draws a fencing token, then `:`
 * and the label, if there is one. Kept in the owner, all cost no key and no
 * command, and are gone in the same instant as the lock. The `@` tells it from
 * the owners of other libraries.
 */
export function drawOwner(
  label?: string,
  inbox?: string,
  isFenced = false,
): string {
  if (next === block.length) {
    crypto.getRandomValues(random);
    for (let i = 0, at = 0; i < random.length; at += MARK.length) {
      for (const end = i + OWNER_BYTES; i < end; i++) {
        digits[at++] = HEX[random[i] >> 4];
        digits[at++] = HEX[random[i] & 15];
      }
    }
    // Decoded in one piece: a slice of it costs less than 16 concatenations.
    block = decoder.decode(digits);
    next = 0;
  }
  let owner = block.slice(next, next += OWNER_LENGTH);
  if (inbox !== undefined) owner += inbox;
  if (isFenced) owner += "#";
  return label === undefined ? owner : `${owner}:${label}`;
}

/** The label in an owner of {@linkcode drawOwner}; `undefined` if there is none. */
export function labelOf(owner: string): string | undefined {
  return /^[0-9a-f]{32}@[0-9a-f]*\*?#?:(.*)$/s.exec(owner)?.[1];
}

/** Whether it is the owner of a hold of ours, and not of another library's. */
export function isOurs(owner: string): boolean {
  return /^[0-9a-f]{32}@/.test(owner);
}

/** Whether the hold of `owner` drew a fencing token as it began. */
export function drewToken(owner: string): boolean {
  return /^[0-9a-f]{32}@[0-9a-f]*\*?#/.test(owner);
}
