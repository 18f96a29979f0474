/** The waiting room at its edges, on a hand-cranked clock. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
} from "@std/assert";

import {
  acquireLock,
  type Backend,
  DistributedLock,
  forceRelease,
  inspectLock,
  LockBackendError,
  LockNotAcquiredError,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import type { Called, Line, Turn, Wish } from "../../../src/core/backend.ts";
import type { Clock } from "../../../src/core/clock.ts";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

const caught = (promise: Promise<unknown>) => promise.catch((error) => error);

/** Has the first question about `line` take so long on its way there. Gives how
 * many there have been. */
function delayFirst(line: Line, clock: FakeClock, ms: number): () => number {
  const { stand } = line;
  let times = 0;
  line.stand = async (...args) => {
    if (++times === 1) {
      await new Promise<void>((go) => void clock.setTimer(go, ms));
    }
    return await stand.apply(line, args);
  };
  return () => times;
}

test("a lock that was waited for is renewed only where that is wanted", async () => {
  const fake = new FakeClock();
  let reads = 0;
  // As a real one does, it moves on from one look to the next.
  const clock: Clock = {
    now: () => fake.now() + ++reads / 1_000,
    wall: () => fake.wall(),
    setTimer: (callback, ms) => fake.setTimer(callback, ms),
  };
  const on = memory({ clock });
  const options = { ttl: 10, waitMs: 1_000 };
  const first = await acquireLock(on, "k", options);
  const next = acquireLock(on, "k", options);
  await settle();
  await fake.advance(20);
  await first.release();
  const lock = await next;
  // The time of the turn runs out, and what looked after the attempt.
  await fake.advance(100);
  assertEquals(fake.pending, 0, "it is to be renewed");
  await fake.advance(10_000);
  assertEquals(lock.isAcquired(), false);
});

test("who comes during an attempt that is not answered is told so, and not that it is taken", async () => {
  const clock = new FakeClock();
  const on = frozen(memory({ clock }), "tryAcquire");
  on.line!.stand = () => new Promise(() => {});
  const first = caught(acquireLock(on, "k", { waitMs: 5_000 }));
  const second = caught(acquireLock(on, "k", { waitMs: 100 }));
  await settle();
  await clock.advance(120);
  assertInstanceOf(await second, LockBackendError);
  await clock.advance(5_000);
  assertInstanceOf(await first, LockBackendError);
});

test("a server that says nothing has not said to anybody that it is taken", async () => {
  for (const how of ["in strict order", "by other labels"]) {
    const clock = new FakeClock();
    const on = frozen(memory({ clock }), "tryAcquire");
    on.line!.stand = () => new Promise(() => {});
    const all = ["a", "b", "c"].map((label, i) => {
      const options = { waitMs: 200 + 100 * i, throwOnFail: false };
      const order = how === "in strict order" ? { localTurns: 0 } : { label };
      return caught(acquireLock(on, "k", { ...options, ...order }));
    });
    await settle();
    await clock.advance(1_000);
    for (const outcome of await Promise.all(all)) {
      assertInstanceOf(outcome, LockBackendError, how);
    }
  }
});

test("nobody overtakes who is on the way into the line", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand, open } = line;
  const slowly = far(clock, 1);
  const { tryAcquire, release } = on;
  on.tryAcquire = (...args) => slowly(() => tryAcquire.apply(on, args));
  on.release = (...args) => slowly(() => release.apply(on, args));
  line.stand = (...args) => slowly(() => stand.apply(line, args));
  line.open = (ears) => slowly(() => open.call(line, ears));
  const order: string[] = [];
  const come = async (who: string) => {
    const lock = await acquireLock(on, "k", { waitMs: 5_000, localTurns: 0 });
    order.push(who);
    return lock;
  };
  const first = come("a");
  const second = come("b");
  await clock.advance(2);
  const released = (await first).release();
  const others = [second, come("c")].map(async (it) => {
    await (await it).release();
  });
  await clock.advance(50);
  assertEquals(order, ["a", "b", "c"]);
  await Promise.all([released, ...others]);
});

test("a request that is never answered keeps nobody else waiting", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  line.stand = () => new Promise(() => {});
  const options = { waitMs: 500, localTurns: 0 };
  const holding = acquireLock(on, "k", options);
  const lost = caught(acquireLock(on, "k", options));
  const holder = await holding;
  await settle();
  line.stand = stand;
  await clock.advance(600);
  await lost;
  const next = caught(acquireLock(on, "k", { ...options, waitMs: 5_000 }));
  await clock.advance(300);
  await holder.release();
  await clock.advance(250);
  const lock = await Promise.race([next, settle()]);
  assertInstanceOf(lock, DistributedLock);
  await lock.release();
});

for (
  const [lost, isAnswer] of [
    ["attempt", false],
    ["attempt", true],
    ["question in passing", false],
    ["question in passing", true],
    ["place in line", false],
    ["place in line", true],
  ] as const
) {
  const what = isAnswer ? `lost answer to an ${lost}` : `lost ${lost}`;
  test(`a ${what} is waited for by nobody without end`, async () => {
    const clock = new FakeClock();
    const on = memory({ clock });
    const line = on.line!;
    const { tryAcquire } = on;
    const { stand } = line;
    let isLost = false;
    const loseOnce = <T>(send: () => Promise<T>): Promise<T> => {
      if (isLost) return send();
      isLost = true;
      if (isAnswer) void send();
      return new Promise(() => {});
    };
    const options = { ttl: 10, waitMs: Infinity, localTurns: 0 };
    const [one, other] = ["one", "other"].map((label) => ({
      ...options,
      label,
    }));
    if (lost === "attempt") {
      on.tryAcquire = (...args) => loseOnce(() => tryAcquire.apply(on, args));
    } else {
      line.stand = (wishes, isInPassing) =>
        isInPassing === (lost === "question in passing")
          ? loseOnce(() => stand.call(line, wishes, isInPassing))
          : stand.call(line, wishes, isInPassing);
    }
    const all: Promise<DistributedLock>[] = [];
    if (lost === "question in passing") {
      // The one whose attempt is under way has who comes after go in passing.
      const first = acquireLock(on, "k", options);
      all.push(acquireLock(on, "k", one), acquireLock(on, "k", other));
      const holder = await first;
      await settle();
      await holder.release();
    } else {
      const holder = lost === "place in line"
        ? await acquireLock(memory({ clock }), "k").then(() =>
          on.tryAcquire({ key: "k", owner: "x", ttlMs: 100 })
        )
        : undefined;
      assert(holder === undefined || holder.granted);
      all.push(acquireLock(on, "k", one), acquireLock(on, "k", other));
    }
    const had: number[] = [];
    for (const [i, waiting] of all.entries()) {
      void waiting.then(async (lock) => {
        had.push(i);
        assertEquals(await lock.release(), true);
      });
    }
    await clock.advance(6_000);
    assert(isLost, "nothing was lost");
    assertEquals(had.length, all.length);
  });
}

