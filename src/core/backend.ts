/** What a lock lives on, seen from the core: one attempt at each thing. */

import { type Clock, systemClock } from "./clock.ts";

/** One hold: who has which key. */
export interface Hold {
  /** What is locked. */
  readonly key: string;
  /** The random name of this hold, kept secret from all but the server. */
  readonly owner: string;
}

/** A wish for a key, for `ttlMs` milliseconds unless it is extended. */
export interface Claim extends Hold {
  /** How long the server keeps a silent hold, in whole milliseconds. */
  readonly ttlMs: number;
}

/** Yes: the key is ours from the moment at which it was asked for. */
export interface Grant {
  /** Always true. */
  readonly granted: true;
}

/** No: somebody else has the key. */
export interface Refusal {
  /** Always false. */
  readonly granted: false;
  /** What is left of the present hold in milliseconds, where it is known. */
  readonly retryAfterMs?: number;
}

/** The plain grant, of which one is enough. */
export const GRANTED: Grant = { granted: true };

/**
 * What became of a command that only the owner may give: `done`; refused as
 * the key is `taken` by another or `absent`; or `unclear`, where the client
 * may have sent it twice and the second answer hides the first.
 */
export type Verdict = "done" | "taken" | "absent" | "unclear";

/**
 * A place where locks can live. Each method is one attempt: it answers as soon
 * as the server has, and rejects with a `LockBackendError` where it has not.
 *
 * What not every backend can do (stand in line, draw fencing tokens, tell who
 * holds what) is an optional member, looked for as options are read.
 */
export interface Backend {
  /** What it is, for messages: `redis`, `memory`. */
  readonly name: string;
  /** The clock by which its holds are judged; the machine's by default. */
  readonly clock?: Clock;
  /** Takes the key unless somebody has it; granted again to its own owner. */
  tryAcquire(claim: Claim): Promise<Grant | Refusal>;
  /** Makes the hold last `ttlMs` from now, if it is still ours. */
  extend(claim: Claim): Promise<Verdict>;
  /** Frees the key, if it is still ours. */
  release(hold: Hold): Promise<Verdict>;
  /**
   * Frees the key in the background, for a hold of which nobody knows whether
   * it came about: tried again until it is known to be gone or has expired.
   */
  discard(claim: Claim): void;
}

/** The clock by which holds on `backend` are judged. */
export function clockOf(backend: Backend): Clock {
  return backend.clock ?? systemClock;
}

/** Whether `value` is a {@linkcode Backend}, by its shape. */
export function isBackend(value: object): value is Backend {
  const backend = value as Partial<Backend>;
  return typeof backend.tryAcquire === "function" &&
    typeof backend.extend === "function" &&
    typeof backend.release === "function" &&
    typeof backend.discard === "function";
}
