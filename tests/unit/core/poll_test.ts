/** Trying again and again, on a hand-cranked clock. */
import { assert, assertEquals } from "@std/assert";

import { acquireLock, type Backend } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import type { Watch } from "../../../src/core/backend.ts";
import { FakeClock, settle } from "../../support/fake_clock.ts";
import { test } from "../../support/test.ts";

test("a word that comes while one asks has one ask again at once", async () => {
  const clock = new FakeClock();
  const world = memory({ clock });
  let asked = 0;
  const watch: Watch = {
    isHeard: true,
    place: 1,
    onCall() {},
    open: () => Promise.resolve(),
    async tryAcquire(claim) {
      if (++asked > 1) return await world.tryAcquire(claim);
      // Refused, and told of the release before that answer is here.
      watch.onCall();
      return { granted: false };
    },
    close() {},
  };
  const on: Backend = {
    name: "one that calls",
    clock,
    tryAcquire: world.tryAcquire.bind(world),
    extend: world.extend.bind(world),
    release: world.release.bind(world),
    inquire: world.inquire.bind(world),
    discard: world.discard.bind(world),
    watch: () => watch,
  };
  let isHeld = false;
  const waiting = acquireLock(on, "k", { waitMs: 10_000 });
  void waiting.then(() => isHeld = true);
  await settle();
  // With no time gone by.
  assert(isHeld, "it waits for the next word");
  assertEquals(asked, 2);
  assertEquals(await (await waiting).release(), true);
});
