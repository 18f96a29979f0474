/**
 * A quorum of servers in memory, on a clock that stands still unless told: what
 * it makes of answers that are missing, late or lost.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  fencedSet,
  forceRelease,
  inspectLock,
  listLocks,
  LockBackendError,
  type LockEvent,
  LockLostError,
  LockNotAcquiredError,
  type LockTarget,
  redis,
  redlock,
  type RedlockOptions,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { FlakyServer, type State } from "../../support/flaky.ts";
import { test } from "../../support/test.ts";

const TTL = 10;
/** The limit for one server that follows from that. */
const LIMIT_MS = 500;

/** So many servers, and a quorum over them. */
class Quorum {
  readonly clock = new FakeClock();
  readonly servers: FlakyServer[];
  readonly on: Backend;

  constructor(size = 3, options: RedlockOptions = {}) {
    const { clock } = this;
    this.servers = Array.from(
      { length: size },
      () => new FlakyServer({ clock }),
    );
    this.on = redlock(this.servers.map(({ on }) => on), options);
  }

  /** How each of the first servers fares from now on. */
  are(...states: State[]): void {
    for (const [i, state] of states.entries()) this.servers[i].state = state;
  }

  /** All are well, and what they had to do is done. */
  async recover(): Promise<void> {
    this.are(...this.servers.map(() => "well" as const));
    await settle();
  }

  /** On how many servers `owner` has the key; anybody unless given. */
  async count(owner?: string): Promise<number> {
    const owners = await Promise.all(
      this.servers.map((server) => server.ownerOf("k")),
    );
    return owners.filter((one) =>
      owner === undefined ? one !== undefined : one === owner
    ).length;
  }

  /** Somebody else has the key on these servers. */
  async taken(...indexes: number[]): Promise<void> {
    for (const i of indexes) {
      const claim = { key: "k", owner: `other ${i}`, ttlMs: 1_000 * (i + 1) };
      await this.servers[i].inner.tryAcquire(claim);
    }
  }

  acquire(): Promise<DistributedLock> {
    return acquireLock(this.on, "k", { ttl: TTL });
  }

  /** What was asked of each server since the last look. */
  asked(): string[] {
    return this.servers.map(({ asked }) => asked.splice(0).join(" "));
  }
}

/** What became of `promise` by now. */
async function now<T>(promise: Promise<T>): Promise<T | "pending"> {
  await settle();
  return Promise.race([promise, Promise.resolve("pending" as const)]);
}

/** A quorum whose timers have all been called off in the end. */
function story(
  sentence: string,
  fn: (quorum: Quorum) => Promise<void>,
  size = 3,
): void {
  test(sentence, async () => {
    const quorum = new Quorum(size);
    await fn(quorum);
    await settle();
    assertEquals(quorum.clock.pending, 0, "timers left behind");
  });
}

for (const state of ["down", "frozen", "late", "lost"] as const) {
  story(`one of three is ${state}: all goes on without a delay`, async (q) => {
    q.are(state);
    const lock = await now(q.acquire());
    assert(lock !== "pending" && lock.isAcquired());
    assertEquals(q.clock.pending, 0, "a timer after the answer");
    assertEquals(await now(lock.extend(20)), undefined);
    assert(lock.remainingMs > 19_000);
    const refused = await now(q.acquire().catch((error) => error));
    assertInstanceOf(refused, LockNotAcquiredError);
    assertEquals((await inspectLock(q.on, "k")).held, true);
    assertEquals(await now(lock.release()), true);
    await q.recover();
    assertEquals(await q.count(), 0, "left behind");
    const next = await q.acquire();
    await settle();
    assertEquals(await q.count(next.owner), 3);
    await next.release();
  });
}

story("a straggler is claimed all the same", async (q) => {
  q.are("frozen");
  const lock = await q.acquire();
  assertEquals(await q.count(lock.owner), 2);
  await q.recover();
  assertEquals(await q.count(lock.owner), 3);
  await lock.release();
});

for (const how of ["frozen", "late"] as const) {
  story(
    `what a ${how} straggler grants after the release goes back`,
    async (q) => {
      // Releases overtake it, as where a client has several connections.
      q.are(how);
      const lock = await q.acquire();
      const [slow] = q.servers;
      slow.on.notices!.release = (hold) => slow.inner.release(hold);
      slow.on.discard = (claim) => slow.inner.discard(claim);
      await lock.release();
      await q.recover();
      assertEquals(await q.count(), 0);
    },
  );
}

