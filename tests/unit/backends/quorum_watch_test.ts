/**
 * Waiting over a quorum, on a clock that stands still unless told: who is told
 * of a release, what one makes of it, and what a lost word costs.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertNotStrictEquals,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  type DistributedLock,
  LockBackendError,
  LockNotAcquiredError,
  type LockOptions,
  redlock,
} from "@dreamer/utils/lock";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { FlakyServer } from "../../support/flaky.ts";
import { test } from "../../support/test.ts";

/** More than the first in order lets go by between two tries. */
const NEXT_TRY_MS = 241;
/** After how long a server counts as failed. */
const LIMIT_MS = 501;
/** For how long a key is kept for who was told. */
const KEPT_MS = 200;

/** Three servers, and as many quorums over them as there are processes. */
class World {
  readonly clock = new FakeClock();
  readonly servers: FlakyServer[];

  constructor(size = 3) {
    const { clock } = this;
    this.servers = Array.from(
      { length: size },
      () => new FlakyServer({ clock }),
    );
  }

  process(members = this.servers.map(({ on }) => on)): Backend {
    return redlock(members);
  }

  wait(on: Backend, options: LockOptions = {}): Promise<DistributedLock> {
    const promise = acquireLock(on, "k", {
      ttl: 10,
      waitMs: 60_000,
      ...options,
      throwOnFail: true,
    });
    // Some are looked at later than they fail.
    promise.catch(() => {});
    return promise;
  }

  /** How often each server was asked for the key since the last look. */
  tries(): number[] {
    return this.servers.map(({ asked }) =>
      asked.splice(0).filter((what) => what.startsWith("tryAcquire")).length
    );
  }
}

/** What became of `promise` by now. */
async function now<T>(promise: Promise<T>): Promise<T | "pending"> {
  await settle();
  return await Promise.race([promise, Promise.resolve("pending" as const)]);
}

async function held(promise: Promise<DistributedLock>) {
  const lock = await now(promise);
  assert(lock !== "pending", "it has to wait on");
  assert(lock.isAcquired());
  return lock;
}

/** Of two processes the first has the key, and the next waits for it. */
async function firstAndNext(world: World) {
  const first = await world.wait(world.process());
  await settle();
  const next = world.wait(world.process());
  await settle();
  return { first, next };
}

/** A world in which all is given back in the end, and no timer is left. */
function story(sentence: string, fn: (world: World) => Promise<void>): void {
  test(`waiting over a quorum: ${sentence}`, async () => {
    const world = new World();
    await fn(world);
    await settle();
    for (const server of world.servers) {
      assertEquals(await server.ownerOf("k"), undefined, "left behind");
    }
    assertEquals(world.clock.pending, 0, "timers left behind");
  });
}

story("a release is heard of at once", async (world) => {
  const first = await world.wait(world.process());
  await settle();
  const next = world.wait(world.process());
  await world.clock.advance(1_000);
  assertEquals(await now(next), "pending");
  await first.release();
  await (await held(next)).release();
});

story("each is told in its order, and nobody else is", async (world) => {
  const first = await world.wait(world.process());
  await settle();
  const waiting = [];
  for (let i = 0; i < 5; i++) {
    waiting.push(world.wait(world.process()));
    await settle();
  }
  let holder = first;
  for (const [i, next] of waiting.entries()) {
    world.tries();
    await holder.release();
    holder = await held(next);
    assertEquals(world.tries(), [1, 1, 1], "a herd");
    for (const later of waiting.slice(i + 1)) {
      assertEquals(await now(later), "pending");
    }
  }
  await holder.release();
});

story("nobody comes in before who was told, for a moment", async (world) => {
  const [a, b, c] = [world.process(), world.process(), world.process()];
  const first = await world.wait(a);
  await settle();
  const next = world.wait(b);
  await settle();
  // It hears of nothing, and is away for longer than it is waited for.
  for (const server of world.servers) server.isMute = true;
  await first.release();
  await settle();
  const early = await acquireLock(c, "k", { throwOnFail: false });
  assertStrictEquals(early, null);
  assertEquals(await now(next), "pending");
  world.clock.stall(KEPT_MS);
  const other = await acquireLock(c, "k", { ttl: 10 });
  await settle();
  for (const server of world.servers) server.isMute = false;
  assertEquals(await now(next), "pending");
  await other.release();
  await world.clock.advance(NEXT_TRY_MS);
  await (await held(next)).release();
});