test("who came first is first also where the attempt was lost", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquire } = on;
  on.tryAcquire = () => {
    on.tryAcquire = tryAcquire;
    return new Promise(() => {});
  };
  const order: number[] = [];
  const all = [0, 1, 2].map(async (nth) => {
    const lock = await acquireLock(on, "k", { waitMs: Infinity });
    order.push(nth);
    await lock.release();
  });
  await clock.advance(6_000);
  await Promise.all(all);
  assertEquals(order, [0, 1, 2]);
});

test("a release that is lost keeps nobody from the line whom it was to put there", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const options = { ttl: 5, waitMs: Infinity, localTurns: 2 };
  const before = await acquireLock(on, "k", { ttl: 60 });
  const all = [1, 2, 3].map(() => acquireLock(on, "k", options));
  await settle();
  await before.release();
  const [first, second] = [await all[0], all[1]];
  await first.release();
  // The turn is over with the second, and the third is to stand behind.
  const { handOver } = line;
  line.handOver = () => {
    line.handOver = handOver;
    return new Promise(() => {});
  };
  void (await second).release();
  await clock.advance(8_000);
  (await Promise.race([all[2], settle().then(() => undefined)]))!.assertHeld();
});

test("who can't listen tries that again by and by", async () => {
  const { clock, line, waiting, holder } = await deaf(true);
  let opened = 0;
  const { open } = line;
  line.open = async (...args) => {
    opened++;
    await open.apply(line, args);
    line.inbox = "0";
    return true;
  };
  await clock.advance(10_000);
  assertEquals(opened, 1);
  await holder.release();
  await settle();
  (await waiting).assertHeld();
});

test("who is passed over again and again asks instead", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line as Line & { inbox: string | undefined };
  const { stand } = line;
  const names: string[] = [];
  let onGap = () => {};
  const { open } = line;
  line.open = (ears) => {
    onGap = ears.onGap;
    return open.call(line, ears);
  };
  // As told by a server that calls, and is heard by nobody.
  line.stand = async (wishes, isInPassing) => {
    const answers = await stand.call(line, wishes, isInPassing);
    return answers.map((answer, i) => {
      names.push(wishes[i].owner);
      return answer instanceof Error || answer.granted
        ? answer
        : { ...answer, isAnew: wishes[i].ticket !== undefined };
    });
  };
  const holder = await acquireLock(on, "k", { ttl: 60 });
  const waiting = acquireLock(on, "k", { ttl: 60, waitMs: Infinity });
  await settle();
  const isCalled = (name: string) => /^[0-9a-f]{32}@[0-9a-f]/.test(name);
  assert(isCalled(names.at(-1)!), `${names}`);
  await clock.advance(3_000);
  assertFalse(isCalled(names.at(-1)!));
  const before = names.length;
  await clock.advance(1_000);
  assert(names.length - before >= 5, "it does not ask");
  // Heard anew, it can be called.
  onGap();
  await settle();
  assert(isCalled(names.at(-1)!));
  await holder.release();
  await settle();
  (await waiting).assertHeld();
});

test("a long lease of one who has left is not that of the next", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await on.tryAcquire({ key: "k", owner: "dead", ttlMs: 3_000 });
  assert(holder.granted);
  const call = new AbortController();
  const { signal } = call;
  const long = caught(
    acquireLock(on, "k", { ttl: 60, waitMs: Infinity, signal }),
  );
  await settle();
  const short = acquireLock(on, "k", { ttl: 1, waitMs: Infinity });
  await settle();
  call.abort(new Error("enough"));
  await long;
  await clock.advance(3_100);
  const lock = await short;
  const { remainingMs } = await inspectLock(on, "k");
  assert(remainingMs! <= 1_000, `${remainingMs} ms`);
  assertEquals(await lock.release(), true);
});

test("what the server has refused is not taken for no answer", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquire } = on;
  const { stand } = on.line!;
  await acquireLock(on, "k", { ttl: 60 });
  const options = { waitMs: 100, throwOnFail: false } as const;
  // Whose it is, and for how long, is still to be asked.
  on.tryAcquire = (_claim, onRefused) => {
    onRefused?.();
    return new Promise(() => {});
  };
  const first = caught(acquireLock(on, "k", options));
  await clock.advance(150);
  assertEquals(await first, null);
  // Refused, it is to stand in line.
  on.tryAcquire = tryAcquire;
  on.line!.stand = () => new Promise(() => {});
  const second = caught(acquireLock(on, "k", options));
  await clock.advance(150);
  assertEquals(await second, null);
  on.line!.stand = stand;
});

test("all of a process ask in the same command, whenever they came", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const all: Promise<unknown>[] = [];
  for (let i = 0; i < 8; i++) {
    await acquireLock(on, `k${i}`, { ttl: 60 });
    all.push(caught(acquireLock(on, `k${i}`, { waitMs: 50_000 })));
    await clock.advance(310);
  }
  await clock.advance(5_000);
  const { stand } = line;
  let times = 0;
  line.stand = (...args) => (times++, stand.apply(line, args));
  await clock.advance(12_000);
  assert(times <= 10, `${times} questions in ten periods`);
  await clock.advance(50_000);
  await Promise.all(all);
});

test("who asks, and has no answer to one question, asks on", async () => {
  const { clock, line, holder, waiting } = await deaf();
  const { stand } = line;
  let isLost = false;
  line.stand = (...args) => {
    if (isLost) return stand.apply(line, args);
    isLost = true;
    return new Promise(() => {});
  };
  await clock.advance(500);
  assert(isLost);
  await holder.release();
  await clock.advance(2_000);
  (await Promise.race([waiting, settle().then(() => undefined)]))!.assertHeld();
});

test("who asks a server that says nothing does so less and less", async () => {
  const { clock, line, holder, waiting } = await deaf();
  const { stand } = line;
  let times = 0;
  line.stand = () => (times++, new Promise(() => {}));
  await clock.advance(30_000);
  assert(times > 2 && times <= 10, `${times} questions`);
  line.stand = stand;
  await holder.release();
  // By the next question, the pauses being twice as long each time.
  await clock.advance(10_000);
  (await waiting).assertHeld();
});

test("those who are asked for again are so together", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand, open } = line;
  let onGap = () => {};
  line.open = (ears) => {
    onGap = ears.onGap;
    return open.call(line, ears);
  };
  const holder = await acquireLock(on, "k", { ttl: 600 });
  const call = new AbortController();
  const options = { waitMs: 60_000, localTurns: 0, signal: call.signal };
  const all = Array.from(
    { length: 500 },
    () => caught(acquireLock(on, "k", options)),
  );
  await clock.advance(100);
  let times = 0;
  let arrive = () => {};
  const arrival = new Promise<void>((go) => arrive = go);
  line.stand = async (...args) => {
    times++;
    const answers = await stand.apply(line, args);
    await arrival;
    return answers;
  };
  onGap();
  await settle();
  // Once more, while the answers are on their way.
  onGap();
  arrive();
  await settle();
  assert(times >= 4 && times <= 6, `${times} commands for 500`);
  call.abort();
  await Promise.all(all);
  await holder.release();
});

