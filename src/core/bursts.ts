/**
 * Calls that come in bursts: the last of each runs, whichever process it is in;
 * and of a burst that does not end one call runs in every wait.
 *
 * Each call joins its burst on the server, waits, and asks what to do:
 *
 * - The last one runs, though never sooner than one wait after the run before.
 * - Two waits after the burst began, a call runs although others came after it,
 *   and from then on one in every wait, until the burst is over: one wait after
 *   its last call. Within two waits: any burst that is over in less than one
 *   wait makes one run, and that with the last arguments.
 * - The latest call of its process stays until a later one of another process
 *   has run, and stands in for it, should that have died.
 */

import {
  type Backend,
  type BurstCall,
  type Bursts,
  type BurstWord,
  clockOf,
} from "./backend.ts";
import { pause } from "./clock.ts";

/** How soon to look whether the last one of a burst has run. */
export const SOON_MS = 20;
/** A later call of the process asks so soon after that it will do. */
export const NEAR_MS = 5;
/** For how long a burst is remembered, beside some waits. */
export const BURST_MS = 10_000;

/** A call of this process that waits: when it asks, by the clock. */
interface Waiting {
  asksAt: number;
}

/** The calls of this process that wait, in order, by backend and key. */
const waiting = new WeakMap<Backend, Map<string, Set<Waiting>>>();

/**
 * Makes a call of the burst of `key`: runs `run` after `waitMs` or a little
 * more, if it turns out to be the one.
 *
 * @throws What `run` throws, or {@linkcode LockBackendError}, as a rejection.
 */
export async function callInBurst(
  backend: Backend,
  bursts: Bursts,
  key: string,
  waitMs: number,
  run: () => unknown,
): Promise<void> {
  const clock = clockOf(backend);
  const all = waiting.get(backend) ?? new Map<string, Set<Waiting>>();
  waiting.set(backend, all);
  const ours = all.get(key) ?? new Set();
  all.set(key, ours);
  const call: Waiting = { asksAt: clock.now() + waitMs };
  ours.add(call);
  try {
    const number = await bursts.join(key, waitMs);
    for (let inMs = waitMs;;) {
      call.asksAt = clock.now() + inMs;
      await pause(clock, inMs);
      const nextMs = nextIn(ours, call, clock.now());
      const word = await bursts.ask({ key, number, waitMs, nextMs });
      if (word === "done") return;
      if (word === "run") break;
      inMs = word;
    }
  } finally {
    ours.delete(call);
    if (ours.size === 0 && all.get(key) === ours) all.delete(key);
  }
  await run();
}

/** In how many milliseconds the next of those who came after `call` asks. */
function nextIn(
  ours: ReadonlySet<Waiting>,
  call: Waiting,
  now: number,
): number | undefined {
  let isLater = false;
  let asksAt = Infinity;
  for (const other of ours) {
    if (isLater) asksAt = Math.min(asksAt, other.asksAt);
    isLater ||= other === call;
  }
  return asksAt === Infinity ? undefined : Math.max(0, asksAt - now);
}

/** For how long the last one may be late before another stands in for it. */
export function graceMs(waitMs: number): number {
  return Math.min(Math.max(waitMs / 2, 250), 5_000);
}

/** A burst as it is written down where there is no server for it. */
export interface Burst {
  /** The number of the last call, when it came, and how long it waits. */
  last: number;
  at: number;
  waitMs: number;
  /** Up to which number all is served, by whom, and since when. */
  ran: number;
  by: number;
  ranAt: number;
  /** When a run is due although calls keep coming. */
  dueAt: number;
  /** When it is forgotten. */
  expiresAt: number;
}

/** Has a call join `burst`, as a server would: its number. */
export function joinBurst(burst: Burst, waitMs: number, now: number): number {
  if (burst.last <= burst.ran) burst.dueAt = now + 2 * waitMs;
  burst.last = Math.max(burst.last + 1, Math.floor(now * 1000));
  burst.at = now;
  burst.waitMs = waitMs;
  burst.expiresAt = now + 4 * waitMs + BURST_MS;
  return burst.last;
}

/** What a call of `burst` is to do, as a server would say. */
export function askBurst(
  burst: Burst,
  { number, waitMs, nextMs = Infinity }: BurstCall,
  now: number,
): BurstWord {
  // Told before, and not heard.
  if (number === burst.by) return "run";
  if (number <= burst.ran) return "done";
  const take = (upTo: number): BurstWord => {
    burst.ran = upTo;
    burst.by = number;
    burst.ranAt = now;
    burst.dueAt = now + waitMs;
    burst.expiresAt = now + 4 * waitMs + BURST_MS;
    return "run";
  };
  const soonest = burst.ranAt + waitMs;
  if (number === burst.last) {
    return now >= soonest ? take(number) : Math.ceil(soonest - now);
  }
  // As after a stall, when all who are due come at once: the last of them.
  if (nextMs === 0) return "done";
  // Of a burst that the server has forgotten, too.
  const dueAt = Math.max(burst.dueAt, soonest);
  const isOverAt = burst.at + burst.waitMs;
  if (now >= dueAt && now < isOverAt) return take(number);
  const endsAt = Math.max(isOverAt, soonest);
  const isDeadAt = endsAt + graceMs(burst.waitMs);
  if (now >= isDeadAt) return take(Math.max(burst.last, number));
  const askAt = now < dueAt && dueAt < isOverAt
    ? dueAt
    : now < endsAt
    ? endsAt + SOON_MS
    : isDeadAt;
  return now + nextMs <= askAt + NEAR_MS ? "done" : Math.ceil(askAt - now);
}