story(
  "what a straggler grants after the release goes back, though that answers last",
  async (q) => {
    q.are("frozen");
    const lock = await q.acquire();
    const [slow] = q.servers;
    let answer = () => {};
    // It overtakes the claim, frees nothing, and says so when that was granted.
    slow.on.notices!.release = async (hold) => {
      const verdict = await slow.inner.release(hold);
      await new Promise<void>((resolve) => answer = resolve);
      return verdict;
    };
    await lock.release();
    await q.recover();
    assertEquals(await q.count(), 1);
    answer();
    await settle();
    assertEquals(await q.count(), 0);
  },
);

story(
  "a straggler that is released behind its claim is asked nothing more",
  async (q) => {
    q.are("frozen");
    await (await q.acquire()).release();
    await q.recover();
    assertEquals(q.asked()[0], "tryAcquire release");
    assertEquals(await q.count(), 0);
  },
);

story("what a straggler grants after the lease goes back", async (q) => {
  q.are("frozen");
  const lock = await q.acquire();
  await q.clock.advance(9_000);
  await lock.extend();
  await q.clock.advance(9_000);
  assert(lock.isAcquired());
  // The extension was held back, too.
  await q.recover();
  assertEquals(await q.count(lock.owner), 3, "held, and wanted");
  await lock.release();
  q.are("frozen");
  const lost = await q.acquire();
  await q.clock.advance(TTL * 1_000);
  assertFalse(lost.isAcquired());
  await q.recover();
  assertEquals(await q.count(), 0);
});

story(
  "a majority that is down: an error with a cause per server",
  async (q) => {
    q.are("down", "well", "frozen", "down", "down");
    const failing = acquireLock(q.on, "k", { ttl: TTL, throwOnFail: false });
    const error = await now(failing.catch((error) => error));
    assertInstanceOf(error, LockBackendError);
    assertEquals(
      error.message,
      'Cannot acquire "k": servers 1, 4 and 5 of 5 failed',
    );
    const { cause } = error;
    assertInstanceOf(cause, AggregateError);
    assertEquals(cause.errors.length, 3);
    for (const each of cause.errors) {
      assertInstanceOf(each, LockBackendError);
      assertMatch((each.cause as Error).message, /connection is closed/);
    }
    assertEquals(error.reply, undefined);
    await q.recover();
    assertEquals(await q.count(), 0, "left behind");
  },
  5,
);

story("what all servers that failed have answered is told", async (q) => {
  const replies = [
    ["READONLY", "READONLY", "READONLY"],
    ["READONLY", "LOADING", undefined],
    ["READONLY", undefined, undefined],
  ];
  for (const [first, second, told] of replies) {
    for (const [i, reply] of [first, second].entries()) {
      q.servers[i].on.tryAcquire = ({ key }) =>
        Promise.reject(new LockBackendError(key, "away", undefined, reply));
    }
    const error = await assertRejects(() => q.acquire(), LockBackendError);
    assertEquals(error.reply, told);
  }
  await q.recover();
});

story(
  "a majority that hangs is waited for as long as one server may take",
  async (q) => {
    q.are("frozen", "late");
    const failing = q.acquire().catch((error) => error);
    await q.clock.advance(LIMIT_MS - 1);
    assertEquals(await now(failing), "pending");
    await q.clock.advance(1);
    const error = await now(failing);
    assertInstanceOf(error, LockBackendError);
    assertMatch(
      (error.cause as AggregateError).errors[0].message,
      /no answer from the server in 500 ms/,
    );
    assertEquals(q.clock.pending, 0);
    await q.recover();
    assertEquals(await q.count(), 0, "left behind");
  },
);

test("serverTimeoutMs, or a sixth of a short lease, is that limit", async () => {
  for (
    const [options, ttl, limitMs] of [
      [{ serverTimeoutMs: 40 }, 30, 40],
      [{ serverTimeoutMs: 4_000 }, 30, 4_000],
      [{}, 0.6, 100],
    ] as const
  ) {
    const q = new Quorum(3, options);
    q.are("frozen", "frozen");
    const failing = acquireLock(q.on, "k", { ttl }).catch((error) => error);
    await q.clock.advance(limitMs - 1);
    assertEquals(await now(failing), "pending");
    await q.clock.advance(1);
    assertInstanceOf(await now(failing), LockBackendError);
    assertEquals(q.clock.pending, 0);
  }
});

