/**
 * What does it cost to wait in line? Many waiters in one or several processes
 * take the same lock again and again: how often it changes hands, how long it
 * lies idle in between, what that costs in commands, and who is left out.
 *
 * Beside two limits (limits.ts) and the peers, which poll. Then what a waiter
 * costs that only waits, and what `waitMs` costs where nobody else does.
 */
import { Buffer } from "node:buffer";
import { type ChildProcess, spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { runtime } from "../tests/support/process.ts";
import type { Answer, Order } from "./contended_worker.ts";
import {
  type Cell,
  inRounds,
  quantile,
  quartiles,
  type Report,
  type Settings,
} from "./harness.ts";
import { acquireLock } from "./ours.ts";
import {
  type Esbuild,
  type Ioredis,
  type IoredisPackage,
  load,
} from "./packages.ts";

const STRICT = "ours, localTurns: 0";
const OURS = "ours";
const HAND_OVER = "hand-over (limit)";
const LOCAL_TURNS = "local turns (limit)";
/** The same within the bounds of ours: only where somebody holds it for a while. */
const BOUNDED = "local turns of 10 ms (limit)";
/** The first is what the others are compared with. */
const LINES = [HAND_OVER, LOCAL_TURNS, STRICT, OURS];
const PEERS = [
  "redis-semaphore",
  "redlock 5",
  "redlock-universal",
  "@redis-kit/lock",
];
const SUBJECTS = [...LINES.slice(0, 2), BOUNDED, ...LINES.slice(2), ...PEERS];
/** Without which there is nothing to compare with. */
const isLimit = (subject: string) =>
  subject === HAND_OVER || subject === LOCAL_TURNS;

/** How many columns the logs of contended_worker.ts have. */
const COLUMNS = 4;
const PROCESSES = 4;
/** Who waits behind a lock that is held for long. */
const IDLE_WAITERS = 100;

/** Who wants the lock, and for how long each. */
interface Shape {
  readonly processes: number;
  readonly waiters: number;
  readonly holdMs: number;
}

/** The one that the goals speak of, with and without a hold. */
const isMain = ({ processes, waiters }: Shape) =>
  processes === PROCESSES && waiters === 64;

const SHAPES: readonly Shape[] = [0, 5].flatMap((holdMs) =>
  [PROCESSES, 1].flatMap((processes) =>
    [8, 64, 256].map((waiters) => ({ processes, waiters, holdMs }))
  )
);

const GROWTH: readonly Shape[] = [1, 100, 1_000]
  .map((waiters) => ({ processes: 1, waiters, holdMs: 0 }));

/** What one turn of one subject came to. */
interface Figures {
  readonly acquisitionsPerS: number;
  readonly handOversPerS: number;
  readonly gapUs: number;
  readonly commands: number;
  /** How often the luckiest waiter got it, times the unluckiest. */
  readonly maxToMin: number;
  readonly starved: number;
  readonly waitMs: number;
  readonly waitP99ToP50: number;
}

/** All turns of one subject in one shape: by round, and why there are no more. */
interface Series {
  readonly rounds: Figures[];
  failure?: string;
}

export async function contended(
  { url, quick, cluster }: Settings,
): Promise<readonly Report[]> {
  const file = await bundleWorker();
  // Of their own, as they may have to be started anew, and ours stay warm. In a
  // Cluster without them: ours are compared with the limits there.
  const crews: Crews = {
    lines: new Crew(file, cluster?.join() ?? url),
    peers: cluster === undefined ? new Crew(file, url) : undefined,
  };
  try {
    await warmUp(crews, quick);
    const goals: Goal[] = [];
    const shapes = await inShapes(crews, quick, goals);
    const idle = await idling(crews, quick, goals);
    const growth = await growing(crews, quick, goals);
    await Promise.all([crews.lines.close(), crews.peers?.close()]);
    const alone = cluster === undefined
      ? [await uncontendedWaiting(url, quick, goals)]
      : [];
    const report = {
      name: "contended_goals",
      title: `Waiting in line, what was to be reached: ${PROCESSES} ` +
        "processes and 64 waiters where nothing else is said; medians",
      rows: goals.map(({ goal, limit, value, isMet }) => ({
        goal,
        "to be": limit,
        is: show(value),
        "": isMet ? "met" : "MISSED",
      })),
    };
    const reports = [shapes, idle, growth, ...alone, report];
    return cluster === undefined ? reports : reports.map((report) => ({
      ...report,
      name: `${report.name}_cluster`,
      title: `In a Cluster: ${report.title}`,
    }));
  } finally {
    await Promise.all([crews.lines.close(), crews.peers?.close()]);
    await rm(file);
  }
}

/** The processes of those who stand in line, and of those who poll. */
interface Crews {
  readonly lines: Crew;
  readonly peers: Crew | undefined;
}

/** Who takes part. */
function subjectsOf({ peers }: Crews): string[] {
  return peers === undefined ? LINES : [...LINES, ...PEERS];
}

interface Goal {
  readonly goal: string;
  readonly limit: string;
  readonly value: number;
  readonly isMet: boolean;
}

function atMost(goal: string, value: number, limit: number): Goal {
  return { goal, limit: `<= ${limit}`, value, isMet: value <= limit };
}

function below(goal: string, value: number, limit: number): Goal {
  return { goal, limit: `< ${limit}`, value, isMet: value < limit };
}

function atLeast(goal: string, value: number, limit: number): Goal {
  return { goal, limit: `>= ${limit}`, value, isMet: value >= limit };
}

/** Before anything counts: scripts, buffers, and code, which takes longest. */
async function warmUp(crews: Crews, quick: boolean): Promise<void> {
  const shape = { processes: PROCESSES, waiters: 64, holdMs: 0 };
  for (const subject of subjectsOf(crews)) {
    const isPeer = PEERS.includes(subject);
    const windowMs = isPeer ? 100 : quick ? 1_000 : 2_500;
    // What fails here will fail once more, and then be told.
    await take(crews, subject, shape, 0, windowMs).catch(() => {});
  }
}

/** In how many rounds, each with how long before and in the window. */
interface Effort {
  readonly rounds: number;
  readonly leadMs: number;
  readonly windowMs: number;
}

/**
 * Peers take part in fewer rounds: what they are behind by needs no second look.
 * A quick run leaves out what no goal speaks of.
 */
function effort(shape: Shape, subject: string, quick: boolean): Effort {
  const { processes, waiters, holdMs } = shape;
  const cycleMs = waiters * holdMs;
  const isPeer = PEERS.includes(subject);
  if (isPeer) {
    const isRare = processes === 1 ? waiters !== 64 : holdMs > 0;
    const rounds = isMain(shape) ? quick ? 1 : 2 : quick || isRare ? 0 : 1;
    const windowMs = holdMs > 0 && isMain(shape) ? 2_000 : 1_000;
    return { rounds, leadMs: 150, windowMs: quick ? windowMs / 3 : windowMs };
  }
  if (subject === BOUNDED && (holdMs === 0 || processes === 1)) {
    return { rounds: 0, leadMs: 0, windowMs: 0 };
  }
  // Until all listen, and once around: then each waits as long as the others.
  const leadMs = 300 + (quick && !isMain(shape) ? 0 : cycleMs * 1.1);
  const { main, several, one } = holdMs === 0
    ? { main: 7, several: 3, one: 2 }
    : { main: 3, several: 2, one: 1 };
  const most = isMain(shape) ? main : processes > 1 ? several : one;
  const rounds = quick ? processes > 1 ? 1 : 0 : most;
  if (holdMs === 0) return { rounds, leadMs, windowMs: quick ? 200 : 400 };
  // A waiter has to have had it five times before unequal means unfair.
  const windowMs = isMain(shape)
    ? cycleMs * (quick ? 6 : 7)
    : quick
    ? 500
    : 1_000;
  return { rounds, leadMs, windowMs };
}

/** The order of inRounds, where not everybody takes part in all of them. */
async function inShapes(
  crews: Crews,
  quick: boolean,
  goals: Goal[],
): Promise<Report> {
  const all = new Map(SHAPES.map((shape) => [
    shape,
    new Map(SUBJECTS.map((subject): [string, Series] => [
      subject,
      { rounds: [] },
    ])),
  ]));
  const most = Math.max(
    ...SHAPES.map((shape) => effort(shape, HAND_OVER, quick).rounds),
  );
  for (let round = 0; round < most; round++) {
    for (const [shape, series] of all) {
      const subjects = [...subjectsOf(crews), BOUNDED];
      for (const subject of orderOf(round, subjects)) {
        const { rounds, leadMs, windowMs } = effort(shape, subject, quick);
        if (round >= rounds) continue;
        const one = series.get(subject)!;
        if (one.failure !== undefined) continue;
        try {
          one.rounds.push(await take(crews, subject, shape, leadMs, windowMs));
        } catch (error) {
          if (isLimit(subject)) throw error;
          [one.failure] = String(error).split("\n");
          one.rounds.length = 0;
        }
      }
    }
  }
  const rows: Record<string, Cell>[] = [];
  for (const [shape, series] of all) {
    for (const [lock, one] of series) {
      if (one.failure === undefined && one.rounds.length === 0) continue;
      rows.push(rowOf(shape, lock, one, series.get(HAND_OVER)!));
    }
  }
  judge(all, goals);
  const title =
    "Waiting in line: N waiters in P processes take the same lock " +
    "again and again; a hand-over is a change of owner, the limit the first " +
    "row of each shape; " +
    (quick
      ? "1 short round"
      : "medians of 7 rounds for 64 waiters in 4 processes that hold " +
        "nothing, else, and of the peers, of 3 to 1");
  return { name: "contended", title, rows };
}

function orderOf<T>(round: number, all: readonly T[]): T[] {
  const order = all.map((_, i) => all[(i + round) % all.length]);
  return round % 2 === 0 ? order : order.reverse();
}

function rowOf(
  { processes, waiters, holdMs }: Shape,
  lock: string,
  { rounds, failure }: Series,
  limit: Series,
): Record<string, Cell> {
  const head = { P: processes, N: waiters, "hold ms": holdMs, lock };
  if (failure !== undefined) return { ...head, "hand-overs/s": failure };
  const of = (figure: keyof Figures) => median(rounds, figure);
  const ratio = quartiles(ratios(rounds, limit.rounds));
  return {
    ...head,
    "acquisitions/s": of("acquisitionsPerS"),
    "hand-overs/s": of("handOversPerS"),
    "times limit": lock === HAND_OVER
      ? 1
      : rounds.length < 3
      ? ratio.median
      : ratio,
    "gap p50 µs": show(of("gapUs")),
    "commands per acquisition": show(of("commands")),
    "max/min": show(of("maxToMin")),
    starved: show(of("starved")),
    "wait p50 ms": show(of("waitMs")),
    "wait p99/p50": show(of("waitP99ToP50")),
  };
}

/** What can't be told, or has no end, has a sign of its own. */
function show(value: number): Cell {
  if (Number.isNaN(value)) return "–";
  return value === Infinity ? "∞" : value;
}

function median(rounds: readonly Figures[], figure: keyof Figures): number {
  const values = rounds.map((round) => round[figure]).sort((a, b) => a - b);
  const middle = values[values.length >> 1];
  // Between two of them there is nothing, where one has no end.
  return middle === Infinity ? middle : quantile(values, 0.5);
}

/** Of hand-overs, within each round. */
function ratios(
  rounds: readonly Figures[],
  limit: readonly Figures[],
): number[] {
  return rounds.map(({ handOversPerS }, round) =>
    handOversPerS / limit[round].handOversPerS
  );
}

function judge(
  all: ReadonlyMap<Shape, ReadonlyMap<string, Series>>,
  goals: Goal[],
): void {
  const series = (holdMs: number, waiters: number, subject: string) => {
    const [shape] = [...all.keys()].filter((shape) =>
      shape.processes === PROCESSES && shape.waiters === waiters &&
      shape.holdMs === holdMs
    );
    return all.get(shape)!.get(subject)!.rounds;
  };
  const times = (ours: readonly Figures[], limit: readonly Figures[]) =>
    quantile(ratios(ours, limit), 0.5);
  const strict = series(0, 64, STRICT);
  const limit = series(0, 64, HAND_OVER);
  const ours = series(0, 64, OURS);
  const strictHeld = series(5, 64, STRICT);
  const oursHeld = series(5, 64, OURS);
  goals.push(
    atMost("strict: commands per acquisition", median(strict, "commands"), 2.1),
    atMost(
      "strict: the same, held 5 ms",
      median(strictHeld, "commands"),
      2.1,
    ),
    atLeast("strict: times the limit's rate", times(strict, limit), 0.8),
    atMost(
      "strict: gap, times the limit's",
      quantile(
        strict.map(({ gapUs }, round) => gapUs / limit[round].gapUs),
        0.5,
      ),
      1.3,
    ),
    atMost(
      "local turns: commands per acquisition",
      median(ours, "commands"),
      0.3,
    ),
    atLeast(
      "local turns: times the strict limit's rate",
      times(ours, limit),
      8,
    ),
  );
  for (const waiters of [8, 64, 256]) {
    const ideal = series(5, waiters, LOCAL_TURNS);
    goals.push(atLeast(
      `local turns: of the ideal rate, ${waiters} waiters, held 5 ms`,
      times(series(5, waiters, OURS), ideal),
      0.95,
    ));
  }
  const fair: [string, readonly Figures[]][] = [
    ["strict", strict],
    ["local turns", ours],
    ["strict, held 5 ms", strictHeld],
    ["local turns, held 5 ms", oursHeld],
  ];
  for (const [which, rounds] of fair) {
    const what = `${which}: acquisitions per waiter, max/min`;
    goals.push(below(what, median(rounds, "maxToMin"), 1.25));
  }
  for (const [which, rounds] of fair.slice(2)) {
    const what = `${which}: wait p99/p50`;
    goals.push(below(what, median(rounds, "waitP99ToP50"), 2));
  }
}

let keys = 0;
// With a hash tag: the limits keep their lines under names of their own.
const nextKey = () => `{bench:contended:${process.pid}:${keys++}}`;

/** One turn of one subject: all of its waiters, in so many processes. */
async function take(
  { lines, peers }: Crews,
  subject: string,
  shape: Shape,
  leadMs: number,
  windowMs: number,
): Promise<Figures> {
  const { processes, waiters, holdMs } = shape;
  const isPeer = PEERS.includes(subject);
  const crew = isPeer ? peers! : lines;
  const order = {
    subject,
    key: nextKey(),
    waiters: waiters / processes,
    holdMs,
    isOnce: false,
    patienceMs: isPeer ? 300 : 10_000,
  };
  try {
    await crew.open(subject, Array.from({ length: processes }, (_, i) => i));
    const startAt = crew.now() + 20;
    const from = startAt + leadMs;
    const to = from + windowMs;
    // On for a while, so that the end of the window is like the rest of it.
    const times = { startAt, from, to, stopAt: to + 20 };
    const answers = await Promise.all(
      Array.from(
        { length: processes },
        (_, worker) => crew.order(worker, { ...order, ...times }),
      ),
    );
    const left = answers.reduce((sum, answer) => sum + answer.left, 0);
    if (left > 0) {
      if (!isPeer) throw new Error(`${left} of ${waiters} wait for ever`);
      // They had their time, and would disturb whoever comes next.
      await crew.close();
    }
    return figuresOf(answers, shape, from, to);
  } catch (error) {
    await crew.close();
    throw error;
  }
}

/** One time that somebody had the lock. */
interface Held {
  readonly waiter: number;
  readonly asked: number;
  readonly got: number;
  readonly letGo: number;
}

/**
 * Everybody who had the lock, one after the other; throws if it was not so. Of
 * those who let go at once that tells little: there each release has to confirm
 * that the lock was still theirs.
 */
function holdersOf(answers: readonly Answer[]): Held[] {
  const all: Held[] = [];
  answers.forEach(({ log }, worker) => {
    // A copy, as it has to begin where a number may.
    const rows = new Float64Array(
      new Uint8Array(Buffer.from(log, "base64")).buffer,
    );
    for (let at = 0; at < rows.length; at += COLUMNS) {
      const [waiter, asked, got, letGo] = rows.subarray(at, at + COLUMNS);
      all.push({ waiter: waiter * PROCESSES + worker, asked, got, letGo });
    }
  });
  all.sort((one, other) => one.got - other.got);
  for (let i = 1; i < all.length; i++) {
    const overlapMs = all[i - 1].letGo - all[i].got;
    if (overlapMs > 0) {
      throw new Error(`Two held it at once, for ${overlapMs.toFixed(3)} ms`);
    }
  }
  return all;
}

function figuresOf(
  answers: readonly Answer[],
  { waiters, holdMs }: Shape,
  from: number,
  to: number,
): Figures {
  const seconds = (to - from) / 1000;
  const times = new Map<number, number>();
  const gaps: number[] = [];
  const waits: number[] = [];
  let handOvers = 0;
  let last: Held | undefined;
  for (const held of holdersOf(answers)) {
    if (held.got >= from && held.got < to) {
      times.set(held.waiter, (times.get(held.waiter) ?? 0) + 1);
      waits.push(held.got - held.asked);
      if (last !== undefined) {
        gaps.push(held.got - last.letGo);
        if (last.waiter !== held.waiter) handOvers++;
      }
    }
    last = held;
  }
  const acquisitions = waits.length;
  // Both as each process counts them: a busy one may look a little late.
  const sum = (what: "commands" | "acquisitions") =>
    answers.reduce((sum, answer) => sum + answer[what], 0);
  const [p50, p99] = [0.5, 0.99].map((part) => quantile(waits, part));
  const starved = waiters - times.size;
  const most = Math.max(0, ...times.values());
  const least = starved > 0 ? 0 : Math.min(...times.values());
  // Where nobody could get it five times, once more or less is not unfair yet.
  const isTelling = to - from >= 5.5 * holdMs * waiters;
  return {
    acquisitionsPerS: acquisitions / seconds,
    handOversPerS: handOvers / seconds,
    gapUs: quantile(gaps, 0.5) * 1000,
    commands: sum("commands") / sum("acquisitions"),
    maxToMin: isTelling ? most / least : NaN,
    starved: isTelling ? starved : NaN,
    waitMs: p50,
    waitP99ToP50: p99 / p50,
  };
}

/** What many cost who only wait, and when they have it after the release. */
interface Awakening {
  readonly commandsPerS: number;
  readonly firstMs: number;
  readonly lastMs: number;
}

/**
 * Four at a time, each in a process of its own, and let go one after the other:
 * for who does nothing meanwhile that is as good as alone. The peers do poll
 * meanwhile, but each other only.
 */
async function idling(
  crews: Crews,
  quick: boolean,
  goals: Goal[],
): Promise<Report> {
  const heldMs = quick ? 2_000 : 5_000;
  const rows: Record<string, Cell>[] = [];
  // A quick run leaves out what no goal speaks of.
  const groups = quick || crews.peers === undefined ? [LINES] : [LINES, PEERS];
  for (const group of groups) {
    const crew = group === LINES ? crews.lines : crews.peers!;
    const found = new Map<string, Awakening[]>(group.map((name) => [name, []]));
    const failures = new Map<string, string>();
    const rounds = quick || group === PEERS ? 1 : 3;
    for (let round = 0; round < rounds; round++) {
      const subjects = orderOf(round, group)
        .filter((subject) => !failures.has(subject));
      for (const [worker, subject] of subjects.entries()) {
        await crew.open(subject, [worker, PROCESSES]);
      }
      const begin = crew.now() + 50;
      await Promise.all(subjects.map(async (subject, worker) => {
        const startAt = begin + worker * 500;
        try {
          const one = await idle(crew, subject, worker, startAt, heldMs);
          found.get(subject)!.push(one);
        } catch (error) {
          if (isLimit(subject)) throw error;
          failures.set(subject, String(error).split("\n")[0]);
        }
      }));
      if (failures.size > 0) await crew.close();
    }
    for (const lock of group) {
      // None at all where it failed once.
      const all = failures.has(lock) ? [] : found.get(lock)!;
      const of = (figure: keyof Awakening) =>
        quantile(all.map((one) => one[figure]), 0.5);
      rows.push({
        lock,
        "commands/s": failures.get(lock) ?? of("commandsPerS"),
        "first awake, ms": show(of("firstMs")),
        [`${IDLE_WAITERS}th awake, ms`]: show(of("lastMs")),
      });
      if (lock === STRICT || lock === OURS) {
        const what = lock === OURS ? "local turns" : "strict";
        goals.push(below(
          `${what}: commands/s of ${IDLE_WAITERS} who only wait`,
          of("commandsPerS"),
          1,
        ));
      }
    }
  }
  const title =
    `Only waiting: ${IDLE_WAITERS} waiters in one process, behind ` +
    `a lock that another holds for ${heldMs / 1000} s; ` +
    (quick ? "1 round" : "medians of 3 rounds, of the peers 1");
  return { name: "contended_idle", title, rows };
}

async function idle(
  crew: Crew,
  subject: string,
  worker: number,
  startAt: number,
  heldMs: number,
): Promise<Awakening> {
  const order = { subject, key: nextKey(), isOnce: true, patienceMs: 20_000 };
  const heldUntil = startAt + heldMs;
  const [waiting, holding] = await Promise.all([
    crew.order(worker, {
      ...order,
      waiters: IDLE_WAITERS,
      holdMs: 0,
      startAt: startAt + 200,
      from: startAt + 700,
      to: heldUntil - 50,
      stopAt: heldUntil,
    }),
    // By a process whose commands are not counted.
    crew.order(PROCESSES, {
      ...order,
      waiters: 1,
      holdMs: heldMs,
      startAt,
      from: startAt,
      to: heldUntil,
      stopAt: heldUntil,
    }),
  ]);
  if (waiting.left > 0) throw new Error(`${waiting.left} wait for ever`);
  const [holder, ...others] = holdersOf([waiting, holding]);
  if (holder.letGo - holder.got < heldMs - 1) {
    throw new Error("Somebody came before the holder");
  }
  return {
    commandsPerS: waiting.commands / waiting.seconds,
    firstMs: others[0].got - holder.letGo,
    lastMs: others[IDLE_WAITERS - 1].got - holder.letGo,
  };
}

/** Whether more who wait make it dearer. */
async function growing(
  crews: Crews,
  quick: boolean,
  goals: Goal[],
): Promise<Report> {
  const subjects = quick ? LINES : subjectsOf(crews);
  const shapes = quick ? [GROWTH[0], GROWTH[2]] : GROWTH;
  const rows = subjects.map((lock): Record<string, Cell> => ({ lock }));
  const ofStrict: number[] = [];
  for (const [round, shape] of shapes.entries()) {
    for (const subject of orderOf(round, subjects)) {
      const row = rows[subjects.indexOf(subject)];
      const many = shape.waiters.toLocaleString("en");
      const name = `commands, ${many}`;
      try {
        const windowMs = quick ? 200 : 500;
        const figures = await take(crews, subject, shape, 300, windowMs);
        row[name] = figures.commands;
        row[`acquisitions/s, ${many}`] = figures.acquisitionsPerS;
        if (subject === STRICT) ofStrict.push(figures.commands);
      } catch (error) {
        if (isLimit(subject)) throw error;
        [row[name]] = String(error).split("\n");
        if (subject === STRICT) ofStrict.push(NaN);
      }
    }
  }
  goals.push(atMost(
    "strict: most commands per acquisition, 1 to 1,000 waiters in one process",
    Math.max(...ofStrict),
    2.1,
  ));
  const title = "Growth: commands per acquisition, and acquisitions per " +
    "second, of so many waiters in one process, released at once";
  return { name: "contended_growth", title, rows };
}

/** What patience costs that is not needed; as uncontended.ts measures. */
async function uncontendedWaiting(
  url: string,
  quick: boolean,
  goals: Goal[],
): Promise<Report> {
  const rounds = quick ? 5 : 121;
  const pairs = 100;
  const { Redis } = await load<IoredisPackage>("ioredis");
  const client = new Redis(url);
  const key = "bench:contended:alone";
  const ours =
    (options: { waitMs?: number; localTurns?: number }) => async () => {
      const lock = await acquireLock(client, key, { ttl: 10, ...options });
      if (!await lock.release()) throw new Error("The lock is not held");
    };
  const subjects = [
    { name: "bare", hold: await bare(client, key) },
    { name: "ours", hold: ours({}) },
    { name: "ours, waitMs: 1000", hold: ours({ waitMs: 1_000 }) },
    {
      name: "ours, waitMs: 1000, localTurns: 0",
      hold: ours({ waitMs: 1_000, localTurns: 0 }),
    },
  ];
  const latency = async (hold: () => Promise<void>, times: number) => {
    const took: number[] = [];
    for (let i = 0; i < times; i++) {
      const begun = performance.now();
      await hold();
      took.push((performance.now() - begun) * 1000);
    }
    return quantile(took, 0.5);
  };
  try {
    for (const { hold } of subjects) await latency(hold, 20 * pairs);
    const outcomes = await inRounds(
      subjects,
      rounds,
      ({ hold }) => latency(hold, pairs),
    );
    const rows = outcomes.map(({ ratio, absolute }, i) => ({
      lock: subjects[i].name,
      "times bare": i === 0 ? 1 : ratio,
      "µs": absolute.median,
    }));
    outcomes.slice(2).forEach(({ ratio }, i) =>
      goals.push(atMost(
        i === 0
          ? "local turns: `waitMs` set and nobody else there, times bare"
          : "strict: the same",
        ratio.median,
        1.1,
      ))
    );
    const title = "Ready to wait and nobody there: latency p50 of acquire + " +
      `release; median (quartiles) of ${rounds} rounds of ${pairs} pairs`;
    return { name: "contended_alone", title, rows };
  } finally {
    client.disconnect();
  }
}

/** The commands alone, as in subjects.ts. */
async function bare(
  client: Ioredis,
  key: string,
): Promise<() => Promise<void>> {
  const release = `if redis.call("GET", KEYS[1]) == ARGV[1] then
return redis.call("DEL", KEYS[1]) end
return 0`;
  const sha = String(await client.script("LOAD", release));
  return async () => {
    const token = crypto.randomUUID();
    if (await client.set(key, token, "PX", 10_000, "NX") !== "OK") {
      throw new Error("The lock is not held");
    }
    if (await client.evalsha(sha, 1, key, token) !== 1) {
      throw new Error("The lock is not held");
    }
  };
}

/** The processes that want the lock; each is started when first needed. */
class Crew {
  readonly #file: string;
  readonly #url: string;
  readonly #origin = Date.now();
  readonly #workers: (Worker | undefined)[] = [];

  constructor(file: string, url: string) {
    this.#file = file;
    this.#url = url;
  }

  /** The clock that all share. */
  now(): number {
    return performance.timeOrigin - this.#origin + performance.now();
  }

  /** Has those workers connect, load, and be ready for `subject`. */
  async open(subject: string, workers: readonly number[]): Promise<void> {
    await Promise.all(
      workers.map((worker) => this.#worker(worker).ask({ subject })),
    );
  }

  /** Rejects where one of its waiters failed. */
  order(worker: number, order: Omit<Order, "id">): Promise<Answer> {
    return this.#worker(worker).ask(order);
  }

  #worker(index: number): Worker {
    return this.#workers[index] ??= new Worker([
      this.#file,
      this.#url,
      String(this.#origin),
    ]);
  }

  /** Ends them all; whoever is needed again is started again. */
  async close(): Promise<void> {
    const workers = this.#workers.splice(0);
    await Promise.all(workers.map((worker) => worker?.close()));
  }
}

