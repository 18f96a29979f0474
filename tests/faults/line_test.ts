/**
 * The waiting line while those in it, the messages and the server come to grief.
 * Each story ends in the same way: the next one has the lock, nobody else
 * thought so at the same time, and nothing is left on the server.
 *
 * How long it took from when the lock was free is printed where LINE_DELAYS is
 * set: it is promised to be at most 250 ms, which no test can assert on a
 * machine that is busy with others.
 */
import { assert, assertEquals, assertFalse } from "@std/assert";
import type { Redis } from "ioredis";
import process from "node:process";

import {
  acquireLock,
  type DistributedLock,
  forceRelease,
  type IoredisClient,
  LockBackendError,
  type LockEvent,
  type LockOptions,
  type LockTarget,
  redis,
} from "@dreamer/utils/lock";
import { Lock } from "@dreamer/utils/lock/upstash";
import { type ClientKind, clients } from "../support/clients.ts";
import { areInLine } from "../support/line.ts";
import { type Script, spawnScript } from "../support/process.ts";
import { type Proxy, startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";

const WAITER = new URL("./waiter.ts", import.meta.url);
/** A bound that is exceeded only where the short lease has to heal it (2 s). */
const LIMIT_MS = 1_900;
/** And one where those who wait have to find out by themselves (1.2 s). */
const TOLD_MS = 900;
const PATIENT: LockOptions = { ttl: 30, waitMs: 20_000, localTurns: 0 };

const kinds = clients.filter(({ name }) =>
  ["ioredis", "redis", "bun"].includes(name)
);

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(async () => {
  await server.stop();
  await timersEnd();
});

/** How a client makes the connection by which it listens. */
interface Duplicable {
  duplicate(overrides: object): unknown;
}

interface Scene {
  readonly kind: ClientKind;
  readonly key: string;
  /** Opens a client that is closed when the story ends. */
  open(url?: string): Promise<LockTarget>;
  /** Starts a process that is ended with the story. */
  spawn(url?: string): Promise<Script>;
  wire(port?: number): Promise<Proxy>;
  /** A client that listens on the wire at that port. */
  openEar(port: number): Promise<LockTarget>;
  /** Its own, where the story is about more than one key of it. */
  serve(): Promise<RedisServer>;
}

/** Tells one story with each kind of client, side by side. */
function story(
  sentence: string,
  fn: (scene: Scene) => Promise<void>,
): void {
  const tell = async (kind: ClientKind) => {
    const ends: (() => Promise<unknown>)[] = [];
    const key = `line:${kind.name}:${sentence}`;
    const scene: Scene = {
      kind,
      key,
      async open(url = server.url) {
        const it = await kind.open(url);
        ends.unshift(it.close);
        return it.client;
      },
      async spawn(url = server.url) {
        const script = spawnScript(WAITER, [kind.name, url]);
        ends.unshift(async () => await script[Symbol.asyncDispose]());
        await script.next("ready");
        return script;
      },
      async wire(port = server.port) {
        const wire = await startProxy(port);
        ends.push(() => wire.stop());
        return wire;
      },
      async openEar(port) {
        const client = await scene.open() as LockTarget & Duplicable;
        const { duplicate } = client;
        const url = `redis://127.0.0.1:${port}`;
        client.duplicate = (overrides: object) =>
          kind.name === "bun"
            ? kind.open(url).then((it) => it.client)
            // The one wants a port, the other an address.
            : duplicate.call(client, { ...overrides, port, url });
        return client;
      },
      async serve() {
        const own = await startRedis();
        ends.push(() => own.stop());
        return own;
      },
    };
    try {
      await fn(scene);
    } catch (error) {
      throw new Error(`With ${kind.name}: ${error}`, { cause: error });
    } finally {
      for (const end of ends) await end();
    }
  };
  test(sentence, async () => {
    const ended = await Promise.allSettled(kinds.map(tell));
    for (const end of ended) if (end.status === "rejected") throw end.reason;
  }, {
    timeoutMs: 30_000,
    allowTimers: "who waited listens on for a second",
  });
}

/** Resolves once so many stand in line for `key`, and can be called. */
function inLine(key: string, count: number, at = server): Promise<void> {
  return until(
    `${count} in line`,
    async () =>
      areInLine(await at.command("ZRANGE", `{${key}}:line`, 0, -1), count),
  );
}

/** Waits for `key` in this process. */
function wait(on: LockTarget, key: string, options: LockOptions = {}) {
  const waiting = acquireLock(on, key, {
    ...PATIENT,
    ...options,
    throwOnFail: true,
  });
  // Looked at later, or not at all where the story fails before.
  waiting.catch(() => {});
  return waiting;
}

/** Has another process wait for `key`. */
function haveWait(script: Script, key: string, options: LockOptions = {}) {
  script.send({
    do: "acquire",
    id: "it",
    key,
    options: { ...PATIENT, ...options },
  });
}

/** What comes of waiting, and how long after `freeAt()` it came. */
async function soon(
  what: string,
  waiting: Promise<DistributedLock>,
  freeAt: number,
  { kind }: Scene,
  limitMs = LIMIT_MS,
): Promise<DistributedLock> {
  let limit: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    limit = setTimeout(
      () => reject(new Error(`Not served ${limitMs} ms after it was free`)),
      freeAt + limitMs - Date.now(),
    );
  });
  try {
    const lock = await Promise.race([waiting, late]);
    note(what, kind, Date.now() - freeAt);
    lock.assertHeld();
    return lock;
  } finally {
    clearTimeout(limit);
  }
}

