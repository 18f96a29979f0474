/**
 * What goes over the wire, through every client: each command is a round trip
 * for somebody who waits, and load on a server that many share.
 */
import { assert, assertEquals, assertFalse, assertMatch } from "@std/assert";

import { acquireLock, type LockTarget, withLock } from "@dreamer/utils/lock";
import { type ClientKind, clients } from "../support/clients.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test } from "../support/test.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

/** An open client, and what it sends. */
interface Watched {
  on: LockTarget;
  /** A key that nobody else uses. */
  key: string;
  /** What was sent since the last call: one list of words per command. */
  sent(): string[][];
  /** The names only. */
  names(): string[];
}

let serial = 0;

/** One test with a client on a wire of its own; scripts are not known there. */
function sends(
  { name, open }: ClientKind,
  sentence: string,
  fn: (watched: Watched) => Promise<void>,
): void {
  test(`${name}: ${sentence}`, async () => {
    await server.command("SCRIPT", "FLUSH");
    await using proxy = await startProxy(server.port);
    await using it = await open(proxy.url);
    // Not what the clients say among themselves to get ready.
    let seen = proxy.requests.length;
    const sent = () => {
      const news = proxy.requests.slice(seen);
      seen = proxy.requests.length;
      return news.map(([name, ...rest]) => [name.toUpperCase(), ...rest]);
    };
    await fn({
      on: it.client,
      key: `commands:${++serial}`,
      sent,
      names: () => sent().map(([name]) => name),
    });
    assertEquals(await server.command("DBSIZE"), 0, "keys left behind");
  });
}