story(
  "after a stall what has come is read before the limit counts",
  async (q) => {
    q.are("late", "late");
    const acquiring = q.acquire().catch((error) => error);
    await settle();
    // Its timer is the first to run then, and the sockets come after.
    q.clock.setTimer(() => q.are("well", "well"), LIMIT_MS);
    q.clock.stall(5_000);
    await q.clock.advance(0);
    const lock = await now(acquiring);
    assertInstanceOf(lock, DistributedLock);
    assert(lock.remainingMs <= 5_000);
    await lock.release();
  },
);

story(
  "a majority that is taken is a refusal, with when it may be free",
  async (q) => {
    await q.taken(0, 1, 2);
    const error = await now(q.acquire().catch((error) => error));
    assertInstanceOf(error, LockNotAcquiredError);
    // The third has not said how long, when two have: it may be free by then.
    assertEquals(error.retryAfterMs, 1_000);
    assertEquals(await q.count(), 3, "others' keys are left alone");
  },
);

story("taken on a minority: the others will do", async (q) => {
  await q.taken(1);
  const lock = await q.acquire();
  await settle();
  assertEquals(await q.count(lock.owner), 2);
  await lock.release();
  assertEquals(await q.count(), 1);
});

story("a split vote is a refusal of both, and both clean up", async (q) => {
  await q.taken(0, 1);
  const error = await now(q.acquire().catch((error) => error));
  assertInstanceOf(error, LockNotAcquiredError);
  await settle();
  assertEquals(await q.count(), 2, "ours is left behind");
}, 4);

/** What the answers of three servers come to, at the latest after the limit. */
const TABLE: [answers: string, outcome: string][] = [
  // Granted, refused, failed at once, hanging.
  ["ggg", "granted"],
  ["ggr", "granted"],
  ["ggf", "granted"],
  ["ggh", "granted"],
  ["grr", "refused"],
  ["rrr", "refused"],
  ["rrf", "refused"],
  ["rrh", "refused"],
  // A majority could be asked, and it is the one who said no that we lack.
  ["grf", "refused"],
  ["grh", "refused"],
  // One alone can't say it: it may be an orphan that nobody holds.
  ["rff", "failed"],
  ["rfh", "failed"],
  ["rhh", "failed"],
  ["gff", "failed"],
  ["ghh", "failed"],
  ["fff", "failed"],
  ["hhh", "failed"],
];

for (const [answers, outcome] of TABLE) {
  for (const order of new Set([answers, [...answers].reverse().join("")])) {
    story(`three servers that answer ${order}: ${outcome}`, async (q) => {
      for (const [i, answer] of [...order].entries()) {
        if (answer === "r") await q.taken(i);
        if (answer === "f") q.servers[i].state = "down";
        if (answer === "h") q.servers[i].state = "frozen";
      }
      const before = await q.count();
      const attempt = q.acquire().then(
        () => "granted",
        (error) =>
          error instanceof LockBackendError
            ? "failed"
            : error instanceof LockNotAcquiredError
            ? "refused"
            : error,
      );
      await q.clock.advance(LIMIT_MS);
      assertEquals(await now(attempt), outcome);
      if (outcome === "granted") return;
      await q.recover();
      assertEquals(await q.count(), before, "left behind");
    });
  }
}

story("a failed attempt asks those who refused nothing more", async (q) => {
  await q.taken(0, 1);
  await q.acquire().catch(() => {});
  await settle();
  // The third had not answered yet: it is told before and after.
  assertEquals(q.asked(), [
    "tryAcquire",
    "tryAcquire",
    "tryAcquire discard discard",
  ]);
});

story(
  "a grant whose answer was lost is cleaned up with a failed attempt",
  async (q) => {
    q.are("lost", "lost", "lost");
    await assertRejects(() => q.acquire(), LockBackendError);
    await q.recover();
    assertEquals(await q.count(), 0);
  },
);