function note(what: string, { name }: ClientKind, tookMs: number): void {
  if (!process.env.LINE_DELAYS) return;
  process.stderr.write(`DELAY ${what} (${name}): ${Math.round(tookMs)} ms\n`);
}

/** Nothing but a fence is left of `key`. */
async function nothingLeft(key: string, at = server): Promise<void> {
  await until(
    `nothing is left of ${key}`,
    async () => await at.command("EXISTS", key, `{${key}}:line`) === 0,
    LIMIT_MS,
  );
}

/** When the server will have forgotten `key`, by the clock on the wall. */
async function expiryOf(key: string): Promise<number> {
  return Date.now() + Number(await server.command("PTTL", key));
}

/** When the server first has it that nobody, or another, holds `key`. */
async function changed(key: string, owner: unknown, at = server) {
  await until(
    "it changes hands",
    async () => await at.command("GET", key) !== owner,
  );
  return Date.now();
}

story("the first in line is killed", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  const holder = await acquireLock(on, key, { fencing: true });
  haveWait(script, key, { fencing: true });
  await inLine(key, 1);
  const next = wait(on, key, { fencing: true });
  await inLine(key, 2);
  script.kill();
  await script.exited;
  await holder.release();
  const lock = await soon(
    "first in line killed",
    next,
    Date.now(),
    scene,
    TOLD_MS,
  );
  assert(lock.fencingToken! > holder.fencingToken!);
  assert(await lock.release());
  await nothingLeft(key);
});

story("the only one in line is killed, and the lease ends", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  // Never released, as of a holder that has crashed.
  await acquireLock(on, key, { ttl: 1 });
  haveWait(script, key);
  await inLine(key, 1);
  script.kill();
  await script.exited;
  await changed(key, await server.command("GET", key));
  // Its place is still there, but it takes no lock from anybody.
  assertEquals(await server.command("EXISTS", key, `{${key}}:line`), 1);
  const keys = [key, `${key}:2`];
  const lock = await acquireLock(on, keys, { throwOnFail: false });
  assert(lock !== null, "nobody has it");
  assert(await lock.release());
  await nothingLeft(key);
});

