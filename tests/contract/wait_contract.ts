/**
 * What waiting for a lock does, wherever it lives: one suite for who is called
 * when the turn comes, who asks for it, and who has no line to stand in.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertNotStrictEquals,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";

import {
  acquireLock,
  type DistributedLock,
  forceRelease,
  inspectLock,
  LockError,
  type LockEvent,
  LockLostError,
  LockNotAcquiredError,
  type LockOptions,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { test } from "../support/test.ts";

/** One of two processes, as far as a line can tell. */
export interface Side {
  readonly on: LockTarget;
  /** What tells it from the other where both live on the same. */
  readonly options?: LockOptions;
}

/** Where the suite runs. */
export interface WaitWorld {
  readonly here: Side;
  readonly there: Side;
  /** The same as `here`, with an observer, and what that was told. */
  readonly observed: Side & { readonly events: readonly LockEvent[] };
  /** Lets `ms` go by, timers included. */
  pass(ms: number): Promise<void>;
  /** Keeps everything else from running for `ms`. */
  stall(ms: number): void;
  /** What becomes of it, however much time that takes. */
  served<T>(waiting: Promise<T>): Promise<T>;
  /** Resolves once so many places in the line of `key` are taken. */
  inLine(key: string, count: number): Promise<void>;
  /** How many keys there are for `key`, besides a fence that expires. */
  keysLeft(key: string): Promise<number>;
}

/** How one waits there: called by a push, asking again, or with no line. */
export type Way = "called" | "asking" | "no line";

/** More than any machine is slow, and less than a turn that nobody takes up. */
const SOON_MS = 1_800;
const LISTENS_ON = "who waited listens on for a second";

type Told = WaitWorld & {
  key: string;
  /** Waits for the key, patiently. */
  wait(side: Side, options?: LockOptions): Promise<DistributedLock>;
  /** Holds it without having waited. */
  hold(options?: LockOptions): Promise<DistributedLock>;
};