test("a release that frees nothing asks once what has become of the key", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const call = new AbortController();
  const options = { ttl: 10, waitMs: 9_000, signal: call.signal };
  const first = await acquireLock(on, "k", options);
  const second = acquireLock(on, "k", options);
  await settle();
  await first.release();
  const lock = await second;
  const third = caught(acquireLock(on, "k", options));
  // Too late to pass the turn on.
  await clock.advance(12);
  let times = 0;
  line.stand = (...args) => (times++, stand.apply(line, args));
  line.handOver = () =>
    Promise.resolve({ verdict: "taken", next: undefined, called: undefined });
  assertEquals(await lock.release(), false);
  await settle();
  assertEquals(times, 1);
  call.abort();
  await third;
});

test("who is on the way into the line as the client ends blocks nobody", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand, open } = line;
  let onClosed = () => {};
  // For another key somebody is about to listen, and never gets there.
  line.open = (ears) => {
    onClosed = () => ears.onClosed();
    return new Promise(() => {});
  };
  await acquireLock(on, "other", { ttl: 600 });
  caught(acquireLock(on, "other", { waitMs: 60_000 }));
  const holder = await acquireLock(on, "k", { ttl: 600 });
  await settle();
  line.stand = () => new Promise(() => {});
  const strict = { waitMs: Infinity, localTurns: 0 };
  const all = [1, 2].map(() => caught(acquireLock(on, "k", strict)));
  await clock.advance(100);
  line.isClosed = () => true;
  line.stand = () => Promise.reject(new Error("Connection is closed."));
  onClosed();
  await clock.advance(1_000);
  for (const outcome of await Promise.all(all)) {
    assertInstanceOf(outcome, Error);
  }
  // It is connected again.
  line.isClosed = () => false;
  Object.assign(line, { stand, open });
  await holder.release();
  const next = caught(acquireLock(on, "k", { waitMs: 5_000 }));
  await clock.advance(6_000);
  assertInstanceOf(await next, DistributedLock);
});

test("several keys that are had in time are had, however far the server", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  // One after the other, as in a Cluster.
  on.tryAcquireAll = undefined;
  const slowly = far(clock, 10);
  const { tryAcquire, extend } = on;
  on.tryAcquire = (...args) => slowly(() => tryAcquire.apply(on, args));
  on.extend = (...args) => slowly(() => extend.apply(on, args));
  const taking = caught(acquireLock(on, ["a", "b"], { waitMs: 40, ttl: 30 }));
  await clock.advance(500);
  assertInstanceOf(await taking, DistributedLock);
});

test("what is said while one is asking is no older than the answer", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const holder = await acquireLock(on, "k", { ttl: 60 });
  const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 60_000 });
  await settle();
  let arrive = () => {};
  let isAsked = false;
  line.stand = async (...args) => {
    const answers = await stand.apply(line, args);
    isAsked = true;
    await new Promise<void>((go) => arrive = go);
    return answers;
  };
  // The next heartbeat, and what happens before its answer has arrived.
  await clock.advance(1_500);
  assert(isAsked);
  line.stand = stand;
  // And then it says no more.
  await holder.extend(0.1);
  arrive();
  await clock.advance(350);
  (await Promise.race([waiting, settle().then(() => undefined)]))!.assertHeld();
});

test("who comes during an attempt stands behind it", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k");
  const order: string[] = [];
  const all = ["a", "b", "c"].map(async (who) => {
    const lock = await acquireLock(on, "k", { waitMs: 10_000 });
    order.push(who);
    await lock.release();
  });
  await settle();
  await holder.release();
  await Promise.all(all);
  assertEquals(order, ["a", "b", "c"]);
});

test("a backend that throws where it should reject leaves nobody waiting", async () => {
  const on: Backend = memory({ clock: new FakeClock() });
  const { tryAcquire } = on;
  const broken = new Error("broken");
  on.tryAcquire = () => {
    throw broken;
  };
  for (let time = 0; time < 2; time++) {
    const options = { waitMs: Infinity };
    assertEquals(await caught(acquireLock(on, "k", options)), broken);
  }
  on.tryAcquire = tryAcquire;
  const lock = await acquireLock(on, "k", { waitMs: Infinity });
  assert(lock.isAcquired());
});

test("several keys are waited for no longer than one", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquireAll } = on;
  let answer = () => {};
  on.tryAcquireAll = async (claims, isFenced) => {
    const grants = await tryAcquireAll!.call(on, claims, isFenced);
    await new Promise<void>((resolve) => answer = resolve);
    return grants;
  };
  const waiting = caught(acquireLock(on, ["a", "b"], { waitMs: 100 }));
  await settle();
  await clock.advance(120);
  assertInstanceOf(await waiting, LockBackendError);
  // What is granted after that goes back.
  answer();
  await settle();
  on.tryAcquireAll = tryAcquireAll;
  const lock = await acquireLock(on, ["a", "b"], { throwOnFail: false });
  assert(lock?.isAcquired());
});

test("patience that runs out says where one stood, and for how long it is taken", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  await acquireLock(on, "k", { ttl: 10 });
  const options = { waitMs: 1_000, localTurns: 0 };
  const all = [1, 2].map(() => caught(acquireLock(on, "k", options)));
  await settle();
  await clock.advance(1_020);
  for (const [i, refused] of (await Promise.all(all)).entries()) {
    assertInstanceOf(refused, LockNotAcquiredError);
    assertEquals(refused.place, i + 1);
    assert(refused.retryAfterMs! > 8_000 && refused.retryAfterMs! <= 9_000);
  }
});

for (const within of [true, false]) {
  const when = within ? "in time" : "after the lease that is known here";
  test(`a late answer leaves alone what was handed to another process, ${when}`, async () => {
    const clock = new FakeClock();
    const on = memory({ clock });
    const { line } = on as { line: Line & { isOpen?: boolean } };
    // Looked after, as one that can be closed.
    line.isOpen = true;
    const { stand } = line!;
    const holder = await acquireLock(on, "k");
    // Somebody waits here all the while.
    await acquireLock(on, "other", { ttl: 600 });
    const call = new AbortController();
    const busy = caught(
      acquireLock(on, "other", { waitMs: Infinity, signal: call.signal }),
    );
    let isLate = false;
    let arrive = () => {};
    const arrival = new Promise<void>((go) => arrive = go);
    line!.stand = async (...wishes) => {
      const answers = await stand.apply(line, wishes);
      if (isLate) await arrival;
      return answers;
    };
    const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 10_000 });
    await settle();
    await clock.advance(100);
    // The next question, which comes after 1.2 s, has no answer for now.
    isLate = true;
    await clock.advance(1_300);
    await holder.release();
    const json = JSON.stringify(await waiting);
    const resumed = await DistributedLock.resume(on, json);
    if (!within) {
      await resumed.extend(60);
      await clock.advance(12_000);
    }
    arrive();
    await settle();
    await resumed.extend();
    assertEquals(await resumed.release(), true);
    call.abort();
    await busy;
  });
}

