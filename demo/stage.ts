/** Where the demo plays: on a real server, with processes; or else in here. */
import process from "node:process";

import { acquireLock, lockKey } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { runtime, type Script, spawnScript } from "../tests/support/process.ts";
import {
  redisMissing,
  type RedisServer,
  startRedis,
} from "../tests/support/redis_server.ts";
import { type Order, Player, type Report } from "./turns.ts";

/** One who takes turns. */
export interface Actor {
  readonly name: string;
  send(order: Order): void;
  /** SIGKILL, or what comes closest. */
  kill(): void;
  /** Resolves once it is really gone. */
  readonly gone: Promise<unknown>;
}

/** What the director listens with. */
export interface Ears {
  hear(name: string, report: Report): void;
  /** Somebody could not go on. */
  fail(error: Error): void;
}

/** A place to play. */
export interface Stage {
  readonly key: string;
  /** What it is, in lines to be printed. */
  readonly about: readonly string[];
  /** How one dies here, in the words of the log. */
  readonly death: string;
  /** The witness: who entered and left, in the order of the server. */
  readonly witness: string;
  book(): Promise<string[]>;
  write(line: string): Promise<unknown>;
  /** Who stands in line, in its order; not where there is no server to ask. */
  line?(): Promise<string[]>;
  /** An actor that waits to be told what to do. */
  cast(name: string, ears: Ears): Promise<Actor>;
  /** What is still locked; the book is gone after this. */
  leftovers(): Promise<string[]>;
  close(): Promise<void>;
}

/** The best stage that is to be had. */
export async function openStage(): Promise<Stage> {
  // Its own key each time: two demos on one server leave each other alone.
  const key = lockKey("demo", Math.random().toString(36).slice(2, 8));
  const url = process.env.REDIS_URL;
  if (url) return await onServer(key, url, "the one that REDIS_URL names");
  const missing = redisMissing();
  if (missing) return inMemory(key, missing);
  let server: RedisServer;
  try {
    await import("./client.ts");
  } catch {
    return inMemory(key, "ioredis cannot be loaded from npm");
  }
  try {
    server = await startRedis();
  } catch {
    return inMemory(key, "the one on PATH does not start");
  }
  const where = `started for this on port ${server.port}`;
  try {
    return await onServer(key, server.url, where, () => server.stop());
  } catch (error) {
    await server.stop();
    throw error;
  }
}

async function onServer(
  key: string,
  url: string,
  where: string,
  stop?: () => Promise<void>,
): Promise<Stage> {
  // Only here: without a server the demo needs nothing from npm.
  const { close, openClient, write } = await import("./client.ts");
  const redis = await openClient(url);
  const book = `${key}:book`;
  const line = `{${key}}:line`;
  const info = await redis.info("server").catch(() => "");
  // Valkey names the Redis that it stands in for as well.
  const valkey = /^valkey_version:(\S+)/m.exec(info)?.[1];
  const version = valkey ?? /^redis_version:(\S+)/m.exec(info)?.[1] ?? "";
  const server = `${valkey ? "Valkey" : "Redis"} ${version}`;
  const processes = { deno: "Deno", bun: "Bun", node: "Node" }[runtime];
  const scripts: Script[] = [];

  return {
    key,
    about: [
      `Four ${processes} processes take turns on one lock.`,
      `Server: ${server.trim()}, ${where}.`,
    ],
    death: "SIGKILL",
    witness: "the book that the server kept",
    book: () => redis.lrange(book, 0, -1),
    write: (text) => write(redis, book, text),
    async line() {
      const members = await redis.zrange(line, 0, "-1");
      // Each ends with the label of who waits.
      return members.map((member) => /[^:]*$/.exec(member)![0]);
    },
    async cast(name, { hear, fail }) {
      const file = new URL("./worker.ts", import.meta.url);
      // The URL goes by the environment: a command line is for all to read.
      const script = spawnScript(file, [name, key, book], { REDIS_URL: url });
      scripts.push(script);
      await script.next("ready");
      let isToEnd = false;
      const listen = async () => {
        for (;;) {
          const said = await script.next(undefined, 60_000);
          if (said.type === "failed") {
            fail(new Error(`${name}: ${said.message}`));
          } else hear(name, said as unknown as Report);
        }
      };
      // It rejects when there is nobody left to listen to.
      listen().catch(() => {
        if (!isToEnd) fail(new Error(`${name} ended by itself`));
      });
      return {
        name,
        send(order) {
          if (order === "stop") isToEnd = true;
          script.send(order);
        },
        kill() {
          isToEnd = true;
          script.kill();
        },
        gone: script.exited,
      };
    },
    async leftovers() {
      await redis.del(book);
      const keys = [key, line, `{${key}}:fence`];
      const found = await Promise.all(keys.map((key) => redis.exists(key)));
      return keys.filter((_, i) => found[i]);
    },
    async close() {
      // At the end they are gone already; broken off, they get a second in
      // which to give back what they hold.
      for (const script of scripts) script.send("stop");
      const limit = setTimeout(() => {
        for (const script of scripts) script.kill();
      }, 1_000);
      await Promise.all(scripts.map((script) => script.exited));
      clearTimeout(limit);
      // Nobody is left who could hold it, or wait. The server may be gone as
      // well: Ctrl-C in a terminal goes to one that we started, too.
      await Promise.all([key, line, book].map((each) => redis.del(each)))
        .catch(() => {});
      close(redis);
      await stop?.();
    },
  };
}

function inMemory(key: string, why: string): Stage {
  const on = memory();
  const book: string[] = [];
  const write = (line: string) => Promise.resolve(book.push(line));
  const players: Player[] = [];
  return {
    key,
    about: [
      "Four tasks of this one process take turns on one lock, in memory().",
      `On no server: ${why.replace(/ \(.*/, "")}.`,
      "So there is no process to kill. A task that plays dead never releases what",
      "it has; one in line gives up by an AbortSignal, which the dead do not do.",
    ],
    death: "plays dead",
    witness: "the book that was kept beside them",
    book: () => Promise.resolve(book),
    write,
    cast(name, { hear, fail }) {
      const say = (report: Report) => hear(name, report);
      let end = () => {};
      const gone = new Promise<void>((resolve) => end = resolve);
      const player = new Player({ on, key, name, write, say });
      players.push(player);
      return Promise.resolve({
        name,
        send(order) {
          const done = player.obey(order).catch(fail);
          if (order === "stop") done.then(end);
        },
        kill() {
          player.kill();
          end();
        },
        gone,
      });
    },
    async leftovers() {
      const lock = await acquireLock(on, key, { throwOnFail: false });
      await lock?.release();
      return lock ? [] : [key];
    },
    close() {
      // Not waited for: the dead would not come.
      for (const player of players) player.obey("stop").catch(() => {});
      return Promise.resolve();
    },
  };
}
