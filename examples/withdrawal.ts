/**
 * Money leaves an account one withdrawal at a time, whichever of the servers
 * is asked: read the balance, look whether it will do, write the new one, and
 * nobody else of this user in between.
 *
 *     REDIS_URL=redis://… deno run -A examples/withdrawal.ts
 *     curl -i -X POST "http://localhost:8080/withdraw?user=ann&amount=30"
 *
 * Without REDIS_URL it locks in memory(): right for one process, and no more.
 */
import {
  LockBackendError,
  lockKey,
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { createServer, type RequestListener } from "node:http";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Where the money is. It knows nothing of locks, nor of comparing and setting. */
export interface Bank {
  balance(user: string): Promise<number>;
  setBalance(user: string, balance: number, signal: AbortSignal): Promise<void>;
}

/** What a request comes to. */
interface Answer {
  status: number;
  body: Record<string, unknown>;
  /** When to come back, in seconds. */
  retryAfter?: number;
}

/** Answers `POST /withdraw?user=…&amount=…`. */
export function withdrawals(on: LockTarget, bank: Bank): RequestListener {
  return async (request, response) => {
    const url = new URL(request.url ?? "/", "http://localhost");
    const user = url.searchParams.get("user") ?? "";
    const amount = Number(url.searchParams.get("amount"));
    const { status, body, retryAfter } =
      request.method !== "POST" || url.pathname !== "/withdraw"
        ? { status: 404, body: { error: "POST /withdraw?user=…&amount=…" } }
        : user === "" || !(Number.isSafeInteger(amount) && amount > 0)
        ? { status: 400, body: { error: "Who, and how much?" } }
        : await withdraw(on, bank, user, amount).catch(explain);
    if (retryAfter !== undefined) response.setHeader("Retry-After", retryAfter);
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify(body) + "\n");
  };
}

function withdraw(
  on: LockTarget,
  bank: Bank,
  user: string,
  amount: number,
): Promise<Answer> {
  return withLock<Answer>(on, lockKey("withdraw", user), async (lock) => {
    const balance = await bank.balance(user);
    if (balance < amount) {
      return { status: 409, body: { error: "Not enough money", balance } };
    }
    // Had reading taken longer than the ttl, another server could have read
    // the same balance. The signal ends a write that comes to hang.
    lock.assertHeld();
    await bank.setBalance(user, balance - amount, lock.signal);
    return { status: 200, body: { balance: balance - amount } };
  }, { ttl: 5, errorMessage: "Another withdrawal is under way" });
}

/** Taken, unreachable, lost: three kinds of bad news, and three answers. */
function explain(error: unknown): Answer {
  if (error instanceof LockNotAcquiredError) {
    // An upper bound: most holds end long before.
    const retryAfter = Math.max(1, Math.ceil((error.retryAfterMs ?? 0) / 1000));
    return { status: 423, body: { error: error.message }, retryAfter };
  }
  if (error instanceof LockBackendError) {
    // We cannot know that nobody else is at it, so we don't touch the money.
    const body = { error: "Nothing withdrawn, please try again" };
    return { status: 503, body, retryAfter: 1 };
  }
  if (error instanceof LockLostError) {
    // Before the write or after it; either way a human being should look.
    const body = { error: "Outcome unknown, please check the balance" };
    return { status: 500, body };
  }
  return { status: 500, body: { error: "Something went wrong" } };
}

/** A client for a server that has to answer now: it does not wait for Redis. */
export async function openRedis(url: string): Promise<
  import("ioredis").Redis
> {
  const { Redis } = await import("ioredis");
  const redis = new Redis(url, {
    lazyConnect: true,
    // While the connection is down, fail; the default is to queue for minutes.
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    // A server that is up and does not answer.
    commandTimeout: 2_000,
  });
  // Each failing request tells of it; unheard, ioredis would print it as well.
  redis.on("error", () => {});
  await redis.connect();
  return redis;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const accounts = new Map([["ann", 100], ["bob", 50]]);
  const bank: Bank = {
    balance: (user) => Promise.resolve(accounts.get(user) ?? 0),
    setBalance: (user, balance) =>
      Promise.resolve(void accounts.set(user, balance)),
  };
  const { PORT = "8080", REDIS_URL } = process.env;
  const on = REDIS_URL ? await openRedis(REDIS_URL) : memory();
  const server = createServer(withdrawals(on, bank)).listen(Number(PORT));
  server.once("listening", () => {
    console.log(`POST http://localhost:${PORT}/withdraw?user=ann&amount=30`);
  });
}
