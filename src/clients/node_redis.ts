/**
 * node-redis 4, 5 and 6: clients, pools, clusters and sentinels.
 *
 * By its typed commands, which are the same for all kinds and apply the client's
 * own key prefix; or past them where there is nothing to apply, as they take
 * longer than all that we do: see `isPlain`.
 */

import { systemClock } from "../core/clock.ts";
import {
  backAfterMs,
  INVALIDATED,
  listenAtAll,
  type Listener,
  literal,
  type NodeListener,
  pages,
  type Port,
  SCAN_COUNT,
  tracking,
} from "./port.ts";

/** What is called of a node-redis client. */
export interface NodeRedisClient {
  /** Whether somebody opened it and nobody closed it. */
  readonly isOpen: boolean;
  /** `SET`, with its options by name. */
  set(
    key: string,
    value: string,
    options: { NX: true; EX: number } | { NX: true; PX: number },
  ): Promise<unknown>;
  /** `EVAL`. */
  eval(script: string, options: NodeRedisEval): Promise<unknown>;
  /** `EVALSHA`. */
  evalSha(sha: string, options: NodeRedisEval): Promise<unknown>;
}

/** The keys and arguments of a script, as node-redis wants them. */
export interface NodeRedisEval {
  /** The script's KEYS. */
  keys: string[];
  /** The script's ARGV. */
  arguments: string[];
}

/** A chain of commands that is complete. */
interface Chain {
  execAsPipeline(): Promise<unknown[]>;
}

/** Members that not every kind of node-redis client has. */
interface Extras {
  scan?(
    cursor: string,
    options: { MATCH: string; COUNT: number; TYPE: string },
  ): Promise<{ cursor: string | number; keys: string[] }>;
  /** A chain of commands, which all go by one connection or not at all. */
  multi(): {
    eval(script: string, options: NodeRedisEval): {
      /** Absent for a Cluster in version 4. */
      wait?(replicas: number, ms: number): Chain;
      addCommand(firstKey: undefined, words: string[]): Chain;
    };
  };
  readonly masters?: readonly { readonly address: string }[];
  readonly options?: { socket?: object; keyPrefix?: unknown };
  /** Since version 6. */
  readonly _keyPrefix?: unknown;
  sendCommand?(words: string[]): Promise<unknown>;
  destroy?(): void;
  duplicate?(overrides: object): Ear;
  on(event: string, listener: () => void): unknown;
  off(event: string, listener: () => void): unknown;
  nodeClient?(node: unknown): Extras | Promise<Extras>;
}

/** What only a sentinel has: it speaks to whichever server is the primary. */
interface Sentinel extends Omit<Extras, "sendCommand"> {
  getMasterNode(): unknown;
  sendCommand(isReadonly: boolean, words: string[]): Promise<unknown>;
  subscribe(
    channel: string,
    listener: (message: string) => void,
  ): Promise<unknown>;
  unsubscribe(
    channel: string,
    listener: (message: string) => void,
  ): Promise<unknown>;
}

/** A connection that listens. */
interface Ear {
  readonly isReady: boolean;
  readonly isOpen: boolean;
  connect(): Promise<unknown>;
  sendCommand(words: string[]): Promise<unknown>;
  subscribe(
    channel: string,
    listener: (message: string) => void,
  ): Promise<unknown>;
  unsubscribe(): Promise<unknown>;
  disconnect(): unknown;
  destroy?(): void;
  unref(): void;
  on(event: string, listener: (reason: unknown) => void): unknown;
}

/** What the server said to a connection that is not to listen. */
const FORBIDDEN = /^(?:NOPERM|NOAUTH|WRONGPASS) /;

/** Speaks through a node-redis client. */
export function nodeRedis(client: NodeRedisClient): Port {
  const extras = client as unknown as Extras;
  const port = portOf(client, extras);
  if (isSentinel(extras)) return { ...port, ...bySentinel(extras) };
  return isPlain(extras) ? { ...port, ...byWords(extras) } : port;
}

/** A client of which a command is only a list of words. */
type Plain = Extras & Required<Pick<Extras, "sendCommand">>;

/**
 * Whether nothing is lost by sending words: neither the prefix of the keys nor
 * the way through a pool or a Cluster, nor what one client was told that goes by
 * another's connection (`withCommandOptions`), which version 5 forgets then.
 * Version 4 may be told to answer by a callback.
 */
