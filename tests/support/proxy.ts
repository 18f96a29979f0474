/** A wire that can be cut: a TCP proxy on 127.0.0.1 that fails on command. */
import { Buffer } from "node:buffer";
import { createConnection, createServer, type Socket } from "node:net";

import { parseReply } from "./resp.ts";

/** Picks a request: by text in it, by pattern, or by its words. */
export type RequestMatcher =
  | string
  | RegExp
  | ((request: readonly string[]) => boolean);

/** A running proxy. */
export interface Proxy extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly url: string;
  /** All that clients have sent, as text. */
  readonly seen: string;
  /** The same, one list of words per request. */
  readonly requests: readonly (readonly string[])[];
  /** How many connections are up. */
  readonly connections: number;
  /**
   * The reply lost after the write, once: the next request that matches reaches
   * the server and is carried out there, its reply does not come back, the
   * connection breaks. Resolves when it has happened.
   */
  dropRepliesAfter(matcher: RequestMatcher): Promise<void>;
  /** Breaks every connection that is up now. */
  cut(): void;
  /** Whether new connections are broken at once. */
  refuse(on: boolean): void;
  /** A half-open network: while on, nothing passes and nothing breaks. */
  hold(on: boolean): void;
  /** The same for the connections that are up now: only new ones work. */
  freeze(): void;
  /** Throws away what a server says next; resolves when it has happened. */
  loseNext(): Promise<void>;
  /** How long the server's bytes are kept back. */
  delayReplies(ms: number): void;
  /** Breaks everything and frees the port. */
  stop(): Promise<void>;
}

interface Link {
  readonly client: Socket;
  readonly server: Socket;
}

/** Starts a proxy in front of a port of 127.0.0.1. */
export async function startProxy(targetPort: number): Promise<Proxy> {
  const links = new Set<Link>();
  const requests: string[][] = [];
  const armed: { matcher: RequestMatcher; happened: () => void }[] = [];
  let seen = "";
  let refusing = false;
  let holding = false;
  let lost: (() => void) | undefined;
  let delayMs = 0;

  function accept(client: Socket): void {
    client.on("error", () => {});
    if (refusing) return void client.destroy();
    const server = createConnection({ host: "127.0.0.1", port: targetPort });
    server.on("error", () => {});
    server.setNoDelay(true);
    client.setNoDelay(true);
    const link = { client, server };
    links.add(link);
    if (holding) client.pause();

    let dropping: (() => void) | undefined;
    let pending: Buffer = Buffer.alloc(0);
    client.on("data", (chunk: Buffer) => {
      seen += chunk.toString("utf8");
      if (dropping) return;
      pending = Buffer.concat([pending, chunk]);
      // Whole requests only: half of one, passed on and then broken off, would
      // be a request lost, not a reply.
      for (let next; (next = takeRequest(pending));) {
        server.write(pending.subarray(0, next.end));
        pending = pending.subarray(next.end);
        requests.push(next.words);
        dropping = disarm(next.words);
        if (!dropping) continue;
        // Half closed, the server still carries out what it has been sent and
        // only then hangs up: that is when we know that it was done.
        server.end();
        return;
      }
    });

    let last = Promise.resolve();
    server.on("data", (chunk: Buffer) => {
      if (dropping) return;
      if (lost) {
        lost();
        lost = undefined;
        return;
      }
      const due = performance.now() + delayMs;
      // In a row, or a shorter delay set later would overtake.
      last = last.then(async () => {
        const ms = due - performance.now();
        if (ms > 0) await new Promise((done) => setTimeout(done, ms));
        if (!client.destroyed) client.write(chunk);
      });
    });

    // Either side's end is the other's, after what is still under way.
    client.on("end", () => server.end());
    client.on("close", () => {
      links.delete(link);
      server.destroy();
    });
    server.on("close", () => {
      links.delete(link);
      if (!dropping) return void last.then(() => client.end());
      client.destroy();
      dropping();
    });
  }

  /** Whether this request is the one that was waited for: then what to call. */
  function disarm(words: readonly string[]): (() => void) | undefined {
    const index = armed.findIndex(({ matcher }) => matches(matcher, words));
    return index < 0 ? undefined : armed.splice(index, 1)[0].happened;
  }

  function cut(): void {
    for (const { client, server } of links) {
      client.destroy();
      server.destroy();
    }
    links.clear();
  }

  const listener = createServer(accept);
  const port = await new Promise<number>((resolve, reject) => {
    listener.on("error", reject);
    listener.listen(0, "127.0.0.1", () => {
      const address = listener.address();
      resolve(typeof address === "object" && address ? address.port : 0);
    });
  });

  const proxy: Proxy = {
    host: "127.0.0.1",
    port,
    url: `redis://127.0.0.1:${port}`,
    get seen() {
      return seen;
    },
    requests,
    get connections() {
      return links.size;
    },
    dropRepliesAfter: (matcher) =>
      new Promise((happened) => armed.push({ matcher, happened })),
    cut,
    refuse: (on) => void (refusing = on),
    freeze() {
      proxy.hold(true);
      holding = false;
    },
    hold(on) {
      holding = on;
      for (const { client, server } of links) {
        for (const socket of [client, server]) {
          on ? socket.pause() : socket.resume();
        }
      }
    },
    loseNext: () => new Promise((happened) => lost = happened),
    delayReplies: (ms) => void (delayMs = ms),
    stop() {
      const closed = new Promise<void>((done) => listener.close(() => done()));
      cut();
      return closed;
    },
    [Symbol.asyncDispose]: () => proxy.stop(),
  };
  return proxy;
}

/** The first request of `bytes`; what is not RESP counts as one as it comes. */
function takeRequest(
  bytes: Buffer,
): { words: string[]; end: number } | undefined {
  if (bytes.length === 0) return undefined;
  if (bytes[0] !== "*".charCodeAt(0)) {
    return { words: [bytes.toString("utf8")], end: bytes.length };
  }
  const parsed = parseReply(bytes);
  return parsed &&
    { words: [parsed.value].flat().map(String), end: parsed.end };
}

function matches(matcher: RequestMatcher, words: readonly string[]): boolean {
  if (typeof matcher === "function") return matcher(words);
  const text = words.join(" ");
  return typeof matcher === "string"
    ? text.includes(matcher)
    : matcher.test(text);
}