for (const kind of clients) {
  // Such an object has no EVALSHA, so that its scripts go in full each time.
  const bare = kind.name === "minimal";
  const FIRST_TIME = bare ? ["EVAL"] : ["EVALSHA", "EVAL"];
  const KNOWN = bare ? ["EVAL"] : ["EVALSHA"];

  sends(kind, "a free lock costs one SET", async ({ on, key, sent }) => {
    const cases: [ttl: number | undefined, unit: string, amount: string][] = [
      [10, "EX", "10"],
      [undefined, "EX", "30"],
      [1.5, "PX", "1500"],
      [0.875, "PX", "875"],
      // 1.1 * 1000 is 1100.0000000000002.
      [1.1, "PX", "1100"],
      [1e12, "EX", "1000000000000"],
    ];
    for (const [ttl, unit, amount] of cases) {
      const lock = await acquireLock(on, key, { ttl });
      assertEquals(sent(), [["SET", key, lock.owner, unit, amount, "NX"]]);
      await lock.release();
      sent();
    }
  });

  sends(
    kind,
    "a release costs one script, and its text only once",
    async ({ on, key, sent, names }) => {
      for (const expected of [FIRST_TIME, KNOWN, KNOWN]) {
        const lock = await acquireLock(on, key);
        sent();
        await lock.release();
        assertEquals(names(), expected);
      }
    },
  );

  sends(
    kind,
    "a server that forgot its scripts is told again, once",
    async ({ on, key, sent, names }) => {
      await (await acquireLock(on, key)).release();
      for (const expected of [FIRST_TIME, KNOWN]) {
        const lock = await acquireLock(on, key);
        if (expected === FIRST_TIME) await server.command("SCRIPT", "FLUSH");
        sent();
        assertEquals(await lock.release(), true);
        assertEquals(names(), expected);
      }
    },
  );

  sends(
    kind,
    "a script has its keys in KEYS, and nothing of the call in its text",
    async ({ on, key, sent }) => {
      const lock = await acquireLock(on, key, { label: "a label" });
      sent();
      await lock.extend(20);
      await lock.release();
      for (const [name, script, ...rest] of sent()) {
        // A double is told of the line where it does not look.
        const keys = rest[0] === "2" ? [key, `{${key}}:line`] : [key];
        const args = rest.slice(0, 1 + keys.length + 1);
        assertEquals(args, [String(keys.length), ...keys, lock.owner]);
        if (name === "EVALSHA") assertMatch(script, /^[0-9a-f]{40}$/);
        for (const word of [key, lock.owner, "20"]) {
          assertFalse(script.includes(word), script);
        }
      }
    },
  );

  sends(
    kind,
    "a refusal costs one more command, which changes nothing",
    async ({ on, key, sent }) => {
      const lock = await acquireLock(on, key, { ttl: 10 });
      const expected = bare ? ["GET"] : FIRST_TIME;
      for (const question of [expected, bare ? ["GET"] : KNOWN]) {
        sent();
        const before = await server.command("PEXPIRETIME", key);
        const options = { throwOnFail: false } as const;
        assertEquals(await acquireLock(on, key, options), null);
        const words = sent();
        assertEquals(words.map(([name]) => name), ["SET", ...question]);
        assertEquals(words[0].slice(3), ["EX", "30", "NX"]);
        assertEquals(await server.command("GET", key), lock.owner);
        assertEquals(await server.command("PEXPIRETIME", key), before);
      }
      await lock.release();
    },
  );

  sends(
    kind,
    "an extension costs one script",
    async ({ on, key, sent, names }) => {
      const lock = await acquireLock(on, key);
      for (const expected of [FIRST_TIME, KNOWN]) {
        sent();
        await lock.extend();
        assertEquals(names(), expected);
      }
      await lock.release();
    },
  );

  sends(
    kind,
    "a lock released twice is released once",
    async ({ on, key, sent, names }) => {
      const lock = await acquireLock(on, key);
      sent();
      const both = await Promise.all([lock.release(), lock.release()]);
      assertEquals(both, [true, false]);
      assertEquals(names(), FIRST_TIME);
      assertEquals(await lock.release(), false);
      await lock[Symbol.asyncDispose]();
      assertEquals(sent(), []);
    },
  );

  sends(
    kind,
    "to look at a lock costs nothing",
    async ({ on, key, sent }) => {
      const lock = await acquireLock(on, key);
      sent();
      assert(lock.isAcquired() && lock.remainingMs > 0);
      assertFalse(lock.signal.aborted);
      lock.assertHeld();
      assert(await lock.acquire());
      assertEquals(sent(), []);
      await lock.release();
    },
  );

  sends(
    kind,
    "withLock() costs a SET and a script, whatever fn does",
    async ({ on, key, sent, names }) => {
      await withLock(on, key, () => {});
      sent();
      await withLock(on, key, () => {});
      assertEquals(names(), ["SET", ...KNOWN]);
      await withLock(on, key, () => Promise.reject(new Error("fn")))
        .catch(() => {});
      assertEquals(names(), ["SET", ...KNOWN]);
      // Released by fn itself, there is nothing left to do.
      await withLock(on, key, (lock) => lock.release());
      assertEquals(names(), ["SET", ...KNOWN]);
    },
  );

  sends(
    kind,
    "many locks at once are as many commands, and the client is as it was",
    async ({ on, key, sent, names }) => {
      await (await acquireLock(on, key)).release();
      const members = Reflect.ownKeys(on);
      sent();
      const locks = await Promise.all(
        Array.from({ length: 20 }, (_, i) => acquireLock(on, `${key}:${i}`)),
      );
      await Promise.all(locks.map((lock) => lock.release()));
      // A pool opens more connections for them, and these shake hands.
      const ours = names().filter((name) => /^(SET|EVAL)/.test(name)).sort();
      const expected = [KNOWN[0], "SET"]
        .flatMap((name) => Array.from({ length: 20 }, () => name));
      assertEquals(ours, expected);
      assertEquals(Reflect.ownKeys(on), members);
    },
  );

  sends(
    kind,
    "several keys are released by one script, each as it stands",
    async ({ on, key, sent, names }) => {
      const keys = ["gone", "taken", "wanted", "well"]
        .map((name) => `${key}:${name}`);
      const [gone, taken, wanted, well] = keys;
      const warm = await acquireLock(on, keys);
      assert(await warm.release());
      const lock = await acquireLock(on, keys);
      await server.command("DEL", gone);
      await server.command("SET", taken, "another");
      // One who asks for its turn, as it has no inbox to be called by.
      const wish = "5000 0 somebody";
      await server.command("ZADD", `{${wanted}}:line`, 1, wish);
      sent();
      assertEquals(await lock.release(), false);
      // And one that hands it over to who stands in line.
      if (!bare) assertEquals(names(), ["EVALSHA", ...FIRST_TIME]);
      assertEquals(await server.command("EXISTS", gone, well), 0);
      assertEquals(await server.command("GET", taken), "another");
      assertEquals(await server.command("GET", wanted), "somebody");
      await server.command("DEL", taken, wanted);
    },
  );
}