function isPlain(client: Extras): client is Plain {
  return typeof client.sendCommand === "function" &&
    client.duplicate !== undefined && client.destroy !== undefined &&
    client.masters === undefined && client.options?.keyPrefix === undefined &&
    !Object.hasOwn(client, "_commandOptions");
}

/** The commands that are sent for every lock, word by word. */
function byWords(client: Plain): Partial<Port> {
  return {
    setIfAbsent: (key, value, unit, amount) =>
      client.sendCommand(["SET", key, value, unit, String(amount), "NX"]),
    evalSha: (sha, keys, args) =>
      client.sendCommand([
        "EVALSHA",
        sha,
        String(keys.length),
        ...keys,
        ...args,
      ]),
  };
}

function portOf(client: NodeRedisClient, extras: Extras): Port {
  return {
    setIfAbsent: (key, value, unit, amount) =>
      client.set(
        key,
        value,
        unit === "EX" ? { EX: amount, NX: true } : { PX: amount, NX: true },
      ),
    eval: (lua, keys, args) =>
      client.eval(lua, { keys: [...keys], arguments: [...args] }),
    evalSha: (sha, keys, args) =>
      client.evalSha(sha, { keys: [...keys], arguments: [...args] }),
    async evalAndWait(lua, keys, args, replicas, ms) {
      const options = { keys: [...keys], arguments: [...args] };
      const chain = extras.multi().eval(lua, options);
      const words = ["WAIT", String(replicas), String(ms)];
      const whole = chain.wait?.(replicas, ms) ??
        chain.addCommand(undefined, words);
      const [evaluated, waited] = await whole.execAsPipeline();
      for (const reply of [evaluated, waited]) {
        if (reply instanceof Error) throw reply;
      }
      return [evaluated, waited];
    },
    isClosed: () => !client.isOpen,
    isCluster: extras.masters !== undefined,
    keyPrefix: extras.masters !== undefined && extras._keyPrefix !== undefined
      ? String(extras._keyPrefix)
      : undefined,
    // Pools can't be duplicated.
    ...extras.duplicate === undefined ? {} : {
      listen: (channel, listener) => listen(extras, channel, listener),
    },
    async *scan(pattern) {
      // SCAN is not told of the prefix that all other commands get.
      const prefix = String(extras._keyPrefix ?? "");
      const nodes = extras.masters?.map((node) => extras.nodeClient!(node)) ??
        [extras];
      for (const node of nodes) {
        const one = await node;
        const MATCH = literal(prefix) + pattern;
        const options = { MATCH, COUNT: SCAN_COUNT, TYPE: "string" };
        yield* pages(async (from) => {
          const { cursor, keys } = await one.scan!(from, options);
          return [cursor, keys];
        }, prefix);
      }
    },
  };
}

function isSentinel(client: object): client is Sentinel {
  return typeof (client as Partial<Sentinel>).getMasterNode === "function";
}

/** How often each sentinel has lost its connection or found another primary. */
const breaks = new WeakMap<Sentinel, { count: number }>();

/** What is otherwise with a sentinel. */
function bySentinel(client: Sentinel): Partial<Port> {
  return {
    // After a cut it sends again by itself, and shows no connection.
    connection() {
      let seen = breaks.get(client);
      if (seen === undefined) {
        const counted = seen = { count: 0 };
        breaks.set(client, counted);
        const onBreak = () => void counted.count++;
        client.on("client-error", onBreak);
        client.on("topology-change", onBreak);
      }
      return seen.count;
    },
    listen: (channel, listener) => listenBySentinel(client, channel, listener),
    scan(pattern) {
      const prefix = String(client._keyPrefix ?? "");
      return pages((cursor) =>
        // As a command of its own it would go from one replica to the next.
        client.sendCommand(false, [
          ...["SCAN", cursor, "MATCH", literal(prefix) + pattern],
          ...["COUNT", String(SCAN_COUNT), "TYPE", "string"],
        ]) as Promise<[unknown, unknown[]]>, prefix);
    },
  };
}

/**
 * By the connection for messages that it keeps itself: it can't be told to make
 * one to the primary only. It takes that along to the next primary, but forgets
 * what was subscribed where it is cut off on the way: so we subscribe again,
 * which costs nothing where it has not.
 */