story("the first in line is stopped, and goes on later", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  const holder = await acquireLock(on, key);
  haveWait(script, key);
  await inLine(key, 1);
  const next = wait(on, key);
  await inLine(key, 2);
  script.kill("SIGSTOP");
  await holder.release();
  // The key is given to the one who was stopped, for no longer than this.
  const freeAt = await expiryOf(key);
  const what = "first in line stopped, after its short lease";
  const lock = await soon(what, next, freeAt, scene);
  script.kill("SIGCONT");
  // It stands in line again, and never took the key for its own.
  await inLine(key, 1);
  lock.assertHeld();
  const releasedAt = Date.now();
  assert(await lock.release());
  const { at } = await script.next("held");
  assert(Number(at) >= releasedAt, "two holders");
  script.send({ do: "release", id: "it" });
  assertEquals((await script.next("released")).freed, true);
  await nothingLeft(key);
});

story("the holder is killed", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  haveWait(script, key, { ttl: 0.6, autoExtend: true });
  await script.next("held");
  const next = wait(on, key);
  await inLine(key, 1);
  script.kill();
  await script.exited;
  const freeAt = await expiryOf(key);
  const lock = await soon("holder killed", next, freeAt, scene);
  assert(await lock.release());
  await nothingLeft(key);
});

story("the holder is stopped, and goes on later", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  const first = await acquireLock(on, key);
  haveWait(script, key, { ttl: 0.6, autoExtend: true });
  await inLine(key, 1);
  await first.release();
  // By a turn, and renewed since.
  await script.next("held");
  const owner = await server.command("GET", key);
  const next = wait(on, key);
  await inLine(key, 1);
  script.kill("SIGSTOP");
  const freeAt = await expiryOf(key);
  const lock = await soon("holder stopped", next, freeAt, scene);
  const acquiredAt = Date.now();
  script.kill("SIGCONT");
  const { lastHeld } = await script.next("lost");
  assert(Number(lastHeld) <= acquiredAt, "two holders");
  lock.assertHeld();
  assert(await server.command("GET", key) !== owner);
  assert(await lock.release());
  await nothingLeft(key);
});

for (
  const by of [
    ...["a turn", "its holder", "one of an older API"],
    ...["one who finds it free", "force"],
  ]
) {
  story(`a lease that is made short by ${by} is let run out`, async (scene) => {
    const { key } = scene;
    const [here, there, watch] = await Promise.all([
      scene.open(),
      scene.open(),
      clients[0].open(server.url),
    ]);
    // All that is called out, by a client that only listens.
    const ear = watch.client as unknown as Redis;
    const heard: string[] = [];
    ear.on("pmessage", (_pattern, _channel, word) => heard.push(word));
    await ear.psubscribe("lock:inbox:*");
    try {
      const ttl = by === "one who finds it free" ? 0.6 : 30;
      const old = new Lock({ id: key, redis: here, lease: 30_000 });
      const isByHolder = by === "its holder" || by === "one of an older API";
      const holder = by === "one of an older API"
        ? undefined
        : await acquireLock(here, key, { ttl });
      if (holder === undefined) assert(await old.acquire());
      const brief = isByHolder
        ? undefined
        : wait(here, key, { ttl: 0.4, label: "brief" });
      if (brief !== undefined) await inLine(key, 1);
      const next = wait(there, key);
      await inLine(key, brief === undefined ? 1 : 2);
      const last = await server.command("ZRANGE", `{${key}}:line`, -1, -1);
      const [owner] = (last as string[]).map((member) => member.split(" ")[2]);
      if (by === "its holder") await holder!.extend(0.4);
      if (by === "one of an older API") assert(await old.extend(-29_600));
      if (by === "a turn") await holder!.release();
      if (by === "force") await forceRelease(here, key);
      await brief;
      const freeAt = await expiryOf(key);
      // Told of it, they ask when it is over; or else only at their heartbeat.
      await until(
        "the next one is told",
        () => heard.includes(`look ${owner}`),
      );
      const what = `short lease by ${by}`;
      const lock = await soon(what, next, freeAt, scene);
      assert(await lock.release());
      await nothingLeft(key);
    } finally {
      await watch.close();
    }
  });
}

