/**
 * How a member of a quorum tells of a release, wherever it lives: whom, in what
 * order, and for how long it keeps the key for them.
 */
import { assert, assertEquals, assertFalse } from "@std/assert";

import type { Backend } from "@dreamer/utils/lock";
import { test } from "../support/test.ts";
import { until } from "../support/until.ts";

/** Where the suite runs. */
export interface NoticesWorld extends AsyncDisposable {
  /** One server, as two processes have it. */
  readonly on: Backend;
  readonly there: Backend;
  /** How many keys there are for `key`. */
  keysLeft(key: string): Promise<number>;
}

/** An ear of one process, and what it heard: each name once. */
async function listenAt(on: Backend) {
  const heard: string[] = [];
  const all = new Set<string>();
  const hearing = on.notices!.listen({
    onNotice(name) {
      // Each master of a Cluster may tell of the same.
      if (!all.has(name)) heard.push(name);
      all.add(name);
    },
    onGap() {},
  });
  await hearing.opened;
  const { inbox } = hearing;
  assert(inbox !== undefined, "nothing is heard");
  const hears = (...names: string[]) =>
    until(`${names} is told`, () => heard.length >= names.length)
      .then(() => assertEquals(heard.splice(0), names));
  return { inbox, heard, hears, close: () => hearing.close() };
}