/** One process, spoken with in lines of JSON. */
class Worker {
  readonly #child: ChildProcess;
  readonly #answers: ((answer: Answer | Error) => void)[] = [];
  readonly #ended: Promise<void>;
  #end: Error | undefined;

  constructor(args: readonly string[]) {
    const how = {
      deno: [
        ...["run", "-A", "--quiet", "--no-config", "--no-lock"],
        "--node-modules-dir=manual",
      ],
      bun: ["run"],
      // Not through tsx: see ours.ts.
      node: [],
    }[runtime];
    const child = spawn(process.execPath, [...how, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#child = child;
    // Writing to one that has ended is no fault of its own.
    child.stdin!.on("error", () => {});
    createInterface({ input: child.stdout! }).on("line", (line) => {
      // Somebody's console.log is not for us.
      if (!line.startsWith("{")) return;
      const answer: Answer = JSON.parse(line);
      this.#answers[answer.id]?.(answer);
      delete this.#answers[answer.id];
    });
    this.#ended = new Promise((resolve) => {
      const ended = (how: unknown) => {
        this.#end = new Error(`A process of the benchmark ended: ${how}`);
        this.#answers.forEach((answer) => answer(this.#end!));
        resolve();
      };
      child.on("error", ended);
      child.on("close", (code, signal) => ended(signal ?? code));
    });
  }