story(
  "the connection that listens is killed while nothing happens",
  async (scene) => {
    const { key } = scene;
    const own = await scene.serve();
    const [on, there] = await Promise.all([
      scene.open(own.url),
      scene.open(own.url),
    ]);
    const holder = await acquireLock(on, key);
    const next = wait(there, key);
    await inLine(key, 1, own);
    assertEquals(await own.command("CLIENT", "KILL", "TYPE", "pubsub"), 1);
    await until(
      "it listens again",
      async () =>
        String(await own.command("CLIENT", "LIST", "TYPE", "pubsub")).includes(
          "id=",
        ),
    );
    await holder.release();
    const lock = await soon(
      "listener killed before",
      next,
      Date.now(),
      scene,
      TOLD_MS,
    );
    assert(await lock.release());
    await nothingLeft(key, own);
  },
);

story(
  "the connection that listens is killed right before the release",
  async (scene) => {
    const { key } = scene;
    const own = await scene.serve();
    const [on, there] = await Promise.all([
      scene.open(own.url),
      scene.open(own.url),
    ]);
    for (let round = 0; round < 5; round++) {
      const holder = await acquireLock(on, key);
      const next = [wait(there, key), wait(there, key, { localTurns: 16 })];
      await inLine(key, 2, own);
      const killed = own.command("CLIENT", "KILL", "TYPE", "pubsub");
      await Promise.all([killed, holder.release()]);
      const freeAt = Date.now();
      const lock = await soon(
        "listener killed at release",
        Promise.race(next),
        freeAt,
        scene,
        TOLD_MS,
      );
      assert(await lock.release());
      const all = await Promise.all(next);
      assertEquals(all.filter((each) => each !== lock).length, 1);
      await Promise.all(all.map((each) => each.release()));
      await nothingLeft(key, own);
    }
  },
);

story("a call is lost on a connection that stays up", async (scene) => {
  const { key } = scene;
  const wire = await scene.wire();
  const [on, there] = await Promise.all([
    scene.open(),
    scene.openEar(wire.port),
  ]);
  for (const isPassedOn of [false, true]) {
    const waitMs = isPassedOn ? 20_000 : 0;
    const holder = await acquireLock(on, key, { waitMs });
    const next = wait(there, key);
    await inLine(key, 1);
    assertEquals(wire.connections, 1);
    const lost = wire.loseNext();
    await holder.release();
    await lost;
    const what = `call lost, ${isPassedOn ? "by a turn" : "without one"}`;
    const lock = await soon(what, next, Date.now(), scene, TOLD_MS);
    assert(await lock.release());
    await nothingLeft(key);
  }
});

story(
  "the connection that listens is dead, and nobody knows",
  async (scene) => {
    const { key } = scene;
    const wire = await scene.wire();
    const [on, there] = await Promise.all([
      scene.open(),
      scene.openEar(wire.port),
    ]);
    const holder = await acquireLock(on, key);
    const next = wait(there, key);
    await inLine(key, 1);
    // Nothing passes, and nothing breaks: the server thinks that it was heard.
    wire.hold(true);
    await holder.release();
    const what = "dead connection that listens";
    const lock = await soon(what, next, Date.now(), scene);
    const after = wait(there, key);
    await inLine(key, 1);
    // Only new ones work from now on.
    wire.freeze();
    const subscribed = wire.requests.length;
    await until("it listens anew", () =>
      wire.requests.slice(subscribed)
        .some(([word]) => /^subscribe$/i.test(word)));
    assert(await lock.release());
    const later = "dead connection that listens, later";
    const then = await soon(later, after, Date.now(), scene, TOLD_MS);
    assert(await then.release());
    await nothingLeft(key);
  },
);

story(
  "the answer to a release that calls one of the same process is lost",
  async (scene) => {
    await loseAnswer(scene, async (on, key) => {
      const first = await acquireLock(on, key);
      const second = wait(on, key);
      await inLine(key, 1);
      await first.release();
      return await second;
    });
  },
);