/** Runs the suite in the world that `open` opens, once for each test. */
export function noticesContract(
  name: string,
  open: () => Promise<NoticesWorld>,
): void {
  let serial = 0;

  function tells(
    sentence: string,
    fn: (world: NoticesWorld, key: string) => Promise<void>,
  ): void {
    test(`${name}: notices: ${sentence}`, async () => {
      const key = `notices:${name}:${++serial}`;
      await using world = await open();
      await fn(world, key);
      await until(
        "no key is left",
        async () => await world.keysLeft(key) === 0,
      );
    });
  }

  const wish = (key: string, owner: string, ttlMs = 10_000) => ({
    key,
    owner: `${owner.padEnd(32, "0")}@`,
    ttlMs,
    tokens: 0,
  });

  tells("the first who is noted is told, and the key kept for it", async (
    { on, there },
    key,
  ) => {
    const [here, other] = [await listenAt(on), await listenAt(there)];
    const notices = on.notices!;
    const hold = wish(key, "a");
    assertEquals((await notices.tryAcquire(hold)).granted, true);
    const [b, c] = [wish(key, "b"), wish(key, "c")];
    const first = await notices.tryAcquire(b, `${here.inbox} one`);
    const second = await there.notices!.tryAcquire(c, `${other.inbox} two`);
    assert(!first.granted && !second.granted);
    assertEquals([first.place, second.place], [1, 2]);
    assert(first.ticket! < second.ticket!);
    assert(first.retryAfterMs! > 9_000 && !first.isForeign);
    // Noted again it keeps its ticket.
    const again = await notices.tryAcquire(b, `${here.inbox} one`);
    assert(!again.granted && again.ticket === first.ticket);
    assertEquals(await notices.release(hold), "done");
    await here.hears("one");
    assertEquals(other.heard, []);
    // Nobody else comes in between.
    assertFalse((await on.tryAcquire(wish(key, "d"))).granted);
    const late = await there.notices!.tryAcquire(c, `${other.inbox} two`);
    assert(!late.granted && late.retryAfterMs === undefined);
    assertEquals(late.place, 1);
    const turn = await notices.tryAcquire(b, `${here.inbox} one`);
    assertEquals(turn.granted, true);
    assertEquals(await notices.release(b), "done");
    await other.hears("two");
    const last = await there.notices!.tryAcquire(c, `${other.inbox} two`);
    assertEquals(last.granted, true);
    assertEquals(await there.notices!.release(c), "done");
    here.close();
    other.close();
  });

  tells("who comes back by an older ticket is told first", async (
    { on },
    key,
  ) => {
    const here = await listenAt(on);
    const notices = on.notices!;
    const hold = wish(key, "a");
    await notices.tryAcquire(hold);
    const b = await notices.tryAcquire(wish(key, "b"), `${here.inbox} b`);
    assert(!b.granted);
    const before = { ...wish(key, "c"), ticket: b.ticket! - 1 };
    const c = await notices.tryAcquire(before, `${here.inbox} c`);
    assert(!c.granted && c.place === 1);
    await notices.release(hold);
    await here.hears("c");
    // It wants it no more: the next is told at once.
    notices.forget(key, `${here.inbox} c`);
    await here.hears("b");
    notices.forget(key, `${here.inbox} b`);
    await until(
      "it is free",
      async () => (await on.inspect!(key)).owner === undefined,
    );
    here.close();
  });

  tells("a key that is kept is free again soon, whoever does not come", async (
    { on },
    key,
  ) => {
    const here = await listenAt(on);
    const hold = wish(key, "a");
    await on.notices!.tryAcquire(hold);
    await on.notices!.tryAcquire(wish(key, "b"), `${here.inbox} b`);
    await on.notices!.release(hold);
    await here.hears("b");
    const other = wish(key, "c");
    await until("it is free", async () => (await on.tryAcquire(other)).granted);
    assertEquals(await on.notices!.release(other), "done");
    here.close();
  });

  tells("who stands in line comes before those who are noted", async (
    { on },
    key,
  ) => {
    const here = await listenAt(on);
    const notices = on.notices!;
    const hold = wish(key, "a");
    await notices.tryAcquire(hold);
    await notices.tryAcquire(wish(key, "b"), `${here.inbox} b`);
    // It can't be called, and so is given the key in silence.
    const first = wish(key, "c");
    await on.line!.stand([first]);
    assertEquals(await notices.release(hold), "done");
    const { verdict } = await on.inquire(first);
    assertEquals([verdict, here.heard], ["done", []]);
    assertEquals(await notices.release(first), "done");
    await here.hears("b");
    notices.forget(key, `${here.inbox} b`);
    here.close();
  });

  tells("who has the key without being told is noted no more", async (
    { on, there },
    key,
  ) => {
    const [here, other] = [await listenAt(on), await listenAt(there)];
    const notices = on.notices!;
    const [hold, b, c] = ["a", "b", "c"].map((it) => wish(key, it));
    await notices.tryAcquire(hold);
    await notices.tryAcquire(b, `${here.inbox} one`);
    // As by another library.
    assertEquals(await on.release(hold), "done");
    const had = await notices.tryAcquire(b, `${here.inbox} one`);
    assertEquals(had.granted, true);
    await there.notices!.tryAcquire(c, `${other.inbox} two`);
    assertEquals(await notices.release(b), "done");
    await other.hears("two");
    assertEquals(here.heard, []);
    there.notices!.forget(key, `${other.inbox} two`);
    here.close();
    other.close();
  });

  tells("only the owner's release tells anybody", async ({ on }, key) => {
    const here = await listenAt(on);
    const notices = on.notices!;
    const [hold, stranger] = [wish(key, "a"), wish(key, "e")];
    assertEquals(await notices.release(hold), "absent");
    await notices.tryAcquire(hold);
    await notices.tryAcquire(wish(key, "b"), `${here.inbox} b`);
    assertEquals(await notices.release(stranger), "taken");
    assertEquals(await on.inquire(hold).then((it) => it.verdict), "done");
    assertEquals(here.heard, []);
    assertEquals(await on.forceRelease!(key), true);
    await here.hears("b");
    notices.forget(key, `${here.inbox} b`);
    here.close();
  });

  tells("a claim that finds its own owner has the whole of its lease", async (
    { on },
    key,
  ) => {
    for (const tokens of [0, 1]) {
      // As of an attempt before this one, of which that lease is left.
      const before = { ...wish(key, "a", 2_000), tokens };
      assertEquals((await on.notices!.tryAcquire(before)).granted, true);
      const again = { ...before, ttlMs: 10_000 };
      assertEquals((await on.notices!.tryAcquire(again)).granted, true);
      const { leftMs } = await on.inquire(again);
      assert(leftMs > 5_000, `${leftMs} ms, with ${tokens} tokens`);
      assertEquals(await on.notices!.release(again), "done");
    }
  });

  tells("one that comes late, once the lease is longer, leaves it so", async (
    { on },
    key,
  ) => {
    const long = { ...wish(key, "a", 60_000), tokens: 1 };
    const late = { ...long, ttlMs: 1_000 };
    const attempts = {
      noted: (claim: typeof long) => on.notices!.tryAcquire(claim),
      fenced: (claim: typeof long) => on.tryAcquireFenced!(claim),
      several: (claim: typeof long) => on.tryAcquireAll!([claim], true),
    };
    for (const [how, attempt] of Object.entries(attempts)) {
      await attempt(long);
      await attempt(late);
      const { verdict, leftMs } = await on.inquire(long);
      assertEquals(verdict, "done", how);
      assert(leftMs > 30_000, `${leftMs} ms, ${how}`);
      assertEquals(await on.notices!.release(long), "done");
    }
  });

  tells("a claim is safe to send again, and its token the same", async (
    { on },
    key,
  ) => {
    const fenced = { ...wish(key, "a"), tokens: 1 };
    const one = await on.notices!.tryAcquire(fenced);
    const two = await on.notices!.tryAcquire({ ...wish(key, "b"), tokens: 1 });
    assert(one.granted && !two.granted);
    const again = await on.notices!.tryAcquire(fenced);
    assert(again.granted && again.fencingToken! >= one.fencingToken!);
    await on.notices!.release(fenced);
    const next = await on.tryAcquireFenced!(wish(key, "b"));
    assert(next.granted && next.fencingToken! > again.fencingToken!);
    await on.release(wish(key, "b"));
  });
}