story("grants that come when the lease is over are none", async (q) => {
  q.are("late", "late", "late");
  const late = acquireLock(
    redlock(q.servers.map(({ on }) => on), { serverTimeoutMs: Infinity }),
    "k",
    { ttl: TTL },
  ).catch((error) => error);
  await settle();
  q.clock.stall(9_900);
  await q.recover();
  assertInstanceOf(await now(late), LockBackendError);
  await settle();
  assertEquals(await q.count(), 0);
});

story("validity counts from before the first was asked", async (q) => {
  q.are("late", "late", "late");
  const acquiring = q.acquire();
  await settle();
  q.clock.stall(300);
  await q.recover();
  assertEquals((await acquiring).remainingMs, 10_000 - 300 - 102);
});

story(
  "an extension takes a majority, and re-claims who has nothing",
  async (q) => {
    const lock = await q.acquire();
    await settle();
    q.servers[1].wipe();
    assertEquals(await q.count(lock.owner), 2);
    await lock.extend(20);
    await settle();
    assertEquals(await q.count(lock.owner), 3);
    assertEquals(lock.remainingMs, 20_000 - 202);
    // Whoever comes second finds it lost, where a majority lost it.
    q.servers[0].wipe();
    q.servers[1].wipe();
    const error = await assertRejects(() => lock.extend(), LockLostError);
    assertEquals(error.reason, "deleted");
    await settle();
    assertEquals(await q.count(), 1, "claimed where it was lost");
    await lock.release();
  },
);

story(
  "who says last that it has nothing is re-claimed as well",
  async (q) => {
    const lock = await q.acquire();
    await settle();
    q.servers[2].wipe();
    q.are("well", "well", "late");
    await lock.extend();
    assertEquals(await q.count(lock.owner), 2);
    await q.recover();
    assertEquals(await q.count(lock.owner), 3);
    await lock.release();
  },
);

story("what is re-claimed after the lease goes back", async (q) => {
  const lock = await q.acquire();
  await settle();
  const [first] = q.servers;
  first.wipe();
  let arrive = () => {};
  first.on.tryAcquire = async (claim) => {
    await new Promise<void>((resolve) => arrive = resolve);
    return await first.inner.tryAcquire(claim);
  };
  await lock.extend();
  await q.clock.advance(TTL * 1_000);
  assertFalse(lock.isAcquired());
  arrive();
  await settle();
  assertEquals(await q.count(), 0);
});

story(
  "what a straggler grants after the lock was found lost goes back",
  async (q) => {
    q.are("frozen");
    const lock = await q.acquire();
    for (const { inner } of q.servers) await inner.forceRelease!("k");
    const extending = assertRejects(() => lock.extend(), LockLostError);
    await extending;
    await q.recover();
    assertEquals(await q.count(), 0);
  },
);

story("of four, two that have nothing are enough for a loss", async (q) => {
  const lock = await q.acquire();
  await settle();
  q.servers[1].wipe();
  q.servers[2].wipe();
  const error = await now(lock.extend().catch((error) => error));
  assertInstanceOf(error, LockLostError);
  assertEquals(error.reason, "deleted");
}, 4);

story("an extension that is taken by a majority is a loss", async (q) => {
  const lock = await q.acquire();
  await settle();
  for (const { inner } of q.servers) await inner.forceRelease!("k");
  await q.taken(0, 1);
  const error = await assertRejects(() => lock.extend(), LockLostError);
  assertEquals(error.reason, "taken");
  assertEquals(await lock.release(), false);
});

story(
  "an extension that too few confirm is an error; the lock is held on",
  async (q) => {
    const lock = await q.acquire();
    q.are("down", "frozen");
    const failing = lock.extend(30).catch((error) => error);
    await q.clock.advance(LIMIT_MS);
    const error = await now(failing);
    assertInstanceOf(error, LockBackendError);
    assertEquals(
      error.message,
      'Cannot extend "k": servers 1 and 2 of 3 failed',
    );
    assert(lock.isAcquired() && lock.remainingMs < 10_000);
    await q.recover();
    assertEquals(await lock.release(), true);
  },
);

story("a server is not re-claimed for a lock that was released", async (q) => {
  const lock = await q.acquire();
  await settle();
  q.servers[2].wipe();
  q.are("well", "well", "late");
  await lock.extend();
  await lock.release();
  q.asked();
  await q.recover();
  assertEquals(q.asked(), ["", "", ""]);
  assertEquals(await q.count(), 0);
});