story(
  "a word that is lost costs no more than until the next try",
  async (world) => {
    const first = await world.wait(world.process());
    await settle();
    const next = world.wait(world.process());
    await world.clock.advance(3_000);
    for (const server of world.servers) server.isMute = true;
    await first.release();
    assertEquals(await now(next), "pending");
    await world.clock.advance(NEXT_TRY_MS);
    await (await held(next)).release();
  },
);

story("the word of one server is a hint, and no grant", async (world) => {
  const { first, next } = await firstAndNext(world);
  const [server] = world.servers;
  world.tries();
  await server.inner.notices!.release({ key: "k", owner: first.owner });
  // The others may say so in a moment.
  assertEquals(await now(next), "pending");
  assertEquals(world.tries(), [0, 0, 0]);
  await world.clock.advance(5);
  assertEquals(world.tries(), [1, 1, 1]);
  assertEquals(await now(next), "pending");
  first.assertHeld();
  await first.release();
  await world.clock.advance(20);
  await (await held(next)).release();
});

for (const mute of [1, 2, 3]) {
  story(`${mute} of three servers tell nobody`, async (world) => {
    const members = world.servers.map(({ on }, i) => {
      if (i >= mute) return on;
      const { notices: _, ...plain } = on;
      return plain;
    });
    const first = await world.wait(world.process(members));
    await settle();
    const next = world.wait(world.process(members));
    await world.clock.advance(1_000);
    assertEquals(await now(next), "pending");
    await first.release();
    if (mute === 3) await world.clock.advance(300);
    await (await held(next)).release();
  });
}

story("with one server stopped it is heard of at once, too", async (world) => {
  world.servers[1].state = "frozen";
  const { first, next } = await firstAndNext(world);
  await first.release();
  await (await held(next)).release();
  world.servers[1].state = "well";
  await settle();
});

story("a server that never listens is waited for by nobody", async (world) => {
  const { notices } = world.servers[1].on;
  const { listen } = notices!;
  notices!.listen = (ears) => {
    const hearing = listen(ears);
    return { ...hearing, inbox: undefined, opened: new Promise(() => {}) };
  };
  const { first, next } = await firstAndNext(world);
  await first.release();
  await (await held(next)).release();
});

story("a stranger's lock is asked for again and again", async (world) => {
  const claim = { key: "k", owner: "stranger", ttlMs: 10_000 };
  for (const { inner } of world.servers) await inner.tryAcquire(claim);
  const next = world.wait(world.process());
  await world.clock.advance(1_000);
  for (const { inner } of world.servers) await inner.release(claim);
  await world.clock.advance(NEXT_TRY_MS);
  await (await held(next)).release();
});

story("a hold that runs out goes to the first", async (world) => {
  const { first, next } = await firstAndNext(world);
  const last = world.wait(world.process());
  await world.clock.advance(10_010);
  assertFalse(first.isAcquired());
  const lock = await held(next);
  assertEquals(await now(last), "pending");
  await lock.release();
  await (await held(last)).release();
  assertEquals(await first.release(), false);
});

story("who leaves is told no more, and the next one is", async (world) => {
  const first = await world.wait(world.process());
  await settle();
  const ending = new AbortController();
  const reason = new Error("enough");
  const aborted = world.wait(world.process(), { signal: ending.signal })
    .catch((error) => error);
  await settle();
  const late = world.wait(world.process(), { waitMs: 500 })
    .catch((error) => error);
  await settle();
  const next = world.wait(world.process());
  await settle();
  ending.abort(reason);
  assertStrictEquals(await now(aborted), reason);
  await world.clock.advance(501);
  assertInstanceOf(await now(late), LockNotAcquiredError);
  await first.release();
  await (await held(next)).release();
});

for (const state of ["down", "frozen"] as const) {
  story(
    `who leaves is told no more, though its last try found servers ${state}`,
    async (world) => {
      const [here, there] = [world.process(), world.process()];
      const first = await world.wait(there);
      // Its process goes on to listen, for another key.
      const elsewhere = await acquireLock(there, "other", { ttl: 60 });
      const another = acquireLock(here, "other", { waitMs: 60_000 });
      await settle();
      const ending = new AbortController();
      const gone = world.wait(here, { signal: ending.signal })
        .catch((error) => error);
      await settle();
      const [one, other] = world.servers;
      one.state = other.state = state;
      await world.clock.advance(NEXT_TRY_MS);
      ending.abort("enough");
      assertEquals(await now(gone), "enough");
      one.state = other.state = "well";
      await settle();
      const next = world.wait(there);
      await settle();
      await first.release();
      await (await held(next)).release();
      await elsewhere.release();
      await world.clock.advance(NEXT_TRY_MS);
      await (await held(another)).release();
    },
  );
}

