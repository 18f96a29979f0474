/** The moment from which a lease counts. */
import { assert } from "@std/assert";

import { asking, systemClock } from "../../../src/core/clock.ts";
import { test } from "../../support/test.ts";

test("a lease counts from when it was asked for, or from just before", () => {
  for (let times = 0; times < 20_000; times++) {
    const before = systemClock.now();
    const wallBefore = systemClock.wall();
    const asked = asking(systemClock);
    assert(asked.now <= systemClock.now(), "it would last too long");
    assert(asked.wall <= systemClock.wall(), "it would last too long");
    assert(before - asked.now < 0.2, `${before - asked.now} ms too short`);
    assert(wallBefore - asked.wall < 10, `${wallBefore - asked.wall} ms`);
  }
});
