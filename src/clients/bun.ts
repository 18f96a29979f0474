/** The client that Bun has built in. */

import { systemClock } from "../core/clock.ts";
import { command } from "./command.ts";
import { backAfterMs, type Listener, type Port, tracking } from "./port.ts";

/** What is called of Bun's `RedisClient`. */
export interface BunClient {
  /** Sends one command. */
  send(command: string, args: string[]): Promise<unknown>;
  /** Whether it is connected. */
  readonly connected: boolean;
  /** Another like it, with a connection of its own. */
  duplicate(): Promise<unknown>;
}

/** A connection that listens. */
interface Ear extends BunClient {
  onconnect: (() => void) | null;
  onclose: ((reason: unknown) => void) | null;
  connect(): Promise<unknown>;
  subscribe(
    channel: string,
    listener: (message: string) => void,
  ): Promise<unknown>;
  close(): void;
}

/** Speaks through one of Bun's clients. It rejects what was left without an
 * answer. */
export function bun(client: BunClient): Port {
  let hasFailed = false;
  return {
    ...command(([name, ...args]) =>
      client.send(name, args).catch((error) => {
        // What it says once it was closed, or has given up; not in between.
        hasFailed = /has failed/.test(String(error?.message));
        throw error;
      })
    ),
    // It shows no more than whether it is connected.
    isClosed: () => hasFailed && !client.connected,
    listen: (channel, listener) => listen(client, channel, listener),
  };
}

function listen(
  client: BunClient,
  channel: string,
  listener: Listener,
): () => void {
  let isOpen = true;
  let isWanted = false;
  let ear: Ear | undefined;
  /** Of several subscriptions of one connection only the last is heard. */
  let last = 0;
  /** How often in a row it was to come back. */
  let times = 0;
  void listenAnew();
  return () => {
    isOpen = false;
    hangUp();
  };

  async function listenAnew(): Promise<void> {
    try {
      const twin = await client.duplicate() as Ear;
      if (!isOpen) return twin.close();
      ear = twin;
      // A new connection knows of no subscription, and nobody is told.
      twin.onconnect = () => void subscribe(twin);
      // It has given up.
      twin.onclose = again;
      if (twin.connected) await subscribe(twin);
      else await twin.connect();
    } catch {
      again();
    }
  }

  async function subscribe(twin: Ear): Promise<void> {
    const mine = ++last;
    try {
      const id = await twin.send("CLIENT", ["ID"]);
      // Told of FLUSHALL, Bun's client does not know what that means, and drops
      // the connection: which is as good, as we listen and ask anew.
      await twin.send("CLIENT", tracking(id, channel));
    } catch {
      // Forbidden, or unknown there: then we learn of it a second later.
    }
    try {
      await twin.subscribe(channel, (message) => {
        if (mine === last) listener.onMessage(message);
      });
      if (!isOpen || mine !== last) return;
      times = 0;
      listener.onReady();
    } catch (reason) {
      // Cut off meanwhile, it will be connected again.
      if (isOpen && twin.connected) listener.onFail(reason);
    }
  }

  /** Told of it twice, by an event and by a rejection, we listen once. */
  function again(): void {
    hangUp();
    if (!isOpen || isWanted) return;
    isWanted = true;
    listener.onCut();
    systemClock.setTimer(() => {
      isWanted = false;
      if (isOpen) void listenAnew();
    }, backAfterMs(++times));
  }

  function hangUp(): void {
    if (ear === undefined) return;
    ear.onconnect = ear.onclose = null;
    ear.close();
    ear = undefined;
  }
}