test("tokens rise however many a turn may serve", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const options = {
    waitMs: 10_000,
    fencing: true,
    localTurns: Number.MAX_SAFE_INTEGER,
  };
  const tokens: number[] = [];
  for (let turn = 0; turn < 3; turn++) {
    const holder = await acquireLock(on, "k", { label: "another" });
    const waiting = acquireLock(on, "k", options);
    await settle();
    await holder.release();
    const lock = await waiting;
    tokens.push(lock.fencingToken!);
    await lock.release();
  }
  assert(tokens.every(Number.isSafeInteger), `${tokens}`);
  assert(tokens[0] < tokens[1] && tokens[1] < tokens[2], `${tokens}`);
});

test("who was long on the way into the line keeps the place there", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  const { stand } = line!;
  const holder = await acquireLock(on, "k");
  let arrive = () => {};
  const delay = new Promise<void>((go) => arrive = go);
  // As during a failover: sent again, and answered when there is a server.
  line!.stand = async (...wishes) => {
    await delay;
    return await stand.apply(line, wishes);
  };
  const order: string[] = [];
  const wait = async (who: string) => {
    const options = { ttl: 2, waitMs: 30_000, localTurns: 0 };
    const lock = await acquireLock(on, "k", options);
    order.push(who);
    lock.assertHeld();
    assertEquals(await lock.release(), true);
  };
  const first = wait("first");
  await settle();
  await clock.advance(3_000);
  arrive();
  await settle();
  line!.stand = stand;
  const second = wait("second");
  await settle();
  assertEquals(await holder.release(), true);
  await Promise.all([first, second]);
  assertEquals(order, ["first", "second"]);
});

test("a call that comes before the answer that puts one in line is heard", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  const { stand } = line!;
  const holder = await acquireLock(on, "k");
  let answer = () => {};
  line!.stand = async (...wishes) => {
    const answers = await stand.apply(line, wishes);
    await new Promise<void>((go) => answer = go);
    return answers;
  };
  const options = { ttl: 10, waitMs: 5_000, localTurns: 0 };
  let lock: DistributedLock | undefined;
  acquireLock(on, "k", options).then((it) => lock = it);
  await settle();
  assertEquals(await holder.release(), true);
  await settle();
  // By no other way than the call: no time has passed.
  assert(lock !== undefined, "it waits for an answer");
  line!.stand = stand;
  answer();
  await settle();
  lock.assertHeld();
  assertEquals(await lock.release(), true);
  const next = await acquireLock(on, "k", { throwOnFail: false });
  assert(next?.isAcquired());
});

test("a call that comes late is a lease that began before", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  const { open } = line!;
  let leftMs = 0;
  let deliver = () => {};
  line!.open = (ears) =>
    open.call(line, {
      ...ears,
      onTurn(owner, turn) {
        leftMs = turn.leftMs;
        deliver = () => ears.onTurn(owner, turn);
      },
    });
  const holder = await acquireLock(on, "k");
  const options = { ttl: 10, waitMs: 5_000, localTurns: 0 };
  const waiting = acquireLock(on, "k", options);
  await settle();
  assertEquals(await holder.release(), true);
  await settle();
  assert(leftMs > 1_000, `${leftMs}`);
  const LATE_MS = 800;
  await clock.advance(LATE_MS);
  deliver();
  const lock = await waiting;
  const mostMs = leftMs - LATE_MS;
  assert(lock.remainingMs <= mostMs, `${lock.remainingMs} of ${mostMs}`);
  assert(lock.remainingMs > 0);
});

test("a call counts from the first question, however often it was asked", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  const { open, stand, handOver } = line!;
  let call = (_: Called) => {};
  line!.open = (ears) => {
    call = ({ owner, turn }) => ears.onTurn(owner, turn);
    return open.call(line, ears);
  };
  const first = await acquireLock(on, "k", { waitMs: 9_000 });
  const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 9_000 });
  await settle();
  await clock.advance(12);
  const between = acquireLock(on, "k", { waitMs: 9_000, label: "other" });
  await settle();
  // The release has the second stand behind that one, and has no answer.
  let lose = () => {};
  const loss = new Promise<void>((go) => lose = go);
  line!.handOver = async (...args) => {
    await handOver.apply(line, args);
    await loss;
    throw new Error("the connection was cut");
  };
  const released = caught(first.release());
  await clock.advance(1_200);
  let late: Called | undefined;
  line!.handOver = async (...args) => {
    const { called, ...rest } = await handOver.apply(line, args);
    late = called;
    return rest;
  };
  await (await between).release();
  const endsAt = clock.now() + 10_000;
  await clock.advance(300);
  // Now it is asked for again, and that is long under way, as the call is.
  let arrive = () => {};
  const arrival = new Promise<void>((go) => arrive = go);
  line!.stand = async (...args) => {
    await arrival;
    return await stand.apply(line, args);
  };
  lose();
  await released;
  await clock.advance(500);
  call(late!);
  const lock = await waiting;
  const mostMs = endsAt - clock.now();
  assert(lock.remainingMs > 0);
  assert(lock.remainingMs <= mostMs, `${lock.remainingMs} of ${mostMs}`);
  arrive();
  assertEquals(await lock.release(), true);
});

test("an attempt that is answered too late is taken back, and not renewed", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquire } = on;
  on.tryAcquire = async (claim) => {
    const answer = await tryAcquire.call(on, claim);
    await new Promise<void>((go) => void clock.setTimer(go, 300));
    return answer;
  };
  const options = { ttl: 60, waitMs: 100, autoExtend: true };
  const waiting = caught(acquireLock(on, "k", options));
  await clock.advance(200);
  assertInstanceOf(await waiting, LockBackendError);
  await clock.advance(200);
  assertEquals((await inspectLock(on, "k")).held, false);
  assertEquals(clock.pending, 0, "it is to be renewed");
});