story("who leaves as it is told has the next one told", async (world) => {
  const first = await world.wait(world.process());
  await settle();
  const ending = new AbortController();
  const told = world.wait(world.process(), { signal: ending.signal })
    .catch((error) => error);
  await settle();
  const next = world.wait(world.process());
  await settle();
  for (const server of world.servers) server.isMute = true;
  await first.release();
  await settle();
  for (const server of world.servers) server.isMute = false;
  ending.abort("enough");
  assertEquals(await now(told), "enough");
  await (await held(next)).release();
});

story(
  "of one process only the first asks, and they take turns",
  async (world) => {
    const [here, there] = [world.process(), world.process()];
    const first = await world.wait(there);
    await settle();
    const waiting = [1, 2, 3, 4].map(() => world.wait(here));
    await settle();
    world.tries();
    await world.clock.advance(2_000);
    // Once in 160 ms, or a little less or more often.
    for (const tries of world.tries()) assert(tries >= 7 && tries <= 26);
    let holder = first;
    for (const next of waiting) {
      await holder.release();
      holder = await held(next);
      assertNotStrictEquals(holder, first);
    }
    await holder.release();
  },
);

story(
  "who has had an answer waits for the servers to come back",
  async (world) => {
    const here = world.process();
    const first = await world.wait(world.process());
    await settle();
    const waiting = [1, 2, 3].map(() => world.wait(here));
    const brief = world.wait(here, { waitMs: 2_000 }).catch((error) => error);
    await settle();
    for (const server of world.servers) server.state = "frozen";
    await world.clock.advance(3_000);
    assertInstanceOf(await now(brief), LockBackendError);
    for (const one of waiting) assertEquals(await now(one), "pending");
    for (const server of world.servers) server.state = "well";
    await settle();
    let holder = first;
    for (const next of waiting) {
      await holder.release();
      // Nobody need have been noted: the next finds it by itself.
      await world.clock.advance(NEXT_TRY_MS + LIMIT_MS);
      holder = await held(next);
    }
    await holder.release();
  },
);

story(
  "of servers that nobody has heard all are told at once",
  async (world) => {
    const here = world.process();
    for (const server of world.servers) server.state = "frozen";
    const waiting = [1, 2, 3].map(() =>
      world.wait(here).catch((error) => error)
    );
    await settle();
    // By the first who asks, once: not one after the other.
    await world.clock.advance(LIMIT_MS);
    for (const one of waiting) {
      assertInstanceOf(await now(one), LockBackendError);
    }
    for (const server of world.servers) server.state = "well";
    await settle();
    await world.clock.advance(60_000);
  },
);

story("why one gives up is no reason for the others", async (world) => {
  const here = world.process();
  const first = await world.wait(world.process());
  await settle();
  const call = new AbortController();
  const one = world.wait(here, { signal: call.signal }).catch((error) => error);
  await settle();
  const other = world.wait(here);
  await settle();
  const reason = new LockBackendError("elsewhere", "Something else failed");
  call.abort(reason);
  assertStrictEquals(await now(one), reason);
  assertEquals(await now(other), "pending");
  await first.release();
  await world.clock.advance(NEXT_TRY_MS);
  await (await held(other)).release();
});

story("fencing tokens rise from one who waited to the next", async (world) => {
  const served: DistributedLock[] = [];
  const waiting = Array.from(
    { length: 6 },
    () =>
      world.wait(world.process(), { fencing: true }).then((lock) => {
        assert(lock.fencingToken! > (served.at(-1)?.fencingToken ?? 0));
        served.push(lock);
      }),
  );
  for (let count = 1; count <= waiting.length; count++) {
    for (let ms = 0; served.length < count; ms += 20) {
      assert(ms < 5_000, `${served.length} served`);
      await world.clock.advance(20);
    }
    await served.at(-1)!.release();
  }
  await Promise.all(waiting);
});
