/**
 * A server that only shakes hands and otherwise says what it is told to: for
 * the replies that a real one can hardly be brought to give.
 */
import { Buffer } from "node:buffer";
import { createServer, type Socket } from "node:net";

import { parseReply } from "./resp.ts";

/** A running fake. */
export interface FakeRedis extends AsyncDisposable {
  readonly url: string;
  /** What clients have asked besides shaking hands, one list of words each. */
  readonly requests: readonly (readonly string[])[];
  /** Hangs up on everybody and frees the port. */
  stop(): Promise<void>;
}

/** What clients say before they are ready, and what they want to hear. */
const MANNERS: Record<string, (words: string[]) => string> = {
  HELLO: (words) =>
    `${words[1] === "3" ? "%1" : "*2"}\r\n$5\r\nproto\r\n:${words[1]}\r\n`,
  INFO: () => {
    const info = "redis_version:7.0.15\r\nloading:0\r\nrole:master\r\n";
    return `$${info.length}\r\n${info}\r\n`;
  },
  PING: () => "+PONG\r\n",
  CLIENT: () => "+OK\r\n",
  SELECT: () => "+OK\r\n",
};

/**
 * Starts one.
 *
 * @param answer What it says to a request, as it goes over the wire, without
 * the last line's end: `-LOADING …`, `+OK`, `$-1`.
 */
export async function startFakeRedis(
  answer: (words: string[]) => string,
): Promise<FakeRedis> {
  const requests: string[][] = [];
  const sockets = new Set<Socket>();

  const listener = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {});
    socket.setNoDelay(true);
    let pending: Buffer = Buffer.alloc(0);
    socket.on("data", (chunk: Buffer) => {
      pending = Buffer.concat([pending, chunk]);
      for (let next; (next = parseReply(pending));) {
        pending = pending.subarray(next.end);
        const words = [next.value].flat().map(String);
        const polite = MANNERS[words[0].toUpperCase()];
        if (!polite) requests.push(words);
        socket.write(polite?.(words) ?? `${answer(words)}\r\n`);
      }
    });
  });
  const port = await new Promise<number>((resolve, reject) => {
    listener.on("error", reject);
    listener.listen(0, "127.0.0.1", () => {
      const address = listener.address();
      resolve(typeof address === "object" && address ? address.port : 0);
    });
  });

  const fake: FakeRedis = {
    url: `redis://127.0.0.1:${port}`,
    requests,
    stop() {
      const closed = new Promise<void>((done) => listener.close(() => done()));
      for (const socket of sockets) socket.destroy();
      return closed;
    },
    [Symbol.asyncDispose]: () => fake.stop(),
  };
  return fake;
}
