/** The RESP2 protocol, as much as an onlooker and a proxy need of it. */
import { Buffer } from "node:buffer";
import { createConnection, type Socket } from "node:net";

/** A reply: an error reply is an `Error` here, thrown only at the top. */
export type Reply = string | number | null | Error | Reply[];

interface Parsed<T> {
  value: T;
  /** Where the next one begins. */
  end: number;
}

/** Reads one reply at `at`; undefined when not all of it is there yet. */
export function parseReply(bytes: Buffer, at = 0): Parsed<Reply> | undefined {
  const lineEnd = bytes.indexOf("\r\n", at);
  if (lineEnd < 0) return undefined;
  const kind = String.fromCharCode(bytes[at]);
  const line = bytes.toString("utf8", at + 1, lineEnd);
  const next = lineEnd + 2;
  if (kind === "+") return { value: line, end: next };
  if (kind === "-") return { value: new Error(line), end: next };
  if (kind === ":") return { value: Number(line), end: next };
  const size = Number(line);
  if (size < 0) return { value: null, end: next };
  if (kind === "$") {
    if (bytes.length < next + size + 2) return undefined;
    const value = bytes.toString("utf8", next, next + size);
    return { value, end: next + size + 2 };
  }
  if (kind !== "*") throw new Error(`Not RESP2: ${JSON.stringify(kind)}`);
  const value: Reply[] = [];
  let end = next;
  for (let i = 0; i < size; i++) {
    const item = parseReply(bytes, end);
    if (!item) return undefined;
    value.push(item.value);
    end = item.end;
  }
  return { value, end };
}

/** A command as it goes over the wire. */
export function encode(args: readonly (string | number)[]): string {
  const bulks = args.map((arg) => {
    const text = String(arg);
    return `$${Buffer.byteLength(text)}\r\n${text}\r\n`;
  });
  return `*${args.length}\r\n${bulks.join("")}`;
}

/**
 * One connection that asks one thing after another. It stands beside the client
 * libraries, so that a test which uses it trusts none of them.
 */
export class Onlooker {
  #socket: Socket | undefined;
  #bytes: Buffer = Buffer.alloc(0);
  readonly #waiting: {
    resolve: (reply: Reply) => void;
    reject: (error: Error) => void;
  }[] = [];
  readonly #port: number;
  readonly #password: string | undefined;

  constructor(port: number, password?: string) {
    this.#port = port;
    this.#password = password;
  }

  /** Sends a command; an error reply rejects with the server's own words. */
  async ask(...args: (string | number)[]): Promise<unknown> {
    const socket = this.#socket ??= this.#connect();
    const reply = await new Promise<Reply>((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      socket.write(encode(args));
    });
    if (reply instanceof Error) throw reply;
    return reply;
  }

  /** Lets go of the connection; the next question opens another. */
  close(): void {
    this.#drop(new Error("The connection to the server was closed"));
  }

  #connect(): Socket {
    const socket = createConnection({ host: "127.0.0.1", port: this.#port });
    socket.setNoDelay(true);
    const lost = (error: Error) => {
      if (this.#socket === socket) this.#drop(error);
    };
    socket.on("error", lost);
    socket.on("close", () => lost(new Error("The server hung up")));
    socket.on("data", (chunk: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      for (let at; (at = parseReply(this.#bytes));) {
        this.#bytes = this.#bytes.subarray(at.end);
        this.#waiting.shift()?.resolve(at.value);
      }
    });
    if (this.#password !== undefined) {
      // Its reply comes first. A refusal shows in the answer to the question.
      this.#waiting.push({ resolve: () => {}, reject: () => {} });
      socket.write(encode(["AUTH", this.#password]));
    }
    return socket;
  }

  #drop(error: Error): void {
    this.#socket?.destroy();
    this.#socket = undefined;
    this.#bytes = Buffer.alloc(0);
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