test("who came after an attempt that fails goes on by itself", async () => {
  const on = memory({ clock: new FakeClock() });
  const { tryAcquire } = on;
  const broken = new Error("broken");
  let fail = () => {};
  on.tryAcquire = () =>
    new Promise((_, reject) => {
      fail = () => reject(broken);
      on.tryAcquire = tryAcquire;
    });
  const first = caught(acquireLock(on, "k", { waitMs: Infinity }));
  const second = caught(acquireLock(on, "k", { waitMs: Infinity }));
  await settle();
  fail();
  assertEquals(await first, broken);
  await settle();
  const lock = await Promise.race([second, settle()]);
  assertInstanceOf(lock, DistributedLock);
  await lock.release();
});

for (const waitMs of [60_000, Infinity]) {
  const how = waitMs === Infinity ? "without end" : "with an end";
  const slow = async (isOneAnswered: boolean) => {
    const clock = new FakeClock();
    const on = memory({ clock });
    const line = on.line!;
    const { tryAcquire } = on;
    on.tryAcquire = (claim) =>
      claim.key === "answered"
        ? tryAcquire.call(on, claim)
        : new Promise(() => {});
    const asked = new Set<string>();
    line.stand = (wishes) => {
      for (const { key } of wishes) asked.add(key);
      return new Promise(() => {});
    };
    const call = new AbortController();
    const options = { waitMs, signal: call.signal };
    const all = Array.from(
      { length: 20 },
      (_, i) => caught(acquireLock(on, `k${i}`, options)),
    );
    await clock.advance(100);
    if (isOneAnswered) await acquireLock(on, "answered", options);
    await clock.advance(3_000);
    call.abort();
    await Promise.all(all);
    return asked.size;
  };

  test(`where all is slow, one of many attempts ${how} is repeated, now and then`, async () => {
    const count = await slow(false);
    assert(count > 0 && count <= 3, `${count} were asked for again`);
  });

  test(`all attempts ${how} are lost that were sent before an answered one`, async () => {
    assertEquals(await slow(true), 20);
  });
}

test("what is granted in passing, and whose answer is lost, is taken back", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  let arrive = () => {};
  line.stand = (wishes, isInPassing) => {
    if (!isInPassing) return stand.call(line, wishes, isInPassing);
    arrive = () => void stand.call(line, wishes, isInPassing);
    return new Promise(() => {});
  };
  const options = { ttl: 60, waitMs: 30_000 };
  const first = await acquireLock(on, "k", { ...options, label: "one" });
  const second = acquireLock(on, "k", { ...options, label: "other" });
  await settle();
  await first.release();
  arrive();
  assertEquals((await inspectLock(on, "k")).held, true);
  await clock.advance(3_000);
  (await Promise.race([second, settle().then(() => undefined)]))!.assertHeld();
});

test("a question that comes after the word that one leaves puts nobody in line", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const holder = await acquireLock(on, "k");
  let arrive = () => {};
  const way = new Promise<void>((go) => arrive = go);
  line.stand = async (...args) => {
    await way;
    return await stand.apply(line, args);
  };
  const call = new AbortController();
  const options = { waitMs: Infinity, signal: call.signal };
  const waiting = caught(acquireLock(on, "k", options));
  await settle();
  call.abort();
  await waiting;
  arrive();
  await settle();
  assertEquals((await inspectLock(on, "k")).waiting, 0);
  await holder.release();
});

test("a failure that was got over is not what one is told in the end", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const holder = await acquireLock(on, "k", { ttl: 60 });
  const options = { waitMs: 10_000, throwOnFail: false } as const;
  const waiting = caught(acquireLock(on, "k", options));
  await settle();
  line.stand = () => {
    line.stand = stand;
    return Promise.reject(new Error("Connection is closed."));
  };
  await clock.advance(10_100);
  assert(line.stand === stand, "nothing has failed");
  assertEquals(await waiting, null);
  await holder.release();
});

test("a turn that is heard of too late is given back", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const first = await acquireLock(on, "k", { waitMs: 1_000 });
  // The lease counts from when it was sent.
  const times = delayFirst(on.line!, clock, 1_100);
  const options = { ttl: 1, waitMs: 60_000, label: "another" };
  const second = acquireLock(on, "k", options);
  await settle();
  await first.release();
  await clock.advance(1_110);
  const lock = await Promise.race([second, settle().then(() => undefined)]);
  assert(times() > 1);
  lock!.assertHeld();
  await lock!.release();
});

test("a turn is passed on no more once half of its lease is gone", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquire } = on;
  on.tryAcquire = async (claim) => {
    const answer = await tryAcquire.call(on, claim);
    // It has a turn of ten milliseconds ahead, and less than half of the lease.
    await new Promise<void>((go) => void clock.setTimer(go, 600));
    return answer;
  };
  const options = { ttl: 1, waitMs: 60_000 };
  const first = acquireLock(on, "k", options);
  const second = acquireLock(on, "k", options);
  await clock.advance(600);
  await (await first).release();
  const { remainingMs } = await second;
  assert(remainingMs > 900, `${remainingMs} ms`);
  await (await second).release();
});

test("a turn serves as many as the strictest of those whom it serves allows", async () => {
  for (const isAttempt of [true, false]) {
    const clock = new FakeClock();
    const on = memory({ clock });
    const wait = (localTurns: number) =>
      acquireLock(on, "k", { waitMs: 10_000, localTurns });
    const holder = isAttempt ? undefined : await acquireLock(on, "k");
    const all = [wait(2), wait(16), wait(16)];
    await settle();
    const stranger = { key: "k", owner: "another", ttlMs: 60_000, tokens: 0 };
    await on.line!.stand([stranger]);
    await holder?.release();
    await (await all[0]).release();
    await (await all[1]).release();
    await settle();
    assertEquals((await on.inquire!(stranger)).verdict, "done");
    await on.release(stranger);
    await (await all[2]).release();
  }
});

test("a lease that may be cut short is passed on to nobody", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { extend } = on;
  const options = { ttl: 10, waitMs: 60_000 };
  const first = await acquireLock(on, "k", options);
  const second = acquireLock(on, "k", options);
  await settle();
  let arrive = () => {};
  on.extend = (...args) => {
    on.extend = extend;
    // Given up by the client, and still on its way.
    arrive = () => void extend.apply(on, args);
    const error = new LockBackendError("k", "Command timed out");
    return Promise.resolve([error]);
  };
  assertInstanceOf(await caught(first.extend(3)), LockBackendError);
  await first.release();
  const lock = await second;
  // It has all of its lease by then.
  await clock.advance(2_500);
  arrive();
  await clock.advance(4_000);
  const { verdict } = await on.inquire!({ key: "k", owner: lock.owner });
  assertEquals([verdict, lock.isAcquired()], ["done", true]);
  await lock.release();
});

test("no lock is given of whose lease no more is left than clocks may differ", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const first = await acquireLock(on, "k", { waitMs: 1_000 });
  delayFirst(on.line!, clock, 995);
  const options = { ttl: 1, waitMs: 60_000, label: "another" };
  const second = acquireLock(on, "k", options);
  let isHeld: boolean | undefined;
  void second.then((lock) => isHeld = lock.isAcquired());
  await settle();
  await first.release();
  await clock.advance(1_100);
  assertEquals(isHeld, true);
  await (await second).release();
});

