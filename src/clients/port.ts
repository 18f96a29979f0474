/** What Redis must do for us, in the fewest words; each client speaks them. */

/** How many keys a SCAN looks at before it lets others go first. */
export const SCAN_COUNT = 500;

/** Who listens on a channel. */
export interface Listener {
  /** A message came. */
  onMessage(message: string): void;
  /**
   * Heard from now on is all that is published; before, some may be missed.
   * Also called when all keys were deleted at once, where the server tells.
   */
  onReady(): void;
  /** Nothing is heard, and nothing will be. */
  onFail(reason: unknown): void;
  /** The connection was closed, as the client was by whoever owns it. */
  onClosed(): void;
}

/**
 * The server is asked to tell of FLUSHALL and FLUSHDB: those who track keys are
 * told that all are gone (`CLIENT TRACKING`), also where they track only such
 * with a prefix that no key has. In the old protocol it comes as a message on
 * this channel.
 */
export const FLUSHED = "__redis__:invalidate";

/** The arguments of CLIENT for that, for the connection with this id. */
export function tracking(id: unknown): string[] {
  const prefix = "lock:inbox:no-key-is-called-so";
  return ["TRACKING", "ON", "REDIRECT", String(id), "BCAST", "PREFIX", prefix];
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