story(
  "the answer to the release of one who had not waited is lost",
  (scene) => loseAnswer(scene, (on, key) => acquireLock(on, key)),
);

/** Has a holder release to another of its process, and loses the answer. */
async function loseAnswer(
  scene: Scene,
  hold: (on: LockTarget, key: string) => Promise<DistributedLock>,
): Promise<void> {
  const { key } = scene;
  const wire = await scene.wire();
  const on = await scene.open(wire.url);
  const holder = await hold(on, key);
  const next = wait(on, key);
  await inLine(key, 1);
  const dropped = wire.dropRepliesAfter((words) =>
    /^eval/i.test(words[0]) && words.includes(holder.owner) &&
    // Where that was the first question, it frees nothing.
    words.includes(`{${key}}:fence`)
  );
  const owner = await server.command("GET", key);
  const released = holder.release().catch(() => "unknown");
  await dropped;
  const freeAt = await changed(key, owner);
  const lock = await soon(
    "answer to release lost",
    next,
    freeAt,
    scene,
    TOLD_MS,
  );
  await released;
  assertFalse(holder.isAcquired());
  assert(await lock.release());
  await nothingLeft(key);
}

story("the server forgets its scripts", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const [on, there] = await Promise.all([
    scene.open(own.url),
    scene.open(own.url),
  ]);
  const holder = await acquireLock(on, key);
  const all = [wait(there, key), wait(on, key), wait(there, key)];
  await inLine(key, 3, own);
  await own.command("SCRIPT", "FLUSH");
  await holder.release();
  for (let freeAt = Date.now(); all.length > 0; freeAt = Date.now()) {
    const next = await soon("SCRIPT FLUSH", Promise.race(all), freeAt, scene);
    for (const [i, each] of all.entries()) {
      if (await Promise.race([each, null]) === next) all.splice(i, 1);
    }
    await own.command("SCRIPT", "FLUSH");
    assert(await next.release());
  }
  await nothingLeft(key, own);
});

story("the server forgets everything", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const [on, there] = await Promise.all([
    scene.open(own.url),
    scene.open(own.url),
  ]);
  const holder = await acquireLock(on, key, { ttl: 30 });
  const { signal } = holder;
  const order: string[] = [];
  const first = wait(there, key);
  await inLine(key, 1, own);
  const second = wait(on, key);
  await inLine(key, 2, own);
  first.then(() => order.push("first"));
  second.then(() => order.push("second"));
  await own.command("FLUSHALL");
  const freeAt = Date.now();
  const lock = await soon(
    "FLUSHALL",
    Promise.race([first, second]),
    freeAt,
    scene,
    TOLD_MS,
  );
  // Gone from under its holder, who hears of it when it asks.
  await holder.extend().catch(() => {});
  assert(signal.aborted);
  assert(await lock.release());
  const other = await Promise.all([first, second]);
  for (const each of other) await each.release();
  assertEquals(order.length, 2);
  await nothingLeft(key, own);
});

story(
  "the server comes back empty, with a line before the key",
  async (scene) => {
    const { key } = scene;
    const own = await scene.serve();
    const [on, there] = await Promise.all([
      scene.open(own.url),
      scene.open(own.url),
    ]);
    const holder = await acquireLock(on, key, { ttl: 30 });
    const all: Promise<DistributedLock>[] = [];
    for (let i = 0; i < 4; i++) {
      all.push(wait(i % 2 ? on : there, key));
      await inLine(key, i + 1, own);
    }
    await own.kill();
    await own.restart();
    const freeAt = Date.now();
    const lock = await soon(
      "restart",
      Promise.race(all),
      freeAt,
      scene,
      TOLD_MS,
    );
    await holder.extend().catch(() => {});
    assertFalse(holder.isAcquired());
    assert(await lock.release());
    const inside = new Set<DistributedLock>();
    await Promise.all(all.map(async (waiting) => {
      const each = await waiting;
      if (each === lock) return;
      assertEquals(inside.size, 0, "two holders");
      inside.add(each);
      await new Promise((go) => setTimeout(go, 5));
      each.assertHeld();
      inside.delete(each);
      assert(await each.release(), "freed by somebody else");
    }));
    await nothingLeft(key, own);
  },
);