test("by another name one stands for the same, whoever has left", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line as Line & { inbox: string | undefined };
  const { open, stand } = line;
  let onGap = () => {};
  line.open = async (ears) => {
    onGap = ears.onGap;
    await open.call(line, ears);
    line.inbox = undefined;
    return false;
  };
  const wishes: Wish[] = [];
  line.stand = (all, ...rest) => {
    wishes.push(...all);
    return stand.call(line, all, ...rest);
  };
  const holder = await acquireLock(on, "k", { ttl: 60 });
  const call = new AbortController();
  const options = { waitMs: 60_000, fencing: true };
  const { signal } = call;
  const first = caught(
    acquireLock(on, "k", { ...options, ttl: 60, localTurns: 16, signal }),
  );
  const second = acquireLock(on, "k", { ...options, ttl: 1, localTurns: 2 });
  await clock.advance(500);
  call.abort();
  await first;
  line.inbox = "0";
  onGap();
  await settle();
  const renamed = wishes.find(({ former }) => former !== undefined)!;
  const before = wishes.find(({ owner }) => owner === renamed.former)!;
  assertEquals(
    [renamed.ttlMs, renamed.tokens],
    [before.ttlMs, before.tokens],
  );
  await holder.release();
  await settle();
  await (await second).release();
});

for (const isResent of [true, false]) {
  const how = isResent ? "and that is sent again" : "and that fails";
  for (const isOneParty of [true, false]) {
    const who = isOneParty ? "who is left of us" : "others of us";
    test(`a release whose answer is lost has all of us ask: ${who}, ${how}`, async () => {
      const clock = new FakeClock();
      const on = memory({ clock });
      const line = on.line!;
      const { handOver } = line;
      const options = { ttl: 60, waitMs: 60_000 };
      const strict = { ...options, localTurns: 0 };
      const holder = await acquireLock(on, "k", options);
      const first = acquireLock(on, "k", options);
      await settle();
      await holder.release();
      const lock = await first;
      const next = acquireLock(on, "k", isOneParty ? options : strict);
      // Too late to pass the turn on, and too soon to stand in line alone.
      await clock.advance(12);
      line.handOver = async (...args) => {
        line.handOver = handOver;
        await handOver.apply(line, args);
        if (isResent) return { verdict: "absent" };
        throw new Error("the connection was cut");
      };
      const releasing = caught(lock.release());
      await settle();
      if (isResent) assertEquals(await releasing, false);
      (await Promise.race([next, settle().then(() => undefined)]))!
        .assertHeld();
      await (await next).release();
      await caught(releasing);
    });
  }
}

test("a call that comes late is no younger where the server's clock runs faster", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { open, stand } = line;
  let call = (_owner: string, _turn: Turn) => {};
  line.open = (ears) => {
    call = ears.onTurn;
    return open.call(line, ears);
  };
  const holder = await acquireLock(on, "k", { ttl: 600 });
  const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 600_000 });
  await settle();
  let owner = "";
  let asked: number;
  line.stand = async (wishes, ...rest) => {
    line.stand = () => new Promise(() => {});
    [{ owner }] = wishes;
    asked = clock.now();
    return await stand.call(line, wishes, ...rest);
  };
  await clock.advance(1_500);
  const at = asked!;
  // What are 40 s there is less by five per mille here.
  await clock.advance(at + 39_800 - clock.now());
  const endsAt = clock.now() + 2_000;
  await clock.advance(500);
  call(owner, { granted: true, leftMs: 2_000, at: at + 40_000 });
  const lock = await waiting;
  assert(lock.remainingMs > 0);
  const mostMs = endsAt - clock.now();
  assert(lock.remainingMs <= mostMs, `${lock.remainingMs} of ${mostMs}`);
  void holder;
});

test("an answer that has come by the end of a stall is no silence", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { tryAcquire } = on;
  let arrive = () => {};
  on.tryAcquire = async (claim) => {
    const answer = await tryAcquire.call(on, claim);
    await new Promise<void>((go) => arrive = go);
    return answer;
  };
  const taking = caught(acquireLock(on, "k", { ttl: 60, waitMs: 100 }));
  await settle();
  clock.stall(5_000);
  // All that is due comes before what is to be read.
  await clock.advance(1);
  arrive();
  const lock = await taking;
  assertInstanceOf(lock, DistributedLock);
  await lock.release();
});

test("who waits learns of an end that is made sooner", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { owner } = await acquireLock(on, "k", { ttl: 60 });
  const waiting = acquireLock(on, "k", { waitMs: 60_000 });
  await clock.advance(1_300);
  const left = await on.prolong!({ key: "k", owner }, -58_500);
  assertEquals(left.leftMs, 200);
  await clock.advance(250);
  const lock = await Promise.race([waiting, settle().then(() => undefined)]);
  lock!.assertHeld();
  await lock!.release();
});

test("who is called, and whose first question was long under way, loses no turn", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const holder = await acquireLock(on, "k", { ttl: 60 });
  // There at once, and answered by a server that stands still since.
  line.stand = (...args) => {
    if (args[1] !== true) {
      void stand.apply(line, args);
      line.stand = () => new Promise(() => {});
    }
    return new Promise(() => {});
  };
  const waiting = acquireLock(on, "k", { ttl: 2, waitMs: 60_000 });
  await settle();
  const behind = { key: "k", owner: "another", ttlMs: 10_000, tokens: 0 };
  await stand.call(line, [behind]);
  await clock.advance(4_000);
  line.stand = stand;
  await holder.release();
  await settle();
  const lock = await Promise.race([waiting, settle().then(() => undefined)]);
  lock!.assertHeld();
  await lock!.release();
});

