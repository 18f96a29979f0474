/** What an observer is told: each transition of each lock, once. */

import type { Backend } from "./backend.ts";
import type { LockBackendError, LockLostError, LossReason } from "./errors.ts";

/** What every event tells. */
export interface LockEventBase {
  /** The key of the lock. */
  readonly key: string;
  /** Its label, if it has one. Its owner is a secret and never told. */
  readonly label?: string | undefined;
}

/** A lock was acquired; with `replicas`, before these are asked. */
export interface AcquiredEvent extends LockEventBase {
  /** What happened. */
  readonly type: "acquired";
  /** Milliseconds from the call to the grant. */
  readonly tookMs: number;
  /** The fencing token, if one was asked for. */
  readonly fencingToken?: number | undefined;
}

/** A lock was taken, and patience ran out. */
export interface RefusedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "refused";
  /** Milliseconds from the call to the refusal. */
  readonly tookMs: number;
  /** What is left of the present hold, where it is known. */
  readonly retryAfterMs?: number | undefined;
  /** The place in line, from 1, of one who waited there. */
  readonly place?: number | undefined;
}

/**
 * Somebody stands in line, for the first time or at another place than before:
 * as of when the server was asked, which is every second or so. Those of one
 * process who wait for one key with one label stand there as one, unless
 * `localTurns` is 0.
 */
export interface WaitingEvent extends LockEventBase {
  /** What happened. */
  readonly type: "waiting";
  /** The place in line; 1 is the next. */
  readonly place: number;
  /** What is left of the present hold, where it is known. */
  readonly retryAfterMs?: number | undefined;
}

/** A lease was extended, by hand or in the background. */
export interface ExtendedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "extended";
  /** Milliseconds that the server took to answer. */
  readonly tookMs: number;
  /** The new lease in milliseconds. */
  readonly ttlMs: number;
}

/** An extension got no answer, or an error; the lock is held on for the while. */
export interface ExtendFailedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "extend-failed";
  /** Milliseconds until it failed. */
  readonly tookMs: number;
  /** Why. */
  readonly error: LockBackendError;
}

/** A lock was lost. */
export interface LostEvent extends LockEventBase {
  /** What happened. */
  readonly type: "lost";
  /** Milliseconds for which it was held. */
  readonly heldMs: number;
  /** Why, in a word. */
  readonly reason: LossReason;
  /** Why, as the lock's signal has it. */
  readonly error: LockLostError;
}

/** A lock was released. */
export interface ReleasedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "released";
  /** Milliseconds for which it was held, or since it was resumed here. */
  readonly heldMs: number;
  /** Milliseconds that the release took. */
  readonly tookMs: number;
}

/** A release failed: the lock goes by itself when its lease is over. */
export interface ReleaseFailedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "release-failed";
  /** Milliseconds for which it was held. */
  readonly heldMs: number;
  /** Milliseconds until it failed. */
  readonly tookMs: number;
  /** Why. */
  readonly error: unknown;
}

/**
 * Nobody can call those who wait for a lock: the client has no way to, or may
 * not, SUBSCRIBE; or its connection to listen by was lost, and has not been back
 * for a moment. They stand in line all the same, and ask again and again; told
 * once, until they can be called again.
 */
export interface PushFailedEvent extends LockEventBase {
  /** What happened. */
  readonly type: "push-failed";
  /** Why. */
  readonly error: unknown;
}

/** What an observer is told; durations are in milliseconds. */
export type LockEvent =
  | AcquiredEvent
  | RefusedEvent
  | WaitingEvent
  | ExtendedEvent
  | ExtendFailedEvent
  | LostEvent
  | ReleasedEvent
  | ReleaseFailedEvent
  | PushFailedEvent;

/**
 * Tells the observer of `backend`. Callers make the event only if there is an
 * observer: nobody pays for what nobody hears.
 */
export function tell(backend: Backend, event: LockEvent): void {
  try {
    backend.onEvent?.(event);
  } catch (error) {
    // The observer's own fault. It may not break a lock, nor go unheard: it
    // surfaces where an event listener's would.
    queueMicrotask(() => {
      throw error;
    });
  }
}