story("one who knows of no line holds the key", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const on = await scene.open(own.url);
  await own.command("SET", key, "another library's", "PX", 60_000);
  const next = wait(on, key);
  await inLine(key, 1, own);
  const asked = async () =>
    Number(
      /cmdstat_evalsha:calls=(\d+)/.exec(
        String(await own.command("INFO", "commandstats")),
      )?.[1] ?? 0,
    );
  const before = await asked();
  // At most one would be sent behind one of us.
  await until("it is asked for", async () => await asked() > before + 4, 3_000);
  await own.command("DEL", key);
  const what = "freed by one who knows of no line";
  const lock = await soon(what, next, Date.now(), scene, TOLD_MS);
  assert(await lock.release());
  await nothingLeft(key, own);
});

story("SUBSCRIBE is forbidden", async (scene) => {
  const { key, kind } = scene;
  const own = await scene.serve();
  const rights = ["on", ">word", "~*", "+@all", "resetchannels"];
  await own.command("ACL", "SETUSER", "deaf", ...rights);
  const url = own.url.replace("//", "//deaf:word@");
  const client = await scene.open(url);
  const events: LockEvent[] = [];
  const on = redis(client as IoredisClient, {
    onEvent: (event) => events.push(event),
  });
  const holder = await acquireLock(client, key);
  const order: number[] = [];
  const all: Promise<unknown>[] = [];
  let freeAt = 0;
  for (let i = 0; i < 3; i++) {
    all.push(
      wait(on, key).then(async (lock) => {
        note("SUBSCRIBE forbidden", kind, Date.now() - freeAt);
        order.push(i);
        assert(await lock.release());
        freeAt = Date.now();
      }),
    );
    await until(
      `${i + 1} in line, who can't be called`,
      async () => await own.command("ZCARD", `{${key}}:line`) === i + 1,
    );
  }
  const failed = events.filter(({ type }) => type === "push-failed");
  assert(failed.length > 0, "nobody was told");
  assertEquals(failed[0].key, key);
  assert(failed[0].type === "push-failed");
  assert(failed[0].error instanceof Error);
  await holder.release();
  freeAt = Date.now();
  await Promise.all(all);
  assertEquals(order, [0, 1, 2]);
  await nothingLeft(key, own);
});

story("one who listens may do so no more, and later again", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const rights = ["on", ">word", "~*", "+@all", "allchannels"];
  await own.command("ACL", "SETUSER", "deaf", ...rights);
  const url = own.url.replace("//", "//deaf:word@");
  const [client, there] = await Promise.all([
    scene.open(url),
    scene.open(own.url),
  ]);
  const events: LockEvent[] = [];
  const on = redis(client as IoredisClient, {
    onEvent: (event) => events.push(event),
  });
  const holder = await acquireLock(there, key);
  const next = wait(on, key);
  await inLine(key, 1, own);
  await own.command("ACL", "SETUSER", "deaf", "resetchannels");
  await until(
    "it is told",
    () => events.some(({ type }) => type === "push-failed"),
  );
  await holder.release();
  const what = "SUBSCRIBE forbidden meanwhile";
  const lock = await soon(what, next, Date.now(), scene, TOLD_MS);
  const last = wait(on, key);
  await own.command("ACL", "SETUSER", "deaf", "allchannels");
  await inLine(key, 1, own);
  await lock.release();
  await (await last).release();
  await nothingLeft(key, own);
});