story(
  "several claims are extended together, each by its own majority",
  async (q) => {
    const claims = ["a", "b", "c"].map((key) => ({
      key,
      owner: `of ${key}`,
      ttlMs: 5_000,
    }));
    for (const claim of claims) await q.on.tryAcquire(claim);
    await settle();
    for (const i of [0, 1]) await q.servers[i].inner.forceRelease!("b");
    q.asked();
    q.are("well", "well", "frozen");
    const answers = await q.on.extend(claims.slice(0, 1));
    assertEquals(answers, ["done"]);
    assertEquals(await q.on.extend(claims), ["done", "absent", "done"]);
    assertEquals(q.asked(), [
      "extend extend",
      "extend extend",
      "extend extend",
    ]);
    await q.recover();
  },
);

story(
  "a release that too few confirm is an error, and may be repeated",
  async (q) => {
    const lock = await q.acquire();
    q.are("well", "down", "down");
    const error = await assertRejects(() => lock.release(), LockBackendError);
    assertInstanceOf(error.cause, AggregateError);
    q.are("well", "well");
    // The first did it then, and counts now.
    assertEquals(await lock.release(), true);
    await q.recover();
    assertEquals(await q.count(), 0);
  },
);

story(
  "a hold of the same owner is released on all, though a release failed before",
  async (q) => {
    const lock = new DistributedLock(q.on, "k", crypto.randomUUID(), TTL);
    await lock.acquire();
    q.are("well", "down", "down");
    await assertRejects(() => lock.release(), LockBackendError);
    await q.recover();
    assertEquals(await lock.acquire(), true);
    await settle();
    assertEquals(await q.count(lock.owner), 3);
    assertEquals(await lock.release(), true);
    await settle();
    assertEquals(await q.count(), 0);
  },
);

story(
  "a release of which one is away, and one not sure, is neither error nor loss",
  async (q) => {
    const lock = await q.acquire();
    await settle();
    const [first, second] = q.servers;
    first.state = "down";
    second.on.notices!.release = async (hold) => {
      await second.inner.release(hold);
      return "unclear";
    };
    assertEquals(await lock.release(), false);
    assertFalse(lock.signal.aborted);
    await q.recover();
    assertEquals(await q.count(), 0);
  },
);

for (const away of [0, 2]) {
  story(
    `a release is repeated for server ${away + 1}, which missed it`,
    async (q) => {
      const lock = await q.acquire();
      q.servers[away].state = "down";
      assertEquals(await lock.release(), true);
      assertEquals(await q.count(), 1);
      await q.recover();
      assertEquals(await q.count(), 0);
    },
  );
}

story("resume() counts on what a majority has left", async (q) => {
  const lock = await q.acquire();
  await settle();
  const hold = { key: "k", owner: lock.owner };
  for (const [i, server] of q.servers.entries()) {
    await server.inner.extend([{ ...hold, ttlMs: 10_000 * (i + 1) }]);
  }
  assertEquals(await q.on.inquire(hold), { verdict: "done", leftMs: 10_000 });
  q.are("down");
  assertEquals(await q.on.inquire(hold), { verdict: "done", leftMs: 20_000 });
  await q.recover();
  const resumed = await DistributedLock.resume(q.on, JSON.stringify(lock));
  assert(resumed.isAcquired());
  await resumed.release();
  assertEquals((await q.on.inquire(hold)).verdict, "absent");
  q.are("down", "down");
  await assertRejects(() => q.on.inquire(hold), LockBackendError);
});

story("inspectLock(): who has a majority, and nobody else", async (q) => {
  await q.taken(0, 1, 2);
  assertEquals((await inspectLock(q.on, "k")).held, false);
  assertEquals(await forceRelease(q.on, "k"), true);
  assertEquals(await q.count(), 0);
  const lock = await acquireLock(q.on, "k", { ttl: TTL, label: "me" });
  q.servers[0].wipe();
  assertEquals(await inspectLock(q.on, "k"), {
    key: "k",
    held: true,
    label: "me",
    heldMs: 0,
    remainingMs: 10_000,
  });
  // One says nobody, one says me, and one nothing.
  q.are("well", "well", "down");
  const unsure = await inspectLock(q.on, "k").catch((error) => error);
  assertInstanceOf(unsure, LockBackendError);
  await q.recover();
  assertEquals(await forceRelease(q.on, "k"), true);
  assertEquals(await forceRelease(q.on, "k"), false);
  assertEquals(await lock.release(), false);
});

