/** What to do between two attempts: the policies of a caller's patience. */

import type { Refusal } from "./backend.ts";

/**
 * One caller's way of waiting. Standing in line, and polling where nobody can
 * call us, will be others of the kind.
 */
export interface Waiting {
  /**
   * Called with each refusal: resolves when another attempt is due, to false
   * where patience has run out.
   */
  again(refusal: Refusal): Promise<boolean> | false;
}

/** No patience at all: the first answer stands. */
export const failFast: Waiting = { again: () => false };
