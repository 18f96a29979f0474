/** A line as a server has it written down. */

/**
 * Whether `members` are so many, and the process of each can be called: who is
 * slow to listen stands there by another name first, and asks.
 */
export function areInLine(members: unknown, count: number): boolean {
  const all = members as string[];
  return all.length === count &&
    all.every((member) => /^\d+ \d+ [0-9a-f]{32}@[0-9a-f]{16}/.test(member));
}