  /** Rejects where the answer speaks of a failure. */
  ask(order: Omit<Order, "id"> | { subject: string }): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#end !== undefined) return reject(this.#end);
      const id = this.#answers.length;
      this.#answers.push((answer) => {
        if (answer instanceof Error) reject(answer);
        else if (answer.failure !== undefined) {
          reject(new Error(answer.failure));
        } else resolve(answer);
      });
      this.#child.stdin!.write(JSON.stringify({ id, ...order }) + "\n");
    });
  }

  /** It ends when nothing can be asked of it any more. */
  async close(): Promise<void> {
    this.#child.stdin!.end();
    const limit = setTimeout(() => this.#child.kill("SIGKILL"), 2_000);
    await this.#ended;
    clearTimeout(limit);
  }
}

/** The worker with the library in one file of JavaScript, beside the packages. */
async function bundleWorker(): Promise<string> {
  const path = `./node_modules/.cache/contended-${process.pid}.mjs`;
  const file = fileURLToPath(new URL(path, import.meta.url));
  const { build, stop } = await load<Esbuild>("esbuild");
  await build({
    entryPoints: [
      fileURLToPath(new URL("./contended_worker.ts", import.meta.url)),
    ],
    bundle: true,
    format: "esm",
    target: "es2022",
    platform: "node",
    packages: "external",
    outfile: file,
  });
  await stop();
  return file;
}
