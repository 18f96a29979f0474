/** Where a process hears what a server has to say to it: for `redis.ts`. */

import type { Port } from "../clients/port.ts";
import { systemClock } from "../core/clock.ts";
import { drawOwner } from "../core/keys.ts";
import { channelOf } from "./scripts.ts";

/**
 * How often to look, and after how long, whether there is a connection to listen
 * by, before one asks instead. In steps: a program that is too busy to hear of
 * it in one has to come by some others.
 */
const LISTEN_TIMES = 10;
const LISTEN_MS = 8;

/** Of the name of an inbox: hexadecimal digits, 64 bits. */
const INBOX_LENGTH = 16;

/** Whose inbox it is. */
export interface Addressee {
  onMessage(message: string): void;
  /** Messages may have been missed. */
  onGap(): void;
  /** Nothing is heard, and nothing will be unless `onGap` is called. */
  onDeaf(reason: unknown): void;
  /** The client was closed. */
  onClosed(): void;
}

/** A channel of one's own on the server behind `port`, if it can be heard. */
export class Inbox {
  /** By what one is called; `undefined` while nobody listens. */
  name: string | undefined;
  readonly #port: Port;
  #addressee: Addressee | undefined;
  #hangUp: (() => void) | undefined;
  /** Listens anew by the same name. */
  #listen = () => {};
  /** It is not known whether it still listens. */
  #onCut = () => {};
  #callOffCut: (() => void) | undefined;

  constructor(port: Port) {
    this.#port = port;
  }

  /** Whether it listens, or tries to. */
  get isOpen(): boolean {
    return this.#hangUp !== undefined;
  }

  /** Listens from now on; whether it can be heard, or will not for a while. */
  open(addressee: Addressee): Promise<boolean> {
    this.#addressee = addressee;
    const { listen } = this.#port;
    // The star: see handOver in scripts.ts.
    const name = drawOwner().slice(0, INBOX_LENGTH) +
      (this.#port.isCluster ? "*" : "");
    return new Promise((resolve) => {
      let isWaitedFor = true;
      let callOff = () => {};
      const answer = (canHear: boolean) => {
        callOff();
        isWaitedFor = false;
        resolve(canHear);
      };
      const onFail = (reason: unknown) => {
        if (this.#addressee !== addressee) return;
        this.#silence();
        answer(false);
        addressee.onDeaf(reason);
      };
      if (listen === undefined) {
        return onFail(new Error("The client can't SUBSCRIBE"));
      }
      // Without an answer one waits all the same, and asks.
      callOff = inSteps(() => answer(false));
      const onReady = () => {
        if (this.#addressee !== addressee) return;
        this.#callOffCut?.();
        this.#callOffCut = undefined;
        this.name = name;
        if (isWaitedFor) answer(true);
        else addressee.onGap();
      };
      const onMessage = (message: string) => {
        if (this.#addressee === addressee) addressee.onMessage(message);
      };
      const onClosed = () => {
        if (this.#addressee !== addressee) return;
        this.#silence();
        answer(false);
        addressee.onClosed();
      };
      const onCut = this.#onCut = () => {
        if (this.#addressee !== addressee || this.name === undefined) return;
        // Most are back at once. Called by a name that nobody listens by one
        // would be passed over, each time.
        this.#callOffCut ??= inSteps(() => {
          this.#callOffCut = undefined;
          this.name = undefined;
          addressee.onDeaf(new Error("The connection to listen by is lost"));
        });
      };
      this.#listen = () => {
        try {
          const listener = { onMessage, onReady, onFail, onCut, onClosed };
          this.#hangUp = listen(channelOf(name), listener);
        } catch (reason) {
          onFail(reason);
        }
      };
      this.#listen();
    });
  }

  /** Listens by another connection: nobody knows whether this one is alive. */
  again(): void {
    this.#hangUp?.();
    this.#onCut();
    this.#listen();
  }

  close(): void {
    this.#addressee = undefined;
    this.#silence();
  }

  #silence(): void {
    this.name = undefined;
    this.#callOffCut?.();
    this.#callOffCut = undefined;
    this.#hangUp?.();
    this.#hangUp = undefined;
  }
}

/** Calls `late` when it is time to ask instead; gives what calls that off. */
function inSteps(late: () => void): () => void {
  let times = 0;
  let callOff = () => {};
  const look = () => {
    if (++times > LISTEN_TIMES) late();
    else callOff = systemClock.setTimer(look, LISTEN_MS);
  };
  look();
  return () => callOff();
}
