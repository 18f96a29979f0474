/**
 * Lock events on `node:diagnostics_channel`: whoever wants to know subscribes,
 * from anywhere in the process, and the code that locks knows nothing of it.
 *
 * @module
 */

// The only `node:` import of the library, behind a door of its own: Deno, Bun
// and Node have the module, and who does not open the door does not need it.
import { channel } from "node:diagnostics_channel";
import type { LockEvent } from "./core/events.ts";

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
} from "./core/events.ts";

/** A kind of event: `acquired`, `refused`, `extended` and so on. */
export type LockEventType = LockEvent["type"];

/** The name of the channel for one kind of event. */
export type LockChannel<Type extends LockEventType = LockEventType> =
  `dreamer:lock:${Type}`;

/**
 * The names of the channels, by the kind of event that is published there.
 *
 * @example
 * ```ts
 * import { lockChannels } from "@dreamer/utils/lock/diagnostics";
 *
 * const names = Object.values(lockChannels);
 * if (!names.includes("dreamer:lock:extend-failed")) throw new Error("?");
 * ```
 */
export const lockChannels: {
  readonly [Type in LockEventType]: LockChannel<Type>;
} = {
  "acquired": "dreamer:lock:acquired",
  "refused": "dreamer:lock:refused",
  "waiting": "dreamer:lock:waiting",
  "extended": "dreamer:lock:extended",
  "extend-failed": "dreamer:lock:extend-failed",
  "lost": "dreamer:lock:lost",
  "released": "dreamer:lock:released",
  "release-failed": "dreamer:lock:release-failed",
  "push-failed": "dreamer:lock:push-failed",
};

/**
 * An observer that publishes each event on the channel for its kind: the
 * message is the {@linkcode LockEvent} itself.
 *
 * A kind that nobody has subscribed to is not published, at the price of one
 * look. A subscriber that throws breaks no lock, and no other subscriber: its
 * error surfaces as an uncaught exception.
 *
 * @returns What a backend takes as its `onEvent`: `diagnostics()`, and not the
 * function by itself. Any number of backends may share it.
 *
 * @example Who waits for whom
 * ```ts
 * import { acquireLock } from "@dreamer/utils/lock";
 * import {
 *   diagnostics,
 *   lockChannels,
 *   type RefusedEvent,
 * } from "@dreamer/utils/lock/diagnostics";
 * import { memory } from "@dreamer/utils/lock/memory";
 * import { subscribe } from "node:diagnostics_channel";
 *
 * // Wherever the program is watched …
 * const busy: string[] = [];
 * subscribe(lockChannels.refused, (message) => {
 *   const { key, retryAfterMs } = message as RefusedEvent;
 *   busy.push(`${key} for ${Math.ceil(retryAfterMs! / 1000)} s`);
 * });
 *
 * // … and where it locks; or redis(client, { onEvent: diagnostics() }).
 * const here = memory({ onEvent: diagnostics() });
 * await using _ = await acquireLock(here, "report", { ttl: 5 });
 * await acquireLock(here, "report", { throwOnFail: false });
 * if (busy[0] !== "report for 5 s") throw new Error(busy[0]);
 * ```
 */
export function diagnostics(): (event: LockEvent) => void {
  return publish;
}

// Looked up once: by name it costs more than all the rest.
const channels = Object.fromEntries(
  Object.entries(lockChannels).map(([type, name]) => [type, channel(name)]),
);

function publish(event: LockEvent): void {
  const channel = channels[event.type];
  if (channel.hasSubscribers) channel.publish(event);
}
