/**
 * Fencing as docs/fencing.md tells it: the SQL is taken out of the page, and
 * the token out of a lock on a real server.
 */
import { assert, assertEquals } from "@std/assert";
import { Redis } from "ioredis";
import { readFileSync } from "node:fs";
import initSqlJs from "sql.js";

import {
  acquireLock,
  type DistributedLock,
  fencedSet,
} from "@dreamer/utils/lock";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";

const PAGE = readFileSync(
  new URL("../../docs/fencing.md", import.meta.url),
  "utf8",
);
const statements = [...PAGE.matchAll(/^```sql\n(.*?)^```$/gms)]
  .map(([, sql]) => sql.trim());

/** The one statement of the page that reads like this. */
function statement(pattern: RegExp): string {
  const found = statements.filter((sql) => pattern.test(sql));
  assertEquals(found.length, 1, `${pattern} in ${statements.join("\n\n")}`);
  return found[0];
}

const CREATE = statement(/^CREATE TABLE/);
const UPDATE = statement(/^UPDATE.*\sSET balance = /s);
const UPSERT = statement(/^INSERT.*\sON CONFLICT/s);
const READ = statement(/^UPDATE.*\sRETURNING /s);

/** As much of sql.js as we use; it brings no types. */
interface Database {
  run(sql: string, values?: Values): void;
  exec(sql: string, values?: Values): { values: unknown[][] }[];
  getRowsModified(): number;
  close(): void;
}
type Values = Record<`:${string}`, string | number>;

const sqlJs = await (initSqlJs as () => Promise<
  { Database: new () => Database }
>)();

/** A database with the table of the page. */
function openBank() {
  const db = new sqlJs.Database();
  db.run(CREATE);
  const values = (token: number, balance?: number): Values => ({
    ":id": "ann",
    ":token": token,
    ...balance === undefined ? {} : { ":balance": balance },
  });
  return {
    /** How many rows the write came to. */
    write(sql: string, token: number, balance: number): number {
      db.run(sql, values(token, balance));
      return db.getRowsModified();
    },
    /** The balance, or undefined for who is late. */
    read(token: number): unknown {
      return db.exec(READ, values(token))[0]?.values[0][0];
    },
    get row(): unknown[] | undefined {
      return db.exec("SELECT balance, fence FROM account")[0]?.values[0];
    },
    [Symbol.dispose]: () => db.close(),
  };
}

let server: RedisServer;
let redis: Redis;
before(async () => {
  server = await startRedis();
  redis = new Redis(server.url);
});
after(async () => {
  redis.disconnect();
  await server.stop();
});

/** A holder that stalls past its lease, and the one that comes after it. */
async function stalledAndNext(key: string) {
  const stalled = await acquireLock(redis, key, { ttl: 0.4, fencing: true });
  let next: DistributedLock | null = null;
  while (next === null) {
    await new Promise((done) => setTimeout(done, 5));
    next = await acquireLock(redis, key, { fencing: true, throwOnFail: false });
  }
  const [a, b] = [stalled.fencingToken!, next.fencingToken!];
  assert(a < b, `${b} was drawn after ${a}`);
  return { a, b, next };
}

test("SQL: the stopped holder's late write is refused, with 0 rows", async () => {
  for (const sql of [UPDATE, UPSERT]) {
    using bank = openBank();
    assertEquals(bank.write(UPSERT, 0, 100), 1);
    const { a, b, next } = await stalledAndNext("lock:account:ann");
    assertEquals(bank.write(sql, b, 70), 1);
    assertEquals(bank.write(sql, a, 40), 0);
    assertEquals(bank.row, [70, b]);
    // The holder itself may write as often as it likes.
    assertEquals(bank.write(sql, b, 60), 1);
    assertEquals(bank.row, [60, b]);
    await next.release();
  }
});

test("SQL: the row that is not there yet is inserted by one, and not again", async () => {
  using bank = openBank();
  const { a, b, next } = await stalledAndNext("lock:account:new");
  assertEquals(bank.write(UPDATE, b, 70), 0, "there is no such row");
  assertEquals(bank.write(UPSERT, b, 70), 1);
  assertEquals(bank.write(UPSERT, a, 40), 0);
  assertEquals(bank.row, [70, b]);
  await next.release();
});

test("SQL: who reads in order to write keeps the late out from then on", async () => {
  using bank = openBank();
  bank.write(UPSERT, 0, 100);
  const { a, b, next } = await stalledAndNext("lock:account:read");
  assertEquals(bank.read(a), 100);
  assertEquals(bank.read(b), 100);
  assertEquals(bank.write(UPDATE, a, 60), 0, "between B's read and B's write");
  assertEquals(bank.read(a), undefined);
  assertEquals(bank.write(UPDATE, b, 70), 1);
  assertEquals(bank.row, [70, b]);
  await next.release();
});

test("fencedSet(): the stopped holder's late write is refused", async () => {
  const { a, b, next } = await stalledAndNext("lock:page:7");
  assertEquals(await fencedSet(redis, "page:7", "by B", b), true);
  assertEquals(await fencedSet(redis, "page:7", "by A", a), false);
  assertEquals(await redis.get("page:7"), "by B");
  assertEquals(await redis.get("{page:7}:seen"), String(b));
  assertEquals(await fencedSet(redis, "page:7", "by B, again", b), true);
  await next.release();
});

test("tokens outgrow a counter that was lost, and a clock that stands", async () => {
  const draw = async () => {
    const lock = await acquireLock(redis, "lock:lost", { fencing: true });
    await lock.release();
    return lock.fencingToken!;
  };
  const first = await draw();
  await redis.del("{lock:lost}:fence");
  const second = await draw();
  assert(first < second, "by the clock");
  // An hour ahead: what a clock that was set back then looks like.
  const ahead = second + 3_600_000_000;
  await redis.set("{lock:lost}:fence", String(ahead));
  assertEquals(await draw(), ahead + 1);
  const days = Number(await redis.pttl("{lock:lost}:fence")) / 86_400_000;
  assert(days > 0.99 && days <= 1, "kept for a day");
});