story(
  "listLocks() passes over a server that is away, or says nothing",
  async (q) => {
    const locks = await Promise.all(
      ["lock:a", "lock:b"].map((key) => acquireLock(q.on, key, { ttl: TTL })),
    );
    await settle();
    const list = async () => {
      const keys: string[] = [];
      for await (const { key } of listLocks(q.on, "lock:*")) keys.push(key);
      return keys.sort();
    };
    assertEquals(await list(), ["lock:a", "lock:b"]);
    q.are("down");
    assertEquals(await list(), ["lock:a", "lock:b"]);
    q.are("frozen");
    const listing = list();
    await q.clock.advance(LIMIT_MS);
    assertEquals(await listing, ["lock:a", "lock:b"]);
    q.are("down", "down");
    await assertRejects(list, LockBackendError);
    await q.recover();
    for (const lock of locks) await lock.release();
  },
);

story(
  "listLocks() tells of a lock that the first server has lost",
  async (q) => {
    const lock = await q.acquire();
    await settle();
    q.servers[0].wipe();
    const keys: string[] = [];
    for await (const { key } of listLocks(q.on, "*")) keys.push(key);
    assertEquals(keys, ["k"]);
    await lock.release();
  },
);

story("listLocks() ends what it has begun, though told to stop", async (q) => {
  const lock = await q.acquire();
  await settle();
  let isEnded = false;
  q.servers[0].on.scan = async function* () {
    try {
      yield "k";
      yield "another";
    } finally {
      isEnded = true;
    }
  };
  for await (
    const { key } of listLocks(redlock(q.servers.map((it) => it.on)), "*")
  ) {
    assertEquals(key, "k");
    break;
  }
  await settle();
  assert(isEnded);
  await lock.release();
});

test("a quorum counts as closed once too few of its clients are open", () => {
  for (const [size, most] of [[3, 1], [4, 1], [5, 2]]) {
    const closed = new Set<number>();
    const servers = Array.from({ length: size }, (_, i): Backend => ({
      ...new FlakyServer().on,
      isClosed: () => closed.has(i),
    }));
    const on = redlock(servers);
    for (let i = 0; i < size; i++) {
      assertEquals(on.isClosed!(), i > most, `${i} of ${size}`);
      closed.add(i);
    }
    assert(on.isClosed!());
  }
});

story(
  "who waits gets it after a release, a loss, and past a dead server",
  async (q) => {
    q.are("down");
    const first = await q.acquire();
    const next = acquireLock(q.on, "k", { ttl: TTL, waitMs: 60_000 });
    await q.clock.advance(1_000);
    assertEquals(await now(next), "pending");
    await first.release();
    await q.clock.advance(400);
    const second = await now(next);
    assert(second !== "pending" && second.isAcquired());
    const third = acquireLock(q.on, "k", { ttl: TTL, waitMs: 60_000 });
    await q.clock.advance(TTL * 1_000 + 400);
    const last = await now(third);
    assert(last !== "pending" && last.isAcquired());
    assertFalse(second.isAcquired());
    await last.release();
    await second.release();
    await q.recover();
    assertEquals(await q.count(), 0);
  },
);

story("each try of one who waits has an owner of its own", async (q) => {
  const owners = new Set<string>();
  let tries = 0;
  const { on } = q.servers[0];
  const { tryAcquire } = on;
  const asWatcher = on.notices!.tryAcquire;
  const note = (owner: string) => {
    owners.add(owner);
    tries++;
  };
  on.tryAcquire = (claim) => {
    note(claim.owner);
    return tryAcquire(claim);
  };
  on.notices!.tryAcquire = (wish, watcher) => {
    note(wish.owner);
    return asWatcher(wish, watcher);
  };
  const first = await q.acquire();
  const next = acquireLock(q.on, "k", { waitMs: 60_000, label: "me" });
  await q.clock.advance(2_000);
  await first.release();
  await q.clock.advance(400);
  const lock = await next;
  assertEquals((await inspectLock(q.on, "k")).label, "me");
  assert(tries > 5);
  assertEquals(owners.size, tries);
  await lock.release();
});