story(
  "the connection to listen by is lost, and there is no room for another",
  async (scene) => {
    const { key } = scene;
    const own = await scene.serve();
    const [on, there] = await Promise.all([
      scene.open(own.url),
      scene.open(own.url),
    ]);
    const ears = async () =>
      String(await own.command("CLIENT", "LIST", "TYPE", "pubsub"))
        .match(/(?<=^id=)\d+/gm) as readonly string[] | null ?? [];
    // The others pass it on among themselves, all the while.
    let isOver = false;
    const busy = [1, 2].map(async () => {
      while (!isOver) {
        const lock = await wait(there, key);
        await new Promise((go) => setTimeout(go, 10));
        await lock.release();
      }
    });
    try {
      await until("they can be called", async () => (await ears()).length > 0);
      const theirs = await ears();
      await (await wait(on, key)).release();
      let ours: readonly string[] = [];
      await until(
        "it can be called",
        async () => ours = (await ears()).filter((id) => !theirs.includes(id)),
      );
      const clients = String(await own.command("INFO", "clients"));
      const count = Number(/connected_clients:(\d+)/.exec(clients)![1]);
      await own.command("CONFIG", "SET", "maxclients", count - 1);
      await own.command("CLIENT", "KILL", "ID", ours[0]);
      // In its turn, which comes after those of two others.
      const lock = await soon(
        "no room for the connection to listen by",
        wait(on, key),
        Date.now(),
        scene,
      );
      await lock.release();
    } finally {
      await own.command("CONFIG", "SET", "maxclients", 1_000);
      isOver = true;
      await Promise.all(busy);
    }
    await nothingLeft(key, own);
  },
);

story("one who may not PUBLISH releases to one who listens", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const rights = ["on", ">word", "~*", "+@all", "resetchannels"];
  await own.command("ACL", "SETUSER", "deaf", ...rights);
  const url = own.url.replace("//", "//deaf:word@");
  const [deaf, on] = await Promise.all([scene.open(url), scene.open(own.url)]);
  const holder = await acquireLock(deaf, key);
  const next = wait(on, key);
  await inLine(key, 1, own);
  const freed = await holder.release().catch((error) => error);
  const what = "released by one who may not PUBLISH";
  const lock = await soon(what, next, Date.now(), scene, TOLD_MS);
  assert(await lock.release());
  await nothingLeft(key, own);
  assertEquals(freed, true);
});

test("who listens anew is told again of keys that change", async () => {
  const names = ["ioredis", "ioredis5", "redis", "redis5", "redis4", "bun"];
  const ended = await Promise.allSettled(
    clients.filter(({ name }) => names.includes(name)).map(async (kind) => {
      await using own = await startRedis();
      await using it = await kind.open(own.url);
      const holder = await acquireLock(it.client, "k");
      const next = wait(it.client, "k");
      await inLine("k", 1, own);
      // The flag of one who is told of changes, by the server itself.
      const tracks = async (not?: string) => {
        const all = String(
          await own.command("CLIENT", "LIST", "TYPE", "pubsub"),
        );
        const [id, flags] = /id=(\d+)[^]* flags=(\S*)/.exec(all)?.slice(1) ??
          [];
        return flags?.includes("t") && id !== not ? id : undefined;
      };
      let id: string | undefined;
      await until(`${kind.name} tracks`, async () => id = await tracks());
      await own.command("CLIENT", "KILL", "TYPE", "pubsub");
      await until(`${kind.name} tracks again`, async () => await tracks(id));
      await holder.release();
      await (await next).release();
    }),
  );
  for (const end of ended) if (end.status === "rejected") throw end.reason;
}, { timeoutMs: 30_000, allowTimers: "who waited listens on for a second" });