function listenBySentinel(
  client: Sentinel,
  channel: string,
  listener: Listener,
): () => void {
  let isOpen = true;
  const onMessage = (message: string) => listener.onMessage(message);
  const close = () => {
    if (!isOpen) return;
    isOpen = false;
    client.off("topology-change", subscribe);
    client.off("end", closed);
    if ((client as unknown as NodeRedisClient).isOpen) {
      client.unsubscribe(channel, onMessage).catch(() => {});
    }
  };
  const closed = () => {
    close();
    listener.onClosed();
  };
  client.on("topology-change", subscribe);
  client.on("end", closed);
  void subscribe();
  return close;

  async function subscribe(): Promise<void> {
    try {
      // We are told of a change before it is there; commands wait until then.
      await client.sendCommand(false, ["PING"]);
      if (!isOpen) return;
      await client.subscribe(channel, onMessage);
      if (isOpen) listener.onReady();
    } catch (reason) {
      if (!isOpen) return;
      if (/^[A-Z]+ /.test((reason as Error).message)) listener.onFail(reason);
      else systemClock.setTimer(subscribe, backAfterMs(1));
    }
  }
}

function listen(
  client: Extras,
  channel: string,
  listener: Listener,
): () => void {
  const hangUp = client.masters === undefined
    ? listenAt(client, channel, { ...listener, onGone() {} }, false)
    : listenAtAll(
      () =>
        (client as unknown as NodeRedisClient).isOpen
          ? client.masters!.map((node) => [node.address, node])
          : undefined,
      (node, listener) =>
        listenAt(client.nodeClient!(node), channel, listener, true),
      listener,
    );
  const close = () => {
    client.off("end", closed);
    hangUp();
  };
  const closed = () => {
    close();
    listener.onClosed();
  };
  client.on("end", closed);
  return close;
}

function listenAt(
  node: Extras | Promise<Extras>,
  channel: string,
  listener: NodeListener,
  isOneOfMany: boolean,
): () => void {
  let isOpen = true;
  let ear: Ear | undefined;
  void open();
  return () => {
    isOpen = false;
    if (ear?.isOpen) end(ear);
  };

  async function open(): Promise<void> {
    try {
      const one = await node;
      if (!isOpen) return;
      ear = one.duplicate!({
        RESP: 2,
        // What version 6 has only with the new protocol.
        clientSideCache: undefined,
        maintNotifications: "disabled",
        socket: {
          ...one.options?.socket,
          reconnectStrategy: (times: number) =>
            isOneOfMany && times > 2
              ? new Error("The node is gone")
              : backAfterMs(times + 1),
          socketTimeout: undefined,
        },
      });
      listenWith(ear);
      await ear.connect();
    } catch (reason) {
      if (!isOpen) return;
      if (isOneOfMany) gone();
      else listener.onFail(reason);
    }
  }

  /** Told of it twice, by an event and by a rejection, we tell it once. */
  function gone(): void {
    isOpen = false;
    listener.onGone();
  }

  function listenWith(ear: Ear): void {
    let isBack = false;
    const subscribe = async () => {
      try {
        // It has subscribed again by itself, and may ask for nothing else then.
        if (isBack) await ear.unsubscribe();
        isBack = true;
        const id = await ear.sendCommand(["CLIENT", "ID"]);
        await ear.sendCommand(["CLIENT", ...tracking(id, channel)]);
        await ear.subscribe(INVALIDATED, listener.onReady);
      } catch {
        // Forbidden, or unknown there: then we learn of it a second later.
      }
      await ear.subscribe(channel, listener.onMessage);
    };
    // Without a listener the process would die of it; it comes back by itself.
    ear.on("error", (reason) => {
      if (!isOpen) return;
      if (FORBIDDEN.test(String((reason as Error | undefined)?.message))) {
        // It subscribes by itself as it comes back, and would try for ever.
        isOpen = false;
        end(ear);
        listener.onFail(reason);
      } else if (!ear.isOpen) gone();
      else listener.onCut();
    });
    ear.on("ready", () => {
      if (!isOpen) return;
      ear.unref();
      subscribe().then(() => listener.onReady(), (reason) => {
        // Cut off meanwhile, it will be ready again.
        if (isOpen && ear.isReady) listener.onFail(reason);
      });
    });
  }
}

function end(ear: Ear): void {
  // Version 4 has only the other one, which rejects if it is not connected.
  if (ear.destroy !== undefined) ear.destroy();
  else Promise.resolve(ear.disconnect()).catch(() => {});
}
