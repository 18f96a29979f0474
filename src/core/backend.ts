/** What a lock lives on, seen from the core: one attempt at each thing. */

import { type Clock, systemClock } from "./clock.ts";
import type { LockBackendError } from "./errors.ts";
import type { LockEvent } from "./events.ts";

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
  /** Greater than any drawn before for this key, where one was asked for. */
  readonly fencingToken?: number;
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

/** What a server says of one hold. */
export interface Standing {
  /** `done`: it is ours. */
  readonly verdict: Verdict;
  /** What is left of it in milliseconds. */
  readonly leftMs: number;
}

/** What a server says of one key. */
export interface Entry {
  /** The owner; `undefined` where nobody has it. */
  readonly owner?: string;
  /** What is left in milliseconds; `undefined` where it has no expiry. */
  readonly leftMs?: number;
  /** The last fencing token drawn for the key, as long as it is remembered. */
  readonly fencingToken?: number;
}

/**
 * A place where locks can live. Each method is one attempt: it answers as soon
 * as the server has, and rejects with a `LockBackendError` where it has not.
 *
 * What not every backend can do is an optional member, looked for before
 * anything is sent.
 */
export interface Backend {
  /** What it is, for messages: `redis`, `memory`. */
  readonly name: string;
  /** The clock by which its holds are judged; the machine's by default. */
  readonly clock?: Clock;
  /** Told of every transition of every lock made on this backend. */
  readonly onEvent?: (event: LockEvent) => void;
  /** Takes the key unless somebody has it; granted again to its own owner. */
  tryAcquire(claim: Claim): Promise<Grant | Refusal>;
  /** The same, and draws a fencing token in the same round trip. */
  tryAcquireFenced?(claim: Claim): Promise<Grant | Refusal>;
  /**
   * Makes each hold last its `ttlMs` from now if it is still ours, with as few
   * commands as will do: all holds of a client are renewed together. Answers
   * for each with a verdict, or with the error that kept it from one.
   */
  extend(
    claims: readonly Claim[],
  ): Promise<readonly (Verdict | LockBackendError)[]>;
  /** Frees the key, if it is still ours. */
  release(hold: Hold): Promise<Verdict>;
  /**
   * Frees the key in the background, for a hold of which nobody knows whether
   * it came about: tried again until it is known to be gone or has expired.
   */
  discard(claim: Claim): void;
  /** How a hold stands, without changing it. */
  inquire(hold: Hold): Promise<Standing>;
  /** Who has a key, whoever it is. */
  inspect?(key: string): Promise<Entry>;
  /** The keys that match a glob pattern, each at least once. */
  scan?(pattern: string): AsyncIterable<string>;
  /** Frees a key whoever has it: whether anybody had. */
  forceRelease?(key: string): Promise<boolean>;
  /**
   * Writes `value` unless a greater token has been seen for `key`: whether it
   * did. For a resource that is kept on the same server.
   */
  writeFenced?(write: FencedWrite): Promise<boolean>;
}

/** A write that is refused if it comes from a holder of the past. */
export interface FencedWrite {
  /** Where to write. */
  readonly key: string;
  /** What to write. */
  readonly value: string;
  /** The writer's fencing token. */
  readonly fencingToken: number;
  /** How long to keep value and token, in milliseconds; for good if not given. */
  readonly ttlMs?: number;
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
    typeof backend.discard === "function" &&
    typeof backend.inquire === "function";
}