/** Runs the suite in the world that `open` opens, once for each test. */
export function waitContract(
  name: string,
  way: Way,
  open: () => Promise<WaitWorld & AsyncDisposable>,
): void {
  let serial = 0;
  const hasLine = way !== "no line";

  /** One test, with a key of its own, that must leave nothing behind. */
  function waits(sentence: string, fn: (it: Told) => Promise<void>): void {
    test(`${name}: ${sentence}`, async () => {
      await using world = await open();
      const key = `wait:${name}:${++serial}`;
      const wait = (side: Side, options: LockOptions = {}) =>
        acquireLock(side.on, key, {
          ttl: 10,
          waitMs: 15_000,
          ...side.options,
          ...options,
          throwOnFail: true,
        });
      const hold = (options: LockOptions = {}) =>
        acquireLock(world.here.on, key, {
          ttl: 10,
          ...options,
          throwOnFail: true,
        });
      await fn({ ...world, key, wait, hold });
      await soon(
        world,
        "no key is left",
        async () => await world.keysLeft(key) === 0,
      );
    }, { allowTimers: LISTENS_ON });
  }

  /** `look` sees it before a turn that nobody took up could run out. */
  async function soon(
    { pass }: Pick<WaitWorld, "pass">,
    what: string,
    look: () => Promise<boolean>,
  ): Promise<void> {
    const until = performance.now() + SOON_MS;
    for (let spentMs = 0; !await look(); spentMs += 2) {
      if (performance.now() > until || spentMs > SOON_MS) {
        throw new Error(`Not in ${SOON_MS} ms: ${what}`);
      }
      await pass(2);
    }
  }

  /** Whether anybody has the key: asked of the world, not of a handle. */
  const isFree = async ({ here, key }: Told) =>
    !(await inspectLock(here.on, key)).held;

  /** Notes who is served, in order, and has each release at once. */
  function noting(served: string[], who: string) {
    return async (lock: DistributedLock) => {
      served.push(who);
      assert(await lock.release(), `${who} was not the holder`);
    };
  }

  waits("a key and the same in braces are two", async (world) => {
    const { here, there, key, hold, wait, served } = world;
    const braced = `{${key}}`;
    const acquire = ({ on, options }: Side) =>
      acquireLock(on, braced, {
        ...{ ttl: 10, waitMs: 15_000, ...options },
        throwOnFail: true,
      });
    const [plain, other] = [await hold(), await acquire(here)];
    const next = acquire(there);
    if (hasLine) {
      await soon(
        world,
        "one is in line",
        async () => (await inspectLock(here.on, braced)).waiting === 1,
      );
    }
    assertEquals(await plain.release(), true);
    assertEquals((await inspectLock(here.on, key)).held, false);
    await (await served(wait(there))).release();
    assert(other.isAcquired());
    assertEquals(await other.release(), true);
    assertEquals(await (await served(next)).release(), true);
  });

  waits("a key that is free is had at once", async ({ wait, here, served }) => {
    const lock = await served(wait(here));
    assert(lock.isAcquired());
    lock.assertHeld();
    assert(lock.remainingMs > 0 && lock.remainingMs <= 10_000 - 102);
    assertEquals(await lock.release(), true);
  });

  waits("one who waits gets the lock that is released", async (it) => {
    const { wait, hold, here, there, served, inLine, key } = it;
    const holder = await hold();
    let isServed = false;
    const waiting = wait(there);
    waiting.then(() => isServed = true, () => {});
    await inLine(key, 1);
    assertFalse(isServed, "served while it was held");
    assertEquals(await holder.release(), true);
    const lock = await served(waiting);
    assert(lock.isAcquired());
    assertFalse(holder.isAcquired());
    assertFalse(lock.signal.aborted);
    const refused = await acquireLock(here.on, key, { throwOnFail: false });
    assertStrictEquals(refused, null);
    await lock.extend();
    assert(lock.remainingMs > 9_000);
    assertEquals(await lock.release(), true);
  });

  waits(
    "waitMs is the end of waiting, and of the place in line",
    async (it) => {
      const { hold, here, observed, served, inLine, key } = it;
      const holder = await hold();
      const options = { waitMs: 400, localTurns: 0, ttl: 10 };
      const errorMessage = "busy";
      const first = acquireLock(here.on, key, { ...options, errorMessage });
      first.catch(() => {});
      await inLine(key, 1);
      const second = acquireLock(observed.on, key, {
        ...options,
        throwOnFail: false,
      });
      const error = await assertRejects(
        () => served(first),
        LockNotAcquiredError,
      );
      assertEquals([error.message, error.key], [errorMessage, key]);
      const { retryAfterMs, place } = error;
      if (hasLine) {
        assert(retryAfterMs! > 0 && retryAfterMs! <= 10_000, `${retryAfterMs}`);
      }
      assertEquals(place, hasLine ? 1 : undefined);
      assertStrictEquals(await served(second), null);
      const refusal = observed.events.find(({ type }) => type === "refused");
      assert(refusal?.type === "refused");
      // The one before may have left by the time of its last look.
      if (hasLine) assert([1, 2].includes(refusal.place!), `${refusal.place}`);
      // A timer of the machine may be early by less than a millisecond.
      assert(refusal.tookMs >= 399, `${refusal.tookMs} ms`);
      await inLine(key, 0);
      holder.assertHeld();
      assertEquals(await holder.release(), true);
      assert(await isFree(it), "given to one who waits no more");
    },
  );

  waits("an abort ends the waiting with the signal's reason", async (it) => {
    const { wait, hold, here, there, inLine, key } = it;
    const holder = await hold();
    const ending = new AbortController();
    const reason = { why: "enough" };
    const { signal } = ending;
    const all = [here, there].map((side) =>
      wait(side, { waitMs: Infinity, signal })
        .then(() => "served", (error) => error)
    );
    await inLine(key, 2);
    ending.abort(reason);
    for (const end of all) assertStrictEquals(await end, reason);
    await inLine(key, 0);
    assertEquals(await holder.release(), true);
    assert(await isFree(it), "given to one who waits no more");
  });

  waits("one whose signal is aborted already does not wait", async (it) => {
    const { wait, hold, here, inLine, key } = it;
    const holder = await hold();
    const reason = new Error("before");
    const signal = AbortSignal.abort(reason);
    const end = await wait(here, { signal }).catch((error) => error);
    assertStrictEquals(end, reason);
    await inLine(key, 0);
    assertEquals(await holder.release(), true);
    assertStrictEquals(
      await wait(here, { signal }).catch((error) => error),
      reason,
      "also where it is free",
    );
    assert(await isFree(it));
  });

  waits("waitMs: Infinity waits for as long as it takes", async (it) => {
    const { wait, hold, there, pass, inLine, served, key } = it;
    const holder = await hold();
    let isServed = false;
    const waiting = wait(there, { waitMs: Infinity });
    waiting.then(() => isServed = true, () => {});
    await inLine(key, 1);
    await pass(100);
    assertFalse(isServed);
    await holder.release();
    assertEquals(await (await served(waiting)).release(), true);
  });

  waits("a hold that runs out goes to who waits", async (it) => {
    const { wait, hold, there, served } = it;
    const holder = await hold({ ttl: 0.6 });
    const { signal } = holder;
    const lock = await served(wait(there));
    assertFalse(holder.isAcquired(), "two holders");
    assert(signal.aborted);
    assert(lock.isAcquired());
    assertEquals(await holder.release(), false);
    lock.assertHeld();
    assertEquals(await lock.release(), true);
  });

  waits("forceRelease() hands the key on to who waits", async (it) => {
    const { wait, hold, here, there, served, inLine, key } = it;
    const first = await hold();
    const second = wait(here, { localTurns: 0 });
    await inLine(key, 1);
    await first.release();
    // This one has it by a turn: it can be told.
    const holder = await served(second);
    const { signal } = holder;
    const waiting = wait(there);
    await inLine(key, 1);
    assertEquals(await forceRelease(there.on, key), true);
    const lock = await served(waiting);
    assert(lock.isAcquired());
    if (way === "called") {
      await soon(it, "it is told", () => Promise.resolve(signal.aborted));
      assert(signal.reason instanceof LockLostError);
      assertEquals(signal.reason.reason, "deleted");
      assertFalse(holder.isAcquired());
    }
    assertEquals(await holder.release(), false);
    lock.assertHeld();
    assertEquals(await lock.release(), true);
  });

  waits("withLock() waits, and hands on what fn returned", async (it) => {
    const { hold, here, there, served, inLine, key } = it;
    const holder = await hold();
    const patient = { waitMs: 15_000, ttl: 10 };
    const second = withLock(there.on, key, (lock) => {
      lock.assertHeld();
      return "done";
    }, { ...patient, ...there.options });
    const third = withLock(here.on, key, () => {
      throw new Error("of fn");
    }, { ...patient, ...here.options });
    third.catch(() => {});
    await inLine(key, 2);
    await holder.release();
    assertEquals(await served(second), "done");
    await assertRejects(() => served(third), Error, "of fn");
  });

  waits(
    "a late word of a former holder is nothing to the present one",
    async (it) => {
      const { wait, hold, here, served, inLine, key } = it;
      for (const localTurns of [16, 0]) {
        const holder = await hold();
        const waiting = [
          wait(here, { localTurns }),
          wait(here, { localTurns }),
        ];
        await inLine(key, localTurns === 0 ? 2 : 1);
        await holder.release();
        // Without a line either may be the first.
        const first = await served(Promise.race(waiting));
        const { signal } = first;
        assertEquals(await first.release(), true);
        const locks = await served(Promise.all(waiting));
        const second = locks.find((lock) => lock !== first)!;
        assertNotStrictEquals(second.signal, signal);
        assertFalse(first.isAcquired());
        assertEquals(first.remainingMs, 0);
        assert(second.isAcquired());
        const { remainingMs } = second;
        assertEquals(await first.release(), false);
        const error = await assertRejects(() => first.extend(60), LockError);
        assertEquals(error.code, "LOCK_NOT_HELD");
        assert(second.remainingMs <= remainingMs, "it was extended");
        assertFalse(signal.aborted, "a release is no loss");
        assertFalse(second.signal.aborted);
        assertFalse(await isFree(it));
        await second.extend(20);
        assert(second.remainingMs > 15_000 && !first.isAcquired());
        assertEquals(await second.release(), true);
        assert(await isFree(it));
      }
    },
  );

  waits("fencing tokens rise from each holder to the next", async (it) => {
    const { wait, hold, here, there, served, inLine, key } = it;
    const tokens: number[] = [];
    const note = async (lock: DistributedLock) => {
      tokens.push(lock.fencingToken!);
      await lock.release();
    };
    const holder = await hold({ fencing: true });
    tokens.push(holder.fencingToken!);
    const all = [here, there, here, there].flatMap((side) =>
      [16, 16, 2, 0].map((localTurns) =>
        wait(side, { localTurns, fencing: true }).then(note)
      )
    );
    // Of each side those who share a turn, and two who don't.
    await inLine(key, 6);
    await holder.release();
    await served(Promise.all(all));
    await note(await hold({ fencing: true }));
    assertEquals(tokens.length, 18);
    assert(tokens.every(Number.isSafeInteger), `${tokens}`);
    tokens.reduce((last, token) => {
      assert(token > last, `${tokens}`);
      return token;
    }, 0);
  });

  waits("each holder is known by its own label", async (it) => {
    const { wait, hold, here, served, inLine, key } = it;
    const holder = await hold({ label: "first" });
    const labels = ["x", "y", undefined, "x", "y", undefined];
    const all = labels.map(async (label) => {
      const lock = await wait(here, { label });
      const info = await inspectLock(here.on, key);
      await lock.release();
      return [info.held, info.label];
    });
    await inLine(key, 3);
    const info = await inspectLock(here.on, key);
    assertEquals(info.label, "first");
    if (way !== "no line") {
      assertEquals(info.waiting, 3);
      const line = info.line!.map(({ label }) => label);
      assertEquals(line.sort(), ["x", "y", undefined]);
      for (const { waitedMs } of info.line!) {
        assert(waitedMs >= 0 && waitedMs < 10_000, `${waitedMs} ms`);
      }
    }
    await holder.release();
    assertEquals(
      await served(Promise.all(all)),
      labels.map((label) => [true, label]),
    );
  });

  waits("an abort at the moment of the grant loses no lock", async (it) => {
    const { wait, here, there, served, inLine, key, pass } = it;
    const ends = { held: 0, aborted: 0 };
    for (let round = 0; round < (hasLine ? 40 : 8); round++) {
      const side = round % 2 === 0 ? here : there;
      const holder = await served(wait(here));
      const ending = new AbortController();
      const waiting = wait(side, {
        signal: ending.signal,
        localTurns: round % 4 < 2 ? 16 : 0,
      });
      const end = waiting.then((lock) => {
        ends.held++;
        assert(lock.isAcquired());
        return lock.release();
      }, (error) => {
        ends.aborted++;
        assertStrictEquals(error, ending.signal.reason);
      });
      if (round % 8 < 4) await inLine(key, 1);
      const released = holder.release();
      // From before the release is sent until after its word has come back.
      if (round % 5 === 1) await Promise.resolve();
      if (round % 5 === 2) await pass(0);
      if (round % 5 === 3) await released;
      if (round % 5 === 4) await pass(1);
      ending.abort(new Error("just now"));
      assertEquals(await released, true);
      await served(end);
      await soon(it, "the key is free", () => isFree(it));
    }
    assert(ends.aborted > 0, "the abort always came too late");
  });

  const alone = way === "asking" ? ", and that nobody can call" : "";
  waits(`an observer is told of the wait${alone}`, async (it) => {
    const { wait, hold, observed, served, inLine, pass, key } = it;
    const { events } = observed;
    const holder = await hold();
    const waiting = wait(observed, { label: "patient" });
    await inLine(key, 1);
    await pass(20);
    await holder.release();
    await (await served(waiting)).release();
    const told = events.filter(({ type }) =>
      type !== "push-failed" && type !== "waiting"
    );
    assertEquals(
      told.map(({ type, key, label }) => [type, key, label]),
      [["acquired", key, "patient"], ["released", key, "patient"]],
    );
    const places = events.flatMap((event) =>
      event.type === "waiting" ? [[event.key, event.label, event.place]] : []
    );
    assertEquals(places, way === "no line" ? [] : [[key, "patient", 1]]);
    const [acquired] = told;
    assert(acquired.type === "acquired" && acquired.tookMs >= 19);
    const failed = events.filter(({ type }) => type === "push-failed");
    assertEquals(failed.length, way === "asking" ? 1 : 0);
    for (const event of failed) {
      assertEquals([event.key, event.label], [key, "patient"]);
      assert(event.type === "push-failed" && event.error instanceof Error);
    }
  });

  waits(
    "never two inside, and everybody served, from two sides",
    async (it) => {
      const { here, there, served, key } = it;
      const rounds = { called: 20, asking: 4, "no line": 2 }[way];
      let inside = 0;
      let done = 0;
      let crowded = 0;
      const work = async (side: Side, localTurns: number) => {
        for (let round = 0; round < rounds; round++) {
          await withLock(side.on, key, async (lock) => {
            if (++inside !== 1) crowded++;
            await Promise.resolve();
            if (round % 5 === 0) await new Promise((go) => setTimeout(go));
            lock.assertHeld();
            inside--;
            done++;
          }, { ttl: 10, waitMs: 15_000, localTurns, ...side.options });
        }
      };
      await served(Promise.all(
        Array.from(
          { length: 10 },
          (_, i) => work(i % 2 ? here : there, [16, 0, 2][i % 3]),
        ),
      ));
      assertEquals([crowded, done], [0, 10 * rounds]);
    },
  );

  if (!hasLine) return;

  waits(
    "a short ttl is short also for one to whom a turn is passed",
    async (it) => {
      const { wait, here, there, served } = it;
      // Granted in full, as nobody else was there.
      const before = await served(wait(here, { ttl: 60 }));
      const short = wait(here, { ttl: 0.3 });
      await before.release();
      // It never releases: a crash could not be told from that.
      const silent = await served(short);
      const lock = await served(wait(there, { waitMs: 1_500 }));
      assertFalse(silent.isAcquired(), "two holders");
      assertEquals(await lock.release(), true);
    },
  );

  for (const localTurns of [16, 2, 0]) {
    waits(
      `who waits is served in order, with localTurns: ${localTurns}`,
      async (it) => {
        const { wait, hold, here, served, inLine, key } = it;
        const holder = await hold();
        const order: string[] = [];
        const all: Promise<void>[] = [];
        for (const who of "abcdefgh") {
          all.push(wait(here, { localTurns }).then(noting(order, who)));
          // A pool has more than one way to the server.
          await inLine(key, localTurns === 0 ? all.length : 1);
        }
        await holder.release();
        await served(Promise.all(all));
        assertEquals(order.join(""), "abcdefgh");
      },
    );
  }

  waits(
    "two sides are served in the order of arrival, with localTurns: 0",
    async (it) => {
      const { wait, hold, here, there, served, inLine, key } = it;
      const holder = await hold();
      const order: string[] = [];
      const all: Promise<void>[] = [];
      for (const who of "abcdefgh") {
        const side = all.length % 2 === 0 ? here : there;
        all.push(wait(side, { localTurns: 0 }).then(noting(order, who)));
        await inLine(key, all.length);
      }
      await holder.release();
      await served(Promise.all(all));
      assertEquals(order.join(""), "abcdefgh");
    },
  );

  waits(
    "a turn serves at most localTurns while another side waits",
    async (it) => {
      const { wait, hold, here, there, served, inLine, key } = it;
      const holder = await hold();
      const order: string[] = [];
      const few = Array.from(
        { length: 9 },
        () => wait(here, { localTurns: 3 }).then(noting(order, "h")),
      );
      await inLine(key, 1);
      const other = wait(there, { localTurns: 3 }).then(noting(order, "t"));
      await inLine(key, 2);
      await holder.release();
      await served(Promise.all([...few, other]));
      const at = order.indexOf("t");
      assert(at >= 1 && at <= 3, order.join(""));
    },
  );

  for (const how of ["pass", "stall"] as const) {
    waits(`a turn is not passed on past its time (${how})`, async (it) => {
      const { wait, hold, here, there, served, inLine, key } = it;
      const holder = await hold();
      const order: string[] = [];
      const ours = [wait(here), wait(here), wait(here)];
      await inLine(key, 1);
      const theirs = wait(there);
      await inLine(key, 2);
      for (const waiting of [...ours, theirs]) {
        waiting.then(() => order.push(waiting === theirs ? "t" : "h"));
      }
      await holder.release();
      const first = await served(ours[0]);
      await it[how](30);
      assertEquals(order, ["h"]);
      await first.release();
      const second = await served(Promise.race([...ours.slice(1), theirs]));
      assertEquals(order, ["h", "t"]);
      await second.release();
      for (const waiting of ours.slice(1)) {
        await (await served(waiting)).release();
      }
    });
  }

  waits(
    "one who leaves the middle of the line changes nothing for others",
    async (it) => {
      const { wait, hold, here, served, inLine, key } = it;
      for (const localTurns of [16, 0]) {
        const holder = await hold();
        const order: string[] = [];
        const reason = new Error("leaving");
        const ending = new AbortController();
        const { signal } = ending;
        const all = Array.from(
          "abcde",
          (who) =>
            wait(here, { localTurns, ...who === "c" ? { signal } : {} })
              .then(noting(order, who)),
        );
        const gone = all.splice(2, 1)[0].catch((error) => error);
        await inLine(key, localTurns === 0 ? 5 : 1);
        ending.abort(reason);
        assertStrictEquals(await gone, reason);
        await inLine(key, localTurns === 0 ? 4 : 1);
        await holder.release();
        await served(Promise.all(all));
        assertEquals(order.join(""), "abde");
      }
    },
  );

  waits("a turn that is passed on is one hold after the other", async (it) => {
    const { wait, hold, here, served, inLine, key } = it;
    let passed = 0;
    // How fast the machine is decides whether a turn is passed on at all.
    for (let round = 0; round < 200 && passed < 3; round++) {
      const holder = await hold();
      const waiting = Array.from({ length: 4 }, () => wait(here));
      await inLine(key, 1);
      await holder.release();
      let last: DistributedLock | undefined;
      for (const each of waiting) {
        const lock = await served(each);
        assertFalse(last?.isAcquired() ?? false, "two handles of one hold");
        if (lock.owner === last?.owner) {
          passed++;
          assertEquals(await last.release(), false);
          assert(lock.isAcquired());
          assert(lock.remainingMs <= 10_000 - 2);
        }
        assertEquals(await lock.release(), true);
        last = lock;
      }
    }
    assert(passed >= 3, "no turn was ever passed on");
  });
}
