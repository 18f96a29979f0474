/**
 * Redis over HTTP as Upstash has it, in front of a real server: what its client
 * speaks to. One command as the body of a POST, several to `/pipeline` and
 * `/multi-exec`, all of them arrays of words.
 */
import { Buffer } from "node:buffer";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";

import { Onlooker, type Reply } from "./resp.ts";

/** A running server. */
export interface UpstashServer extends AsyncDisposable {
  readonly url: string;
  /** What clients must send along. */
  readonly token: string;
  /** Reaches the server behind it, or rejects. */
  connect(): Promise<unknown>;
  /** Breaks every connection and frees the port. */
  stop(): Promise<void>;
}

/** The words of one command. */
type Words = (string | number)[];

/** What is answered: a result, or the words of an error. */
type Answer = { result: unknown } | { error: string };

const TOKEN = "a-token";

/** Starts one in front of the Redis server at `url`. */
export async function startUpstash(url: string): Promise<UpstashServer> {
  const { port, password } = new URL(url);
  const redis = new Onlooker(Number(port), password || undefined);

  /** Rejects only where there is no answer. */
  const ask = (words: Words): Promise<Reply> =>
    redis.ask(...words).catch((error) => {
      if (/^[A-Z]{2,} /.test(error.message)) return error;
      throw error;
    }) as Promise<Reply>;

  async function answerTo(path: string, body: unknown): Promise<unknown> {
    switch (path) {
      case "/":
        return toAnswer(await ask(body as Words));
      case "/pipeline":
        return (await Promise.all((body as Words[]).map(ask))).map(toAnswer);
      case "/multi-exec": {
        const all = [["MULTI"], ...body as Words[], ["EXEC"]];
        const reply = (await Promise.all(all.map(ask))).at(-1)!;
        return Array.isArray(reply) ? reply.map(toAnswer) : toAnswer(reply);
      }
      default:
        return { error: `ERR no such path: ${path}` };
    }
  }

  const server = createServer(async (request, response) => {
    try {
      const body = JSON.parse(await textOf(request));
      const { authorization, "upstash-encoding": encoding } = request.headers;
      const answer = authorization === `Bearer ${TOKEN}`
        ? await answerTo(request.url!, body)
        : { error: "WRONGPASS invalid or missing auth token" };
      const isBad = Object.hasOwn(answer as object, "error");
      response.statusCode = isBad ? 400 : 200;
      response.setHeader("Content-Type", "application/json");
      response.end(
        JSON.stringify(encoding === "base64" ? inBase64(answer) : answer),
      );
    } catch {
      // No answer from there is none from here.
      request.socket.destroy();
    }
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const stop = () => {
    redis.close();
    server.closeAllConnections();
    return new Promise<void>((done) => server.close(() => done()));
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    token: TOKEN,
    connect: () => redis.ask("PING"),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

async function textOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

function toAnswer(reply: Reply): Answer {
  return reply instanceof Error ? { error: reply.message } : { result: reply };
}

/** All text but errors and the plain "OK". */
function inBase64(answer: unknown): unknown {
  if (Array.isArray(answer)) return answer.map(inBase64);
  const { result } = answer as { result?: unknown };
  if (result === undefined) return answer;
  const encoded = (value: unknown): unknown =>
    typeof value === "string"
      ? Buffer.from(value).toString("base64")
      : Array.isArray(value)
      ? value.map(encoded)
      : value;
  return { result: result === "OK" ? result : encoded(result) };
}
