/**
 * What a lock does, wherever it lives: one suite for every client and backend.
 * Others' doings (a key taken over, a key deleted) go through the backend too,
 * so that a world without a server has them as well.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  DistributedLock,
  fencedSet,
  forceRelease,
  inspectLock,
  listLocks,
  LockError,
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
  withLock,
} from "@dreamer/utils/lock";
import { connect } from "../../src/connect.ts";
import { labelOf } from "../../src/core/keys.ts";
import { test } from "../support/test.ts";

/** Where the suite runs. */
export interface World {
  /** What locks are made on; all of it is the suite's own. */
  on: LockTarget;
  /** Lets `ms` go by, timers included. */
  pass(ms: number): Promise<void>;
  /** How many keys there are, where that can be told. */
  keysLeft(): Promise<number>;
}

const FOREIGN = "somebody-else";

/** Runs the suite in the world that `open` opens, once for each test. */
export function lockContract(
  name: string,
  open: () => Promise<World & AsyncDisposable>,
): void {
  type Story = (it: World & { key: string; others: Others }) => Promise<void>;
  let serial = 0;
  const patient: [name: string, fn: () => Promise<void>][] = [];

  /** One test, with a key of its own, that must leave nothing behind. */
  function holds(sentence: string, fn: Story): void {
    test(`${name}: ${sentence}`, () => live(fn, nothingIsLeft));
  }

  /** The same for one that lets time go by: all of those do it side by side. */
  function holdsOverTime(sentence: string, fn: Story): void {
    patient.push([`${name}: ${sentence}`, () => live(fn)]);
  }

  async function live(
    fn: Story,
    finale?: (world: World) => Promise<void>,
  ): Promise<void> {
    await using world = await open();
    const key = `contract:${name}:${++serial}`;
    const others = new Others(world.on, key);
    const { on, pass, keysLeft } = world;
    await fn({ on, pass, keysLeft, key, others });
    await others.leave();
    await finale?.(world);
  }

  async function nothingIsLeft({ keysLeft }: World): Promise<void> {
    assertEquals(await keysLeft(), 0, "keys left behind");
  }

  holds("acquireLock() takes a free key and release() frees it", async ({
    on,
    key,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    assertInstanceOf(lock, DistributedLock);
    assertEquals([lock.key, lock.keys], [key, [key]]);
    assertMatch(lock.owner, /^[0-9a-f]{32}@$/);
    assert(lock.isAcquired());
    assert(lock.remainingMs > 9_000 && lock.remainingMs <= 10_000 - 102);
    lock.assertHeld();
    assertFalse(lock.signal.aborted);
    assertEquals(await lock.release(), true);
    assertFalse(lock.isAcquired());
    assertEquals(lock.remainingMs, 0);
    assertFalse(lock.signal.aborted, "a release is no loss");
    const error = assertThrows(() => lock.assertHeld(), LockError);
    assertEquals(error.code, "LOCK_NOT_HELD");
    const next = await acquireLock(on, key);
    assertNotEquals(next.owner, lock.owner);
    await next.release();
  });

  holds("a taken key is refused, with the caller's message", async ({
    on,
    key,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 5 });
    const error = await assertRejects(
      () => acquireLock(on, key, { errorMessage: "Withdrawal in progress" }),
      LockNotAcquiredError,
    );
    assertEquals(error.message, "Withdrawal in progress");
    assertEquals([error.code, error.key], ["LOCK_NOT_ACQUIRED", key]);
    const { retryAfterMs } = error;
    assert(
      retryAfterMs === undefined || (retryAfterMs > 0 && retryAfterMs <= 5_000),
    );
    const { message } = await assertRejects(() => acquireLock(on, key), Error);
    assertEquals(message, "Operation in progress, please try again later");
    assertStrictEquals(
      await acquireLock(on, key, { throwOnFail: false }),
      null,
    );
    assert(lock.isAcquired());
    await lock.release();
  });

  holds("release() frees once, however often it is called", async ({
    on,
    key,
  }) => {
    const lock = await acquireLock(on, key);
    assertEquals(
      await Promise.all([lock.release(), lock.release(), lock.release()]),
      [true, false, false],
    );
    assertEquals(await lock.release(), false);
  });

  holds("release() leaves the lock of the next holder alone", async ({
    on,
    key,
    others,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    await others.take(lock);
    assertEquals(await lock.release(), false);
    assert(await others.hasIt());
  });

  holdsOverTime(
    "a lock ends by itself after its ttl, and says so before",
    async ({
      on,
      key,
      pass,
    }) => {
      const lock = await acquireLock(on, key, { ttl: 0.6 });
      const { signal } = lock;
      const told = new Promise<void>((done) =>
        signal.addEventListener("abort", () => done(), { once: true })
      );
      let next: DistributedLock | null = null;
      while (next === null) {
        await pass(10);
        next = await acquireLock(on, key, { throwOnFail: false });
      }
      assertFalse(lock.isAcquired(), "two holders");
      await told;
      assertInstanceOf(signal.reason, LockLostError);
      assertEquals(signal.reason.reason, "expired");
      assertEquals([signal.reason.code, signal.reason.key], ["LOCK_LOST", key]);
      assertStrictEquals(
        assertThrows(() => lock.assertHeld(), LockLostError),
        signal.reason,
      );
      await assertRejects(() => lock.extend(), LockLostError);
      assertEquals(await lock.release(), false);
      assert(next.isAcquired());
      await next.release();
    },
  );

  holds("ttl is kept to the millisecond", async ({ on, key }) => {
    const lock = await acquireLock(on, key, { ttl: 2.9 });
    assert(lock.remainingMs > 2_000 && lock.remainingMs <= 2_900 - 31);
    await lock.release();
  });

  holds("extend() sets the lease anew, longer or shorter", async ({
    on,
    key,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 5 });
    await lock.extend(60);
    assert(lock.remainingMs > 55_000 && lock.remainingMs <= 60_000 - 602);
    await lock.extend(2);
    assert(lock.remainingMs > 1_000 && lock.remainingMs <= 2_000 - 22);
    await lock.extend();
    assert(lock.remainingMs > 4_000 && lock.remainingMs <= 5_000 - 52);
    // In their order, also when nobody waits for one before the next.
    await Promise.all([lock.extend(90), lock.extend(30), lock.extend(0.9)]);
    assert(lock.remainingMs <= 900 - 11);
    await lock.release();
    const error = await assertRejects(() => lock.extend(), LockError);
    assertEquals(error.code, "LOCK_NOT_HELD");
  });

  holdsOverTime(
    "extend() keeps a lock past the ttl that it was acquired for",
    async ({
      on,
      key,
      pass,
    }) => {
      const lock = await acquireLock(on, key, { ttl: 0.8 });
      const { signal } = lock;
      await lock.extend(30);
      await pass(900);
      assertFalse(signal.aborted);
      assert(lock.isAcquired());
      assertStrictEquals(
        await acquireLock(on, key, { throwOnFail: false }),
        null,
      );
      assertEquals(await lock.release(), true);
    },
  );

  holds("extend() tells of a lock that was taken", async ({
    on,
    key,
    others,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    const { signal } = lock;
    await others.take(lock);
    const error = await assertRejects(() => lock.extend(), LockLostError);
    assertEquals(error.reason, "taken");
    assertStrictEquals(signal.reason, error);
    assertFalse(lock.isAcquired());
    assert(await others.hasIt());
  });

  holds("extend() tells of a lock that was deleted, and takes nothing", async ({
    on,
    key,
    others,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10 });
    await others.delete(lock);
    const error = await assertRejects(() => lock.extend(), LockLostError);
    assertEquals(error.reason, "deleted");
    assertEquals(lock.signal.aborted, true);
  });

  holds("the label is on the server as long as the lock", async ({
    on,
    key,
  }) => {
    const label = "web-3: Grüße, 你好:7";
    const lock = await acquireLock(on, key, { label });
    assertEquals(labelOf(lock.owner), label);
    assertEquals(
      await connect(on).extend([{ key, owner: lock.owner, ttlMs: 9_000 }]),
      ["done"],
    );
    assertEquals(await lock.release(), true);
  });

  holds("a claim that arrives twice finds its own owner", async ({
    on,
    key,
  }) => {
    const backend = connect(on);
    const claim = { key, owner: "resent", ttlMs: 5_000 };
    assert((await backend.tryAcquire(claim)).granted);
    assert((await backend.tryAcquire(claim)).granted);
    assertEquals(await backend.release(claim), "done");
    assertNotEquals(await backend.release(claim), "done");
  });

  holds("withLock() holds while fn runs, and passes on its value", async ({
    on,
    key,
  }) => {
    const value = await withLock(on, key, async (lock) => {
      assert(lock.isAcquired());
      await assertRejects(() => withLock(on, key, () => 0), LockError);
      return "done";
    });
    assertEquals(value, "done");
    assertEquals(await withLock(on, key, () => 7), 7);
  });

  holds("withLock() releases, and passes on what fn throws", async ({
    on,
    key,
  }) => {
    const bad = new Error("fn failed");
    const caught = await withLock(on, key, () => Promise.reject(bad))
      .catch((error) => error);
    assertStrictEquals(caught, bad);
    assertEquals("cause" in bad, false);
    await withLock(on, key, () => {});
  });

  holds("withLock() gives null when the key is taken, if told to", async ({
    on,
    key,
  }) => {
    const lock = await acquireLock(on, key);
    let ran = false;
    const value = await withLock(on, key, () => (ran = true), {
      throwOnFail: false,
    });
    assertStrictEquals(value, null);
    assertFalse(ran);
    await lock.release();
  });

  for (const how of ["take", "delete"] as const) {
    holds(`withLock() rejects when others ${how} the lock`, async ({
      on,
      key,
      others,
    }) => {
      const error = await assertRejects(
        () => withLock(on, key, (lock) => others[how](lock)),
        LockLostError,
      );
      assertEquals(error.reason, how === "take" ? "taken" : "deleted");
      const bad = new Error("fn failed first");
      await others.leave();
      const caught = await withLock(on, key, async (lock) => {
        await others[how](lock);
        throw bad;
      }).catch((error) => error);
      assertStrictEquals(caught, bad, "fn's outcome wins");
      assertInstanceOf(bad.cause, LockLostError);
    });
  }

  holdsOverTime(
    "withLock() rejects when the lock expired before fn was done",
    async ({
      on,
      key,
      pass,
    }) => {
      const error = await assertRejects(
        () =>
          withLock(on, key, () => pass(400), {
            ttl: 0.4,
            autoExtend: false,
          }),
        LockLostError,
      );
      assertEquals(error.reason, "expired");
      await until(pass, async () => {
        const lock = await acquireLock(on, key, { throwOnFail: false });
        return lock !== null && lock.release();
      });
    },
  );

  holdsOverTime("withLock() renews for as long as fn takes", async ({
    on,
    key,
    pass,
  }) => {
    const value = await withLock(on, key, async (lock) => {
      for (let i = 0; i < 12; i++) {
        await pass(90);
        lock.assertHeld();
        assertStrictEquals(
          await acquireLock(on, key, { throwOnFail: false }),
          null,
        );
      }
      return "done";
    }, { ttl: 1 });
    assertEquals(value, "done");
  });

  holdsOverTime(
    "maxHoldMs ends a hold that is renewed, and the signal says so",
    async ({
      on,
      key,
      pass,
    }) => {
      const error = await assertRejects(
        () =>
          withLock(on, key, async ({ signal }) => {
            while (!signal.aborted) await pass(10);
          }, { ttl: 1, maxHoldMs: 1_050 }),
        LockLostError,
      );
      assertEquals(error.reason, "max-hold");
    },
  );

  holdsOverTime(
    "fencing tokens grow with each hold, however the last one ended",
    async ({
      on,
      key,
      others,
      pass,
    }) => {
      const drawn: number[] = [];
      const draw = async (ttl = 10) => {
        const lock = await acquireLock(on, key, { ttl, fencing: true });
        assert(Number.isSafeInteger(lock.fencingToken));
        drawn.push(lock.fencingToken!);
        return lock;
      };
      await (await draw()).release();
      await others.delete(await draw());
      const lock = await draw(0.4);
      await until(pass, () => Promise.resolve(!lock.isAcquired()));
      await pass(20);
      await using last = await draw();
      const refused = await acquireLock(on, key, {
        fencing: true,
        throwOnFail: false,
      });
      assertStrictEquals(refused, null);
      assertEquals(drawn, [...drawn].sort((a, b) => a - b));
      assertEquals(new Set(drawn).size, drawn.length);
      assertEquals(last.fencingToken, drawn.at(-1));
      const plain = new DistributedLock(on, `${key}:plain`, "v", 5);
      assertEquals(plain.fencingToken, undefined);
    },
  );

  holds(
    "fencedSet() refuses the late, and lets the same hold write again",
    async ({
      on,
      key,
      pass,
    }) => {
      const target = `{${key}}:target`;
      if (connect(on).writeFenced === undefined) {
        await assertRejects(() => fencedSet(on, target, "b", 7), TypeError);
        return;
      }
      assertEquals(await fencedSet(on, target, "b", 7, { ttl: 20 }), true);
      assertEquals(await fencedSet(on, target, "a", 6, { ttl: 20 }), false);
      assertEquals(await fencedSet(on, target, "c", 7, { ttl: 20 }), true);
      assertEquals(await fencedSet(on, target, "d", 8, { ttl: 0.001 }), true);
      await pass(20);
      // Forgotten together with the value.
      assertEquals(await fencedSet(on, target, "e", 1, { ttl: 0.001 }), true);
      await pass(20);
    },
  );

  holdsOverTime(
    "resume() goes on with a lock that was let go of by toJSON()",
    async ({
      on,
      key,
      others,
      pass,
    }) => {
      const lock = await acquireLock(on, key, {
        ttl: 1,
        autoExtend: true,
        fencing: true,
        label: "moved",
      });
      const { owner, fencingToken } = lock;
      const json = JSON.stringify(lock);
      assertFalse(lock.isAcquired());
      assertFalse(lock.signal.aborted, "handed over is not lost");
      assertEquals(await lock.release(), false);
      assertThrows(() => lock.toJSON(), LockError, "handed over");
      const resumed = await DistributedLock.resume(on, json);
      assertEquals([resumed.owner, resumed.fencingToken], [
        owner,
        fencingToken,
      ]);
      for (let i = 0; i < 12; i++) {
        await pass(90);
        resumed.assertHeld();
      }
      await others.take(resumed);
      const taken = await assertRejects(
        () => DistributedLock.resume(on, json),
        LockLostError,
      );
      assertEquals(taken.reason, "taken");
      await others.leave();
      const gone = await assertRejects(
        () => DistributedLock.resume(on, json),
        LockLostError,
      );
      assertEquals(gone.reason, "expired");
      await resumed.release();
    },
  );

  holds("inspectLock() tells all but the owner", async ({ on, key, pass }) => {
    assertEquals((await inspectLock(on, key)).held, false);
    const lock = await acquireLock(on, key, {
      ttl: 5,
      label: "me",
      fencing: true,
    });
    await pass(20);
    const info = await inspectLock(on, key);
    assertEquals(info.key, key);
    assertEquals([info.held, info.label], [true, "me"]);
    assert(info.heldMs! >= 19 && info.heldMs! < 2_000, `${info.heldMs} ms`);
    assertEquals(info.isForeign, undefined);
    assertEquals(info.fencingToken, lock.fencingToken);
    assert(info.remainingMs! > 3_000 && info.remainingMs! <= 5_000);
    assertFalse(JSON.stringify(info).includes(lock.owner.slice(0, 32)));
    await lock.release();
    assertEquals((await inspectLock(on, key)).held, false);
  });

  holdsOverTime("forceRelease() frees a lock, and its holder is told", async ({
    on,
    key,
    pass,
  }) => {
    assertEquals(await forceRelease(on, key), false);
    // So long that no renewal falls in between, also on a busy machine.
    const lock = await acquireLock(on, key, { ttl: 2, autoExtend: true });
    const { signal } = lock;
    assertEquals(await forceRelease(on, key), true);
    const next = await acquireLock(on, key, { ttl: 10 });
    await until(pass, () => Promise.resolve(signal.aborted));
    assertEquals(signal.reason.reason, "taken");
    assertEquals(await lock.release(), false);
    assertEquals(await next.release(), true);
  });

  if (name !== "minimal") {
    holds(
      "listLocks() lists what matches, each once, and nothing else",
      async ({
        on,
        key,
      }) => {
        const names = Array.from({ length: 30 }, (_, i) => `${key}:list:${i}`);
        const locks = await Promise.all(
          names.map((name) =>
            acquireLock(on, name, { fencing: true, label: name })
          ),
        );
        await using _ = await acquireLock(on, `${key}:other`);
        const listed: string[] = [];
        for await (const info of listLocks(on, `${key}:list:*`)) {
          assertEquals(info.label, info.key);
          listed.push(info.key);
        }
        assertEquals(listed.sort(), names.sort());
        await Promise.all(locks.map((lock) => lock.release()));
      },
    );
  }

  holds("withLock() is content with an fn that released by itself", async ({
    on,
    key,
  }) => {
    assertEquals(await withLock(on, key, (lock) => lock.release()), true);
  });

  holds("`await using` releases at the end of the block", async ({
    on,
    key,
    others,
  }) => {
    {
      await using lock = await acquireLock(on, key);
      lock.assertHeld();
    }
    {
      await using lock = await acquireLock(on, key, { throwOnFail: false });
      assert(lock !== null);
      await using second = await acquireLock(on, key, { throwOnFail: false });
      assertStrictEquals(second, null);
    }
    const error = await assertRejects(async () => {
      await using lock = await acquireLock(on, key);
      await others.delete(lock);
    }, LockLostError);
    assertEquals(error.reason, "deleted");
    // Of two errors the runtime makes one (SuppressedError); neither is hidden.
    const bad = new Error("the block failed");
    const both = await assertRejects(async () => {
      await using lock = await acquireLock(on, key);
      await others.delete(lock);
      throw bad;
    }) as Error & { error: unknown; suppressed: unknown };
    assertEquals(both.name, "SuppressedError");
    assertInstanceOf(both.error, LockLostError);
    assertStrictEquals(both.suppressed, bad);
  });

  holds("a constructed lock is acquired by acquire(), under its value", async ({
    on,
    key,
  }) => {
    const lock = new DistributedLock(on, key, "my-own-value", 10);
    assertFalse(lock.isAcquired());
    assertEquals([lock.owner, lock.remainingMs], ["my-own-value", 0]);
    assertEquals(lock.signal.aborted, true);
    assertEquals(await lock.release(), false);
    assertEquals(await lock.acquire(), true);
    assertEquals(await lock.acquire(), true, "held already");
    const rival = new DistributedLock(on, key, "another-value", 10);
    assertEquals(await rival.acquire(), false);
    assertEquals(await rival.release(), false);
    assertEquals(await lock.release(), true);
    assertEquals(
      await Promise.all([rival.acquire(), rival.acquire()]),
      [true, true],
    );
    assertEquals(await rival.release(), true);
  });

  holds("a release gives back what is just being acquired", async ({
    on,
    key,
  }) => {
    const lock = new DistributedLock(on, key, "my-own-value", 10);
    const acquiring = lock.acquire();
    assertEquals(await lock.release(), true);
    assertEquals(await acquiring, true);
    assertFalse(lock.isAcquired());
    let inBlock: Promise<boolean>;
    {
      await using another = new DistributedLock(on, key, "another", 10);
      inBlock = another.acquire();
    }
    assertEquals(await inBlock, true);
    const next = new DistributedLock(on, key, "next", 10);
    assertEquals(await next.acquire(), true);
    assertEquals(await next.release(), true);
  });

  holds("a handle can be acquired again, as another hold", async ({
    on,
    key,
    others,
  }) => {
    const lock = await acquireLock(on, key, { ttl: 10, label: "again" });
    const { owner, signal } = lock;
    await others.take(lock);
    assertEquals(await lock.release(), false);
    assertEquals(await lock.acquire(), false);
    await others.leave();
    assertEquals(await lock.acquire(), true);
    assertNotEquals(lock.owner, owner);
    assertEquals(labelOf(lock.owner), "again");
    assert(lock.isAcquired());
    assert(lock.signal !== signal);
    assertFalse(lock.signal.aborted);
    assertEquals(await lock.release(), true);
  });

  holds("any string is a key, as it is", async ({ on }) => {
    const keys = [
      "a b",
      "{}",
      "a{b",
      "{a}b{c}",
      "ключ:鍵:🔑",
      "x".repeat(5_000),
    ];
    for (const key of [...keys, "\r\n$3\r\n", "\0"]) {
      await withLock(on, key, async () => {
        await assertRejects(() => acquireLock(on, key), LockNotAcquiredError);
      });
    }
  });

  holds("of many who want it, one at a time has it", async ({ on, key }) => {
    let inside = 0;
    let turns = 0;
    const party = async () => {
      for (let mine = 0; mine < 5;) {
        const done = await withLock(on, key, async (lock) => {
          assertEquals(++inside, 1);
          await Promise.resolve();
          lock.assertHeld();
          inside--;
          return true;
        }, { throwOnFail: false });
        if (done) mine++, turns++;
      }
    };
    await Promise.all(Array.from({ length: 8 }, party));
    assertEquals(turns, 40);
  });

  test.sideBySide(patient, () => live(async () => {}, nothingIsLeft));
}

/** Tries until it is so; the test's own limit ends what never is. */
async function until(
  pass: (ms: number) => Promise<void>,
  condition: () => Promise<boolean>,
): Promise<void> {
  while (!await condition()) await pass(10);
}

/** What others do to a lock behind its back. */
class Others {
  readonly #on: LockTarget;
  readonly #claim: { key: string; owner: string; ttlMs: number };

  constructor(on: LockTarget, key: string) {
    this.#on = on;
    this.#claim = { key, owner: FOREIGN, ttlMs: 20_000 };
  }

  /** Deletes it, as an operator would. */
  async delete(lock: DistributedLock): Promise<void> {
    assertEquals(await connect(this.#on).release(lock), "done");
  }

  /** Takes it over. */
  async take(lock: DistributedLock): Promise<void> {
    await this.delete(lock);
    assert((await connect(this.#on).tryAcquire(this.#claim)).granted);
  }

  /** Whether it is somebody else's now. */
  async hasIt(): Promise<boolean> {
    const [verdict] = await connect(this.#on).extend([this.#claim]);
    return verdict === "done";
  }

  /** Gives back what was taken over. */
  async leave(): Promise<void> {
    await connect(this.#on).release(this.#claim);
  }
}