test("finding out whether there is a line counts into patience", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  const findLine = async () => {
    await new Promise<void>((go) => void clock.setTimer(go, 80));
    return world.line;
  };
  const on = new Proxy(world, {
    get(target, name) {
      if (name === "line") return undefined;
      if (name === "findLine") return findLine;
      const value = Reflect.get(target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const holder = await acquireLock(on, "k", { ttl: 60 });
  let outcome: unknown;
  void caught(acquireLock(on, "k", { waitMs: 100 })).then((it) => outcome = it);
  await clock.advance(120);
  assertInstanceOf(outcome, LockNotAcquiredError);
  await holder.release();
});

test("who comes after one who had it at the first try has a token of its own", async () => {
  const clock = new FakeClock();
  for (const [one, other] of [[true, true], [true, false], [false, true]]) {
    const on = memory({ clock });
    const options = { ttl: 10, waitMs: 10_000 };
    const first = await acquireLock(on, "k", { ...options, fencing: one });
    const next = acquireLock(on, "k", { ...options, fencing: other });
    await settle();
    await first.release();
    const second = await next;
    assertEquals(second.fencingToken !== undefined, other);
    if (one && other) assert(second.fencingToken! > first.fencingToken!);
    await second.release();
  }
});

test("whoever has it before, one is shown by one's own label", async () => {
  for (const isAttempt of [true, false]) {
    const clock = new FakeClock();
    const on = memory({ clock });
    const options = { ttl: 10, waitMs: 10_000 };
    const holder = isAttempt ? undefined : await acquireLock(on, "k");
    const all = ["one", "other", undefined].map((label) =>
      acquireLock(on, "k", { ...options, label })
    );
    await settle();
    await holder?.release();
    for (const [i, label] of ["one", "other", undefined].entries()) {
      const lock = await all[i];
      assertEquals((await inspectLock(on, "k")).label, label);
      await lock.release();
    }
  }
});

test("tokens do not run ahead of the clock, however many a turn may serve", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k", { label: "another" });
  const options = { waitMs: 10_000, fencing: true };
  const waiting = acquireLock(on, "k", { ...options, localTurns: 1e6 });
  await settle();
  await holder.release();
  const { fencingToken } = await waiting;
  const last = (await inspectLock(on, "k")).fencingToken!;
  assert(last > fencingToken!);
  assert(last < fencingToken! + 1_000, `${last - fencingToken!} were drawn`);
  await (await waiting).release();
});

test("who has a key by a turn is told at once that it is ended by force", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k");
  const waiting = acquireLock(on, "k", { ttl: 60, waitMs: 60_000 });
  await settle();
  await holder.release();
  const lock = await waiting;
  const { signal } = lock;
  assertEquals(await forceRelease(on, "k"), true);
  // With no time gone by in which it could have asked.
  assert(signal.aborted);
  assertEquals(signal.reason.reason, "deleted");
});

test("what no patience will change is told at once, and no place is left", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  const holder = await acquireLock(on, "k", { ttl: 60 });
  const waiting = caught(acquireLock(on, "k", { waitMs: Infinity }));
  await settle();
  assertEquals((await inspectLock(on, "k")).waiting, 1);
  const denied = new LockBackendError("k", "Cannot ask", undefined, "NOPERM");
  line.stand = () => Promise.resolve([denied]);
  await clock.advance(1_500);
  assertEquals(await Promise.race([waiting, settle()]), denied);
  line.stand = stand;
  assertEquals((await inspectLock(on, "k")).waiting, 0);
  await holder.release();
});

test("who has a key by a turn listens on for as long as that", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line as Line & {
    inbox: string | undefined;
    isOpen?: boolean;
    close?(): void;
  };
  let closed = 0;
  line.isOpen = true;
  line.close = () => {
    closed++;
    line.inbox = undefined;
  };
  const holder = await acquireLock(on, "k");
  const waiting = acquireLock(on, "k", { ttl: 60, waitMs: 60_000 });
  await settle();
  await holder.release();
  const lock = await waiting;
  await clock.advance(30_000);
  assertEquals(closed, 0);
  await lock.release();
  await clock.advance(3_000);
  assertEquals(closed, 1);
});

test("who could not listen tries that anew when somebody waits later", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line as Line & { inbox: string | undefined };
  const { open } = line;
  let opened = 0;
  line.open = async (ears) => {
    opened++;
    await open.call(line, ears);
    line.inbox = undefined;
    return false;
  };
  const wait = async () => {
    const holder = await acquireLock(on, "k");
    const waiting = acquireLock(on, "k", { waitMs: 60_000 });
    await clock.advance(100);
    await holder.release();
    await clock.advance(300);
    await (await waiting).release();
  };
  await wait();
  assertEquals(opened, 1);
  await clock.advance(10_000);
  await wait();
  assertEquals(opened, 2);
});

test("several keys are not taken before who stands in line for one", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  await acquireLock(on, "k", { ttl: 10 });
  const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 60_000 });
  await settle();
  // It has run out, and nobody has looked so far.
  clock.stall(10_001);
  const both = ["k", "l"];
  assertEquals(await acquireLock(on, both, { throwOnFail: false }), null);
  await clock.advance(10);
  const lock = await waiting;
  lock.assertHeld();
  await lock.release();
});

test("a turn serves no more than it has tokens for", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k", { label: "another" });
  const options = { waitMs: 10_000, fencing: true, localTurns: 1_000 };
  const all = Array.from(
    { length: 120 },
    () => acquireLock(on, "k", options),
  );
  await settle();
  await holder.release();
  let before = 0;
  for (const waiting of all) {
    const lock = await waiting;
    const token = lock.fencingToken!;
    const { fencingToken } = await inspectLock(on, "k");
    assert(token > before, `${token} after ${before}`);
    assert(token <= fencingToken!, `${token}, of which nobody knows`);
    before = token;
    await lock.release();
  }
});

test("who can be called no more asks at once, and that is told once", async () => {
  const clock = new FakeClock();
  const failed: string[] = [];
  const on = memory({
    clock,
    onEvent: ({ type, key }) => {
      if (type === "push-failed") failed.push(key);
    },
  });
  const line = on.line as Line & { inbox: string | undefined };
  const { open, stand } = line;
  let onDeaf = (_: unknown) => {};
  line.open = (ears) => {
    onDeaf = ears.onDeaf;
    return open.call(line, ears);
  };
  const keys = ["k", "l"];
  const holders = await Promise.all(keys.map((key) => acquireLock(on, key)));
  const all = keys.map((key) => acquireLock(on, key, { waitMs: 60_000 }));
  await settle();
  const names: string[] = [];
  line.stand = (wishes, ...rest) => {
    names.push(...wishes.map(({ owner }) => owner));
    return stand.call(line, wishes, ...rest);
  };
  line.inbox = undefined;
  for (let times = 0; times < 2; times++) {
    onDeaf(new Error("The connection to listen by is lost"));
    await settle();
  }
  // By their names of before, and then by such as nobody tries to call.
  assert(names.length >= 4, `${names}`);
  assert(names.slice(-2).every((name) => name.endsWith("@")), `${names}`);
  assertEquals(failed, keys);
  await Promise.all(holders.map((holder) => holder.release()));
  await clock.advance(300);
  for (const waiting of all) await (await waiting).release();
});

/** Somebody waits who can't be called so far, and one of another process behind;
 * whether that is known to last. */
