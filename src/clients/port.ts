/** What Redis must do for us, in the fewest words; each client speaks them. */

import { systemClock } from "../core/clock.ts";

/** How many keys a SCAN looks at before it lets others go first. */
export const SCAN_COUNT = 500;

/**
 * All keys of a server, by as many SCANs as it takes.
 *
 * @param scan The answer from that cursor on: the next cursor, and keys.
 * @param prefix What all of them begin with, and is to be left out.
 */
export async function* pages(
  scan: (cursor: string) => Promise<readonly [unknown, readonly unknown[]]>,
  prefix = "",
): AsyncGenerator<string[]> {
  let cursor = "0";
  do {
    const [next, keys] = await scan(cursor);
    // As text: a client may be told to give bytes, and one that looks like a
    // number may have become one.
    yield keys.map((key) => String(key).slice(prefix.length));
    cursor = String(next);
  } while (cursor !== "0");
}

/** A text as it is in a pattern where it means itself. */
export function literal(text: string): string {
  return text.replace(/[\\*?[\]]/g, "\\$&");
}

/** Who listens on a channel. */
export interface Listener {
  /** A message came. */
  onMessage(message: string): void;
  /**
   * Heard from now on is all that is published; before, some may be missed.
   * Also called where the server tells that all keys were deleted at once, or
   * that there is something for us.
   */
  onReady(): void;
  /** Nothing is heard, and nothing will be. */
  onFail(reason: unknown): void;
  /** The connection is gone, and comes back by itself as soon as it can. */
  onCut(): void;
  /** The connection was closed, as the client was by whoever owns it. */
  onClosed(): void;
}

/**
 * The server is asked to tell of FLUSHALL and FLUSHDB: those who track keys are
 * told that all are gone (`CLIENT TRACKING`). The keys that we track ourselves
 * begin as our channel does, and there are none: but that one of them was changed
 * is how somebody calls us who may not PUBLISH. In the old protocol both come as
 * a message on this channel.
 */
export const INVALIDATED = "__redis__:invalidate";

/**
 * How long to wait before the nth try in a row to have a connection back. A
 * server that has no room for another is not to be overrun; and whoever can't
 * listen asks meanwhile.
 */
export function backAfterMs(nth: number): number {
  return Math.min(50 * 2 ** (nth - 1), 400);
}

/** The arguments of CLIENT for that, for the connection with this id. */
export function tracking(id: unknown, channel: string): string[] {
  return ["TRACKING", "ON", "REDIRECT", String(id), "BCAST", "PREFIX", channel];
}

/** Who listens at one of several nodes. */
export interface NodeListener extends Listener {
  /** The connection is gone, and does not come back by itself. */
  onGone(): void;
}

/** How often to look which nodes there are, and how soon again where none is. */
const LOOK_MS = 1_000;
const LOOK_SOON_MS = 50;

/**
 * Listens at each master of a Cluster. One would hear all, but the script that
 * calls runs at the master of the key, and sees only who listens there.
 *
 * @param masters The present ones, by address; `undefined` once the client was
 * closed, which not every client tells of.
 * @param listenAt Listens at one of them; gives a function that closes it.
 * @returns A function that closes all.
 */
export function listenAtAll<Node>(
  masters: () =>
    | readonly (readonly [address: string, node: Node])[]
    | undefined,
  listenAt: (node: Node, listener: NodeListener) => () => void,
  listener: Listener,
): () => void {
  const ears = new Map<string, () => void>();
  /** Those of which it is not known yet whether they will hear. */
  const opening = new Set<string>();
  let isOpen = true;
  let isFirst = true;
  let callOff = () => {};
  const tellReady = () => {
    if (isOpen && opening.size === 0 && ears.size > 0) listener.onReady();
  };
  const drop = (address: string) => {
    ears.get(address)?.();
    ears.delete(address);
    if (isOpen && ears.size === 0) listener.onCut();
    // One that is tried again and again is no news to anybody.
    if (opening.delete(address)) tellReady();
  };
  const look = () => {
    const found = masters();
    if (found === undefined) {
      close();
      return listener.onClosed();
    }
    const present = new Map(found);
    for (const address of ears.keys()) {
      if (!present.has(address)) drop(address);
    }
    for (const [address, node] of present) {
      if (ears.has(address)) continue;
      if (isFirst) opening.add(address);
      const ear = listenAt(node, {
        onMessage: listener.onMessage,
        onReady() {
          opening.delete(address);
          tellReady();
        },
        onFail: (reason) => isOpen && listener.onFail(reason),
        // If it stays away, it is told so, or is noticed by who is passed over.
        onCut() {},
        onClosed: listener.onClosed,
        // Looked for again in a while, if it is still a master then.
        onGone: () => drop(address),
      });
      if (isOpen) ears.set(address, ear);
    }
    if (!isOpen) return;
    isFirst &&= ears.size === 0;
    const inMs = ears.size > 0 ? LOOK_MS : LOOK_SOON_MS;
    callOff = systemClock.setTimer(look, inMs);
  };
  const close = () => {
    isOpen = false;
    callOff();
    for (const hangUp of ears.values()) hangUp();
    ears.clear();
  };
  look();
  return close;
}

/** One client, spoken to in one way. Every reply is passed on as it came. */
export interface Port {
  /** `SET key value EX|PX amount NX`. */
  setIfAbsent(
    key: string,
    value: string,
    unit: "EX" | "PX",
    amount: number,
  ): Promise<unknown>;
  /** `EVAL lua`, with every key that the script touches in `keys`. */
  eval(
    lua: string,
    keys: readonly string[],
    args: readonly string[],
  ): Promise<unknown>;
  /** `EVALSHA sha`; absent where the client can't, so that EVAL is used. */
  evalSha?(
    sha: string,
    keys: readonly string[],
    args: readonly string[],
  ): Promise<unknown>;
  /**
   * `GET key`; present where the client is a mere double, whose EVAL can't be
   * trusted with more than the release.
   */
  get?(key: string): Promise<unknown>;
  /**
   * Something that is another after each reconnect, at which the client sends
   * again, by itself, what was left without an answer. Absent where it rejects
   * instead, or where we can't see: then "not yours" is taken at its word.
   */
  connection?(): unknown;
  /**
   * The string keys that match a glob pattern, of every master, by and by; one
   * may come more than once. Absent where the client can't.
   */
  scan?(pattern: string): AsyncIterable<readonly string[]>;
  /**
   * `EVAL lua` and `WAIT replicas ms` behind it, on one connection: what is
   * waited for is what that connection has written. The replies of both; rejects
   * where it can't be known that it was one. Absent where the client can't.
   */
  evalAndWait?(
    lua: string,
    keys: readonly string[],
    args: readonly string[],
    replicas: number,
    ms: number,
  ): Promise<readonly [unknown, unknown]>;
  /** Whether there is more than one server, each with slots of its own. */
  readonly isCluster?: boolean;
  /** What the client of a Cluster puts before each key, which counts for its
   * slot. */
  readonly keyPrefix?: string | undefined;
  /** Whether the client was closed for good by whoever owns it. */
  isClosed?(): boolean;
  /**
   * Listens on a channel, by a connection of its own that comes back by itself
   * and keeps no process alive. Absent where the client can't.
   *
   * @returns A function that closes it.
   */
  listen?(channel: string, listener: Listener): () => void;
}
