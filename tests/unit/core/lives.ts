/**
 * The second process of `schedules_test.ts`: it lives the lives. Under Node
 * node:test follows every promise by a hook, and with millions of them that
 * makes a minute of ten seconds; here there is no node:test.
 */
import { assert } from "@std/assert";

import { moment } from "../../../src/core/clock.ts";
import { Keeper } from "../../../src/core/keeper.ts";
import { args, say } from "../../support/child.ts";
import { ProcessClock, World } from "../../support/sim.ts";

const [firstSeed, lives] = args.map(Number);
const STEPS = 8;

/** A small generator with a seed (mulberry32). */
function randomFrom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** How a life went, for the sums below. */
interface Life {
  heldAt: number;
  lost: boolean;
}

async function live(seed: number): Promise<Life> {
  const random = randomFrom(seed);
  const upTo = (max: number) => random() * max;
  const world = new World();
  // Slower than the truth by less than the drift allowance of one percent.
  const clock = new ProcessClock(world, 0.992 + upTo(0.016));
  const far = world.seenBy(clock);
  // A sleep that is undone by a step back of the same size can't be seen by
  // any pair of clocks: a machine does one or the other.
  const sleeps = random() < 0.5;
  world.passage = () => ({
    thereMs: random() < 0.1 ? Infinity : upTo(40),
    backMs: random() < 0.1 ? Infinity : random() < 0.1 ? upTo(900) : upTo(40),
    givesUpMs: 100 + upTo(400),
  });
  const claim = { key: "k", owner: "o", ttlMs: 300 + Math.round(upTo(700)) };
  const terms = {
    autoExtend: random() < 0.7,
    maxHoldMs: random() < 0.2 ? upTo(2_000) : Infinity,
    fencing: false,
  };
  const asked = moment(clock);
  await world.pass(upTo(30));
  await world.server.tryAcquire(claim);
  await world.pass(upTo(30));
  const keeper = new Keeper(far, claim, asked, terms);
  const signal = random() < 0.5 ? keeper.signal : undefined;

  const life: Life = { heldAt: 0, lost: false };
  const judge = async (when: string) => {
    const isHeld = keeper.remainingMs > 0 || signal?.aborted === false &&
        !keeper.isInDoubt && keeper.loss === undefined;
    const { verdict } = await world.server.inquire(claim);
    if (isHeld) life.heldAt = world.time;
    assert(
      !isHeld || verdict === "done",
      `seed ${seed}: held after ${when}, though the server let go of it`,
    );
  };
  for (let step = 0; step < STEPS; step++) {
    const what = random();
    if (what < 0.45) await world.pass(upTo(400));
    else if (what < 0.6) await clock.stall(upTo(900));
    else if (what < 0.75) {
      if (sleeps) await clock.sleep(upTo(1_500));
      else clock.step(-upTo(3_000));
    } else if (what < 0.9) clock.step(upTo(3_000));
    else keeper.extend(Math.round(50 + upTo(900))).catch(() => {});
    // Looked at before any timer that fell due has run, and after.
    await judge("the first look");
    await clock.wake();
    await judge("its timers");
  }
  life.lost = keeper.loss !== undefined;
  keeper.release();
  return life;
}

let lost = 0;
let longHeld = 0;
for (let seed = firstSeed; seed < firstSeed + lives; seed++) {
  const life = await live(seed);
  if (life.lost) lost++;
  if (life.heldAt > 1_000) longHeld++;
}
say({ type: "done", lost, longHeld });