async function deaf(isForGood = false) {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on as {
    line: Line & { inbox: string | undefined; isOpen?: boolean };
  };
  if (isForGood) line.isOpen = false;
  const { open } = line;
  let onGap = () => {};
  line.open = async (ears) => {
    onGap = ears.onGap;
    await open.call(line, {
      ...ears,
      onTurn(owner, turn) {
        // A turn of who has no inbox comes in silence.
        if (owner.endsWith("@0")) ears.onTurn(owner, turn);
      },
    });
    line.inbox = undefined;
    return false;
  };
  const holder = await acquireLock(on, "k");
  const waiting = acquireLock(on, "k", { ttl: 10, waitMs: 60_000 });
  await settle();
  const behind = { key: "k", owner: "another", ttlMs: 10_000, tokens: 0 };
  await line.stand([{ ...behind, ticket: undefined }]);
  await clock.advance(200);
  const listen = () => {
    line.inbox = "0";
    onGap();
  };
  return { clock, line, holder, listen, waiting };
}

test("who can be called by now has no turn taken that came in silence", async () => {
  const { holder, listen, waiting } = await deaf();
  await holder.release();
  listen();
  await settle();
  (await waiting).assertHeld();
});

test("who stands by another name from now on loses no turn by that", async () => {
  const { line, holder, listen, waiting } = await deaf();
  const { stand } = line;
  let released = false;
  line.stand = async (wishes, ...rest) => {
    // Between the answer that shows it and the new name.
    if (!released && wishes.some(({ owner }) => owner.endsWith("@0"))) {
      released = true;
      await holder.release();
    }
    return await stand.call(line, wishes, ...rest);
  };
  listen();
  await settle();
  assert(released);
  (await waiting).assertHeld();
});

test("who can be called by now asks no more often than others", async () => {
  const { clock, line, holder, listen, waiting } = await deaf();
  const { stand } = line;
  let arrive = () => {};
  const arrival = new Promise<void>((go) => arrive = go);
  line.stand = async (...args) => {
    const answers = await stand.apply(line, args);
    await arrival;
    return answers;
  };
  // Everybody is asking at that moment.
  await clock.advance(2_000);
  listen();
  arrive();
  await settle();
  let times = 0;
  line.stand = (...args) => (times++, stand.apply(line, args));
  await clock.advance(10_000);
  assert(times <= 10, `${times} questions in ten seconds`);
  await holder.release();
  (await waiting).assertHeld();
});

test("a short turn is not passed on to one who wanted a long one", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k");
  const short = acquireLock(on, "k", { ttl: 0.3, waitMs: 5_000 });
  const long = acquireLock(on, "k", { ttl: 60, waitMs: 5_000 });
  await settle();
  await holder.release();
  await (await short).release();
  const { remainingMs } = await long;
  assert(remainingMs > 1_900, `${remainingMs} ms`);
});

test("who is behind a short lease knows when it is over", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k");
  const brief = { ttl: 0.3, waitMs: 60_000, label: "brief" };
  const first = acquireLock(on, "k", brief);
  await settle();
  const second = acquireLock(on, "k", { waitMs: 60_000 });
  await settle();
  await clock.advance(100);
  await holder.release();
  // It is not given back, and not renewed.
  await first;
  await clock.advance(320);
  const next = acquireLock(on, "k", { waitMs: 60_000, label: "next" });
  (await second).assertHeld();
  await clock.advance(100);
  // The same where the holder itself makes it short.
  await (await second).extend(0.3);
  await clock.advance(320);
  (await next).assertHeld();
});

test("a lease shorter than the way to the server is asked for in peace, and that is said", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  const { open, stand } = line!;
  line!.open = (ears) =>
    open.call(line, {
      ...ears,
      onTurn: (...turn) => clock.setTimer(() => ears.onTurn(...turn), 50),
    });
  let times = 0;
  line!.stand = async (...args) => {
    times++;
    const answers = await stand.apply(line, args);
    await new Promise<void>((go) => clock.setTimer(go, 50));
    return answers;
  };
  const holder = await acquireLock(on, "k");
  const waiting = caught(
    acquireLock(on, "k", { ttl: 0.02, waitMs: 3_000.4 }),
  );
  await settle();
  await holder.release();
  await clock.advance(3_020);
  const error = await waiting;
  assertInstanceOf(error, LockBackendError);
  assertEquals(
    error.message,
    'Cannot wait for "k": the answer took 50 ms, longer than the lease',
  );
  assert(times < 25, `asked for ${times} times`);
});

test("who has hardly any patience is told for how long it is taken, too", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const { line } = on;
  // It takes longer to listen than that.
  line!.open = () => new Promise(() => {});
  const holder = await acquireLock(on, "k", { ttl: 10 });
  const waiting = caught(acquireLock(on, "k", { waitMs: 1.5 }));
  await settle();
  await clock.advance(30);
  const error = await waiting;
  assertInstanceOf(error, LockNotAcquiredError);
  assertEquals(error.retryAfterMs, 10_000 - 1);
  await holder.release();
});

test("a long lease is not passed on to one who wanted a short one", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const holder = await acquireLock(on, "k");
  const long = acquireLock(on, "k", { ttl: 60, waitMs: 5_000 });
  const short = acquireLock(on, "k", { ttl: 0.3, waitMs: 5_000 });
  await settle();
  assertEquals(await holder.release(), true);
  const first = await long;
  // It has all of its lease by then, and time enough is left of the turn.
  await first.extend();
  assertEquals(await first.release(), true);
  const second = await short;
  assert(second.remainingMs <= 300, `${second.remainingMs} ms`);
  await clock.advance(310);
  assertEquals(second.isAcquired(), false);
  const next = await acquireLock(on, "k", { throwOnFail: false });
  assert(next?.isAcquired(), "it is kept for longer than was wanted");
});

test("a turn that is outlasted by a hair costs no command of its own", async () => {
  const clock = new FakeClock();
  const on = memory({ clock });
  const line = on.line!;
  const { stand } = line;
  let stood = 0;
  line.stand = (...args) => (stood++, stand.apply(line, args));
  const holder = await acquireLock(on, "k");
  const [a, b, c, d] = Array.from(
    { length: 4 },
    () => acquireLock(on, "k", { waitMs: 10_000 }),
  );
  await settle();
  await holder.release();
  const first = await a;
  stood = 0;
  await clock.advance(6);
  await first.release();
  const second = await b;
  await clock.advance(6);
  // Too late to pass it on: who is left stands in line by the release.
  await second.release();
  const third = await c;
  assertEquals(stood, 0);
  // Held for longer, the others stand there meanwhile.
  await clock.advance(20);
  assertEquals(stood, 1);
  await third.release();
  await (await d).release();
});

/** Asks a server to which it takes so long there, and as long back. */
function far(clock: Clock, ms: number) {
  const way = () => new Promise<void>((go) => void clock.setTimer(go, ms));
  return async <T>(ask: () => Promise<T>): Promise<T> => {
    await way();
    const answer = await ask();
    await way();
    return answer;
  };
}

/** The same, but `name` is never answered. */
function frozen(on: Backend, name: "tryAcquire"): Backend {
  on[name] = () => new Promise(() => {});
  return on;
}