test("many who want it, of several processes, never share it", async () => {
  const servers = Array.from({ length: 5 }, () => memory());
  // As many ways to each server as processes, each with delays of its own.
  const far = (on: Backend, index: number): Backend => ({
    name: "far",
    tryAcquire: async (claim) => {
      await new Promise((go) => setTimeout(go, (index * 7 + 3) % 5));
      return await on.tryAcquire(claim);
    },
    extend: (claims) => on.extend(claims),
    release: (hold) => on.release(hold),
    discard: (claim) => on.discard(claim),
    inquire: (hold) => on.inquire(hold),
  });
  let inside = 0;
  let turns = 0;
  await Promise.all(Array.from({ length: 6 }, async (_, process) => {
    const on = redlock(servers.map((server, i) => far(server, i * process)));
    for (let turn = 0; turn < 5; turn++) {
      await withLock(on, "k", async (lock) => {
        assertEquals(++inside, 1, "two inside");
        await new Promise((go) => setTimeout(go, 1));
        lock.assertHeld();
        inside--;
        turns++;
      }, { ttl: 10, waitMs: 15_000 });
    }
  }));
  assertEquals(turns, 30);
});

test("an observer of the quorum is told, and none of its members'", async () => {
  const types: string[] = [];
  const note = (who: string) => (event: LockEvent) =>
    void types.push(`${who} ${event.type}`);
  const members = [0, 1, 2].map(() => memory({ onEvent: note("member") }));
  const on = redlock(members, { onEvent: note("quorum") });
  const lock = await acquireLock(on, "k");
  await lock.release();
  assertEquals(types, ["quorum acquired", "quorum released"]);
});

test("what no quorum has is refused in a sentence, before anything is sent", async () => {
  const on = redlock([memory(), memory(), memory()]);
  const error = await assertRejects(
    () => fencedSet(on, "doc", "text", 1),
    TypeError,
  );
  assertMatch(
    error.message,
    /one server, and no quorum: current value is redlock$/,
  );
  const plain: Backend = { ...new FlakyServer().on };
  delete plain.raiseFence;
  const fenceless = redlock([memory(), plain, memory()]);
  await assertRejects(
    () => acquireLock(fenceless, "k", { fencing: true }),
    RangeError,
    "fencing must be false on redlock, which draws none",
  );
});

test("redlock() refuses what makes no quorum", () => {
  const client = {
    set: () => Promise.resolve("OK"),
    get: () => Promise.resolve(null),
    del: () => Promise.resolve(0),
    eval: () => Promise.resolve(0),
  };
  const wrong = (value: unknown) => value as never;
  const [a, b, c] = [memory(), memory(), memory()];
  const bad: [LockTarget[], RedlockOptions, typeof Error, RegExp][] = [
    [[a, b], {}, RangeError, /at least 3 servers: current value is 2$/],
    [[], {}, RangeError, /at least 3 servers: current value is 0$/],
    [wrong(a), {}, TypeError, /targets must be an array/],
    [
      [a, b, a],
      {},
      RangeError,
      /each server must come once, and server 3 is server 1/,
    ],
    [[client, b, client], {}, RangeError, /server 3 is server 1/],
    [[a, client, redis(client)], {}, RangeError, /server 3 is server 2/],
    [[a, b, redlock([a, b, c])], {}, TypeError, /server 3 must not be a/],
    [[a, b, wrong("redis://:secret@host")], {}, TypeError, /is a string$/],
    [[a, b, c], wrong(7), TypeError, /options must be an object/],
    [[a, b, c], { serverTimeoutMs: 0 }, RangeError, /must be > 0/],
    [[a, b, c], { serverTimeoutMs: NaN }, RangeError, /must be > 0/],
    [[a, b, c], { serverTimeoutMs: wrong("1") }, TypeError, /be a number/],
    [[a, b, c], { onEvent: wrong("x") }, TypeError, /be a function/],
  ];
  for (const [targets, options, kind, text] of bad) {
    const error = assertThrows(() => redlock(targets, options), kind);
    assertMatch((error as Error).message, /^Cannot (set up|find)/);
    assertMatch((error as Error).message, text);
    assertFalse((error as Error).message.includes("secret"));
  }
  assertStrictEquals(redlock([a, b, c]).name, "redlock");
  // Two clients of one kind, each with a server of its own.
  redlock([client, { ...client }, a]);
});