story(
  "beside one of the keys there is something that is no line",
  async (scene) => {
    const { key, kind } = scene;
    const own = await scene.serve();
    const [here, there] = await Promise.all([
      scene.open(own.url),
      scene.open(own.url),
    ]);
    const [spoilt, sound] = ["spoilt", "sound"].map((it) => `${it}:${key}`);
    for (const fencing of [false, true]) {
      const all = await Promise.all(
        [spoilt, sound].map((it) => acquireLock(here, it)),
      );
      const waiting = [spoilt, sound].map((it) => wait(there, it, { fencing }));
      for (const it of [spoilt, sound]) await inLine(it, 1, own);
      const beside = `{${spoilt}}:${fencing ? "fence" : "line"}`;
      await own.command("DEL", beside);
      await own.command("LPUSH", beside, "no line");
      if (fencing) await own.command("DEL", spoilt);
      // Whoever listens anew asks for all at once.
      await own.command("CLIENT", "KILL", "TYPE", "pubsub");
      const error = await waiting[0].catch((error) => error);
      assert(error instanceof LockBackendError, `${kind.name}: ${error}`);
      assertEquals(error.reply, "WRONGTYPE");
      // What is no line keeps nobody from making the lease a short one.
      if (!fencing) await all[0].extend(1);
      await all[1].release();
      assert(await (await waiting[1]).release());
      await own.command("DEL", beside);
      await all[0].release();
    }
  },
);

for (const how of ["refused", "without an answer"]) {
  story(`a connection to listen by is ${how}`, async (scene) => {
    const { key } = scene;
    const wire = await scene.wire();
    const [on, there] = await Promise.all([
      scene.open(),
      scene.openEar(wire.port),
    ]);
    const holder = await acquireLock(on, key);
    if (how === "refused") wire.refuse(true);
    else wire.hold(true);
    const next = wait(there, key);
    await new Promise((go) => setTimeout(go, 200));
    await holder.release();
    const what = `connection to listen ${how}`;
    const lock = await soon(what, next, Date.now(), scene);
    assert(await lock.release());
    await nothingLeft(key);
  });
}

story("the server takes no more clients", async (scene) => {
  const { key } = scene;
  const own = await scene.serve();
  const [on, there] = await Promise.all([
    scene.open(own.url),
    scene.open(own.url),
  ]);
  const info = String(await own.command("INFO", "clients"));
  const holder = await acquireLock(on, key);
  const count = Number(/connected_clients:(\d+)/.exec(info)![1]);
  await own.command("CONFIG", "SET", "maxclients", count);
  const next = wait(there, key);
  await new Promise((go) => setTimeout(go, 200));
  await holder.release();
  const lock = await soon("server full", next, Date.now(), scene);
  assert(await lock.release());
  await nothingLeft(key, own);
});

story("two clients of one process stand in the same line", async (scene) => {
  const { key } = scene;
  const [on, there] = await Promise.all([scene.open(), scene.open()]);
  const holder = await acquireLock(on, key);
  let inside = 0;
  let freeAt = 0;
  const all = Array.from({ length: 20 }, async (_, i) => {
    const lock = await wait(i % 2 ? on : there, key, {
      localTurns: i % 3 ? 16 : 0,
    });
    assertEquals(++inside, 1, "two holders");
    if (i === 0) note("release, two clients", scene.kind, Date.now() - freeAt);
    await new Promise((go) => setTimeout(go, 1));
    lock.assertHeld();
    inside--;
    assert(await lock.release());
  });
  // Seven by themselves, and the others of each client as one.
  await inLine(key, 9);
  freeAt = Date.now();
  await holder.release();
  await Promise.all(all);
  await nothingLeft(key);
});

story("the lock is freed by force with a line before it", async (scene) => {
  const { key } = scene;
  const [on, script] = await Promise.all([scene.open(), scene.spawn()]);
  const first = await acquireLock(on, key);
  haveWait(script, key);
  await inLine(key, 1);
  await first.release();
  await script.next("held");
  const next = wait(on, key);
  await inLine(key, 1);
  assertEquals(await forceRelease(on, key), true);
  const lock = await soon("forceRelease", next, Date.now(), scene);
  const acquiredAt = Date.now();
  const { lastHeld } = await script.next("lost");
  // Told by a message, it may be a few milliseconds late: force is force.
  note("holder told of force", scene.kind, Number(lastHeld) - acquiredAt);
  assert(await lock.release());
  await nothingLeft(key);
});
