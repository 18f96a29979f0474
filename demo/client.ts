/** The demo's connections: what breaks is told at once, and nothing resent. */
import { Redis } from "ioredis";

/** A client that is connected; the error says why not, without the URL. */
export async function openClient(url: string): Promise<Redis> {
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: 5_000,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  });
  let last: { code?: string; message?: string } = {};
  redis.on("error", (error) => last = error);
  try {
    await redis.connect();
    await redis.ping();
    return redis;
  } catch (error) {
    close(redis);
    // Of what the server said the first word: the rest may quote what was sent.
    const { code = last.code, message } = error as typeof last;
    const word = /^[A-Z]{2,}\b/.exec(last.message ?? message ?? "")?.[0];
    throw new Error(
      `The server cannot be reached (${code ?? word ?? "no answer"})`,
    );
  }
}

/** Closes it at once; one that has ended already would wait 2 s for its socket. */
export function close(redis: Redis): void {
  if (redis.status !== "end") redis.disconnect();
}

/** Writes into the book; should nobody be left to delete it, it expires. */
export async function write(
  redis: Redis,
  book: string,
  line: string,
): Promise<void> {
  await Promise.all([redis.rpush(book, line), redis.expire(book, 600)]);
}
