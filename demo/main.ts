/**
 * Four workers, one lock, and two murders. First, who comes too late is refused.
 * Then they wait in line: who goes in next, how soon, and what it costs the
 * others when one of them is killed, in line or inside.
 *
 *     npm run demo
 *     deno task demo
 *     npm run demo -- 20        # seconds, if that is enough; 9 unless given
 */
import process from "node:process";

import {
  type Event,
  handOvers,
  overlaps,
  overtakings,
  type Turn,
  turnsOf,
} from "./check.ts";
import {
  alarm,
  bold,
  dim,
  inMs,
  inSeconds,
  type Scene,
  Screen,
} from "./screen.ts";
import { type Actor, openStage, type Stage } from "./stage.ts";
import { type Report, TTL } from "./turns.ts";

const NAMES = ["ada", "bob", "cyd", "dee"];
/** Longer than anybody here has to. */
const WAIT_MS = 30_000;
/** A turn with a middle to be killed in, and well within the ttl. */
const LONG_MS = 1_100;
const seconds = Number(process.argv[2] ?? 9);
if (!(seconds > 0 && seconds <= 3600)) {
  console.error("How many seconds? E.g. npm run demo -- 20");
  process.exit(2);
}

/** Ends the play before its end: with an error, or null for Ctrl-C. */
const curtain = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(name, () => {
    // Asked twice, we let the handlers of "exit" do what they can.
    if (curtain.signal.aborted) process.exit(130);
    curtain.abort(null);
  });
}
// `npm run demo | head`: whoever was watching has seen enough.
process.stdout.on("error", () => curtain.abort(null));

const screen = new Screen(NAMES);
process.exitCode = await demo();

async function demo(): Promise<number> {
  let stage: Stage | undefined;
  try {
    stage = await openStage();
    for (const line of stage.about) screen.say(line);
    return await judge(stage, await play(stage)) ? 0 : 1;
  } catch (error) {
    screen.end();
    if (error === null) screen.say("\nStopped.");
    else screen.say(alarm(`\nBroke off: ${(error as Error).message}`));
    return error === null ? 130 : 1;
  } finally {
    await stage?.close();
  }
}

/** What the director hears of: what they report, and who was killed. */
type News = Report | Extract<Scene, { type: "dead" }>;

/** Both acts: all that happened, and to whom. */
async function play(stage: Stage) {
  const record: Event[] = [];
  /** Who waits, in order of arrival. */
  const waiting: string[] = [];
  const listeners = new Set<(name: string, news: News) => void>();
  const hear = (name: string, news: News) => {
    record.push({ who: name, what: news.type, at: news.at });
    const place = waiting.indexOf(name);
    if (place >= 0) waiting.splice(place, 1);
    if (news.type === "come") waiting.push(name);
    else screen.add(name, news);
    for (const listener of [...listeners]) listener(name, news);
  };
  const fail = (error: Error) => curtain.abort(error);

  /** The next news that is wanted, and of whom. */
  const next = (wanted: (name: string, news: News) => boolean) =>
    orCurtain<{ name: string } & News>((resolve) => {
      const listener = (name: string, news: News) => {
        if (!wanted(name, news)) return;
        listeners.delete(listener);
        resolve({ name, ...news });
      };
      listeners.add(listener);
    });
  const nextOf = (who: string, ...types: News["type"][]) =>
    next((name, { type }) => name === who && types.includes(type));
  const nextInside = () => next((_, { type }) => type === "enter");

  const actors = await orCurtain<Actor[]>((resolve, reject) => {
    const casting = NAMES.map((name) => stage.cast(name, { hear, fail }));
    Promise.all(casting).then(resolve, reject);
  });
  const kill = async (name: string) => {
    const victim = actors.find((actor) => actor.name === name)!;
    const at = Date.now();
    victim.kill();
    hear(name, { type: "dead", at, how: stage.death });
    // In the same breath: nobody can come in between, for somebody is inside,
    // or the ttl still runs.
    await Promise.all([stage.write(`dead ${name}`), victim.gone]);
    return { name, at };
  };

  const begunAt = Date.now();
  screen.begin(
    `1. Who comes too late is refused, and told for how long at most; ttl ${TTL} s.`,
    begunAt,
  );
  const tryAgain = async ({ name, send }: Actor) => {
    while (Date.now() - begunAt < Math.min(seconds * 150, 2_000)) {
      send({ waitMs: 0, forMs: between(300, 500) });
      await nextOf(name, "refused", "leave", "lost");
      await rest(between(200, 500));
    }
  };
  await Promise.all(actors.map(tryAgain));

  screen.begin(
    '2. They wait in line; "+2 ms": so long after the one before had left.',
    begunAt,
  );
  let isLong = false;
  let isOver = false;
  /** Nobody else may come before this one has its place: so that there is no
   * doubt about the order of arrival. */
  const come = async ({ name, send }: Actor) => {
    const coming = nextOf(name, "come");
    send({ waitMs: WAIT_MS, forMs: isLong ? LONG_MS : between(300, 500) });
    const { at } = await coming;
    for (;;) {
      await rest(5);
      const place = (await stage.line?.() ?? waiting).indexOf(name) + 1;
      // Its turn may have come meanwhile, or at once.
      if (!waiting.includes(name)) return;
      if (place > 0) return screen.add(name, { type: "waits", at, place });
    }
  };
  let arrivals = Promise.resolve();
  const comeAgain = async (actor: Actor) => {
    while (!isOver) {
      const ending = nextOf(actor.name, "leave", "lost", "dead");
      arrivals = arrivals.then(() => come(actor));
      const [{ type }] = await Promise.all([ending, arrivals]);
      if (type === "dead") return;
      await rest(between(100, 400));
    }
  };
  const murder = async () => {
    await rest(begunAt + seconds * 400 - Date.now());
    isLong = true;
    const last = await next((_, news) =>
      news.type === "enter" && news.forMs === LONG_MS && waiting.length > 1
    );
    // Those two came later than this one: they'll be in for long as well.
    isLong = false;
    await rest(100);
    // The first in line: it would be next.
    const [inLine, left, first] = await Promise.all([
      kill(waiting[0]),
      nextOf(last.name, "leave", "lost"),
      nextInside(),
    ]);
    await rest(200);
    const [inside, heir] = await Promise.all([kill(first.name), nextInside()]);
    await rest(begunAt + seconds * 1000 - Date.now());
    isOver = true;
    return { inLine, left, first, inside, heir };
  };
  const [events] = await Promise.all([murder(), ...actors.map(comeAgain)]);

  const dead = [events.inLine.name, events.inside.name];
  for (const { name, send } of actors) if (!dead.includes(name)) send("stop");
  await orCurtain((resolve) => {
    Promise.all(actors.map((actor) => actor.gone)).then(resolve);
    setTimeout(resolve, 3_000).unref();
  });
  screen.end();
  return { begunAt, record, ...events };
}

/** What is to be said of it; true if all was well. */
async function judge(
  stage: Stage,
  { begunAt, record, inLine, left, first, inside, heir }: Awaited<
    ReturnType<typeof play>
  >,
): Promise<boolean> {
  const told = turnsOf(record);
  const book = (await stage.book()).map(read);
  const written = turnsOf(book);
  const leftovers = await stage.leftovers();

  screen.say();
  screen.say(dim("      worker   turns   refused     waited     inside"));
  for (const who of NAMES) {
    const turns = told.filter((turn) => turn.who === who);
    const sum = (msOf: (turn: Turn) => number) =>
      inSeconds(turns.reduce((ms, turn) => ms + msOf(turn), 0));
    const killed = [inLine, inside].find(({ name }) => name === who);
    screen.say([
      `      ${screen.name(who, 6)}`,
      `${turns.length}`.padStart(8),
      `${refusals(who)}`.padStart(10),
      sum(({ came, from }) => from - (came ?? from)).padStart(11),
      sum(({ from, to }) => to - from).padStart(11),
      killed ? `   ${stage.death} at ${inSeconds(killed.at - begunAt)}` : "",
    ].join(""));
  }
  screen.say([
    `      ${"all".padEnd(6)}`,
    `${told.length}`.padStart(8),
    `${refusals()}`.padStart(10),
  ].join(""));
  screen.say();

  const clashes = [
    ...overlaps(told).map((pair) => describe(pair, "by their reports")),
    ...overlaps(written).map((pair) => describe(pair, "by the book")),
  ];
  if (told.length !== written.length) {
    clashes.push(`${told.length} turns reported, ${written.length} witnessed`);
  }
  if (clashes.length === 0) {
    remark(
      `never two at once: ${told.length} turns checked`,
      `by the workers' own reports, and by ${stage.witness}`,
    );
  } else remark(alarm("TWO AT ONCE"), ...clashes);
  const lost = told.filter((turn) => turn.lost).length;
  if (lost > 0) remark(`${lost} lost`, "stalled past the ttl, and told so");
  const pushers = overtakings(book);
  if (pushers.length === 0) {
    const came = written.filter((turn) => turn.came !== undefined).length;
    remark(
      `in order of arrival: ${came} turns checked`,
      "nobody was overtaken, by the book",
    );
  } else {
    const pairs = pushers.map(([who, whom]) => `${who} overtook ${whom}`);
    remark(alarm("OUT OF ORDER"), ...pairs);
  }
  const gaps = handOvers(told).map(([a, b]) => b.from - a.to)
    .sort((a, b) => a - b);
  if (gaps.length > 0) {
    remark(
      `typically ${inMs(gaps[gaps.length >> 1])} from one to the next`,
      `the middle one of ${gaps.length} hand-overs; the slowest took ${
        inMs(gaps.at(-1)!)
      }`,
    );
  }
  remark(
    `${inLine.name}'s death in line cost ${inMs(first.at - left.at)}`,
    `until ${first.name} went in, once ${left.name} had left`,
  );
  const leaseMs = Math.max(0, first.at + TTL * 1000 - inside.at);
  remark(
    `${inside.name}'s death inside cost ${inMs(heir.at - inside.at)}`,
    `until ${heir.name} went in; for ${
      inMs(leaseMs)
    } of them the lease still ran`,
  );
  if (leftovers.length === 0) {
    remark("nothing left behind", `${stage.key} is gone, and so is its line`);
  } else remark(alarm("LEFT BEHIND"), ...leftovers);
  return [clashes, pushers, leftovers].every(({ length }) => length === 0);

  function refusals(who?: string): number {
    return record.filter((one) =>
      one.what === "refused" && (who === undefined || one.who === who)
    ).length;
  }
}

/** A finding, and the small print below it. */
function remark(finding: string, ...details: string[]): void {
  screen.say(`  ${bold(finding)}`);
  for (const detail of details) screen.say(dim(`      ${detail}`));
}

function describe([a, b]: [Turn, Turn], by: string): string {
  return `${a.who} and ${b.who}, ${by}`;
}

/** A line of the book: its place is its time. */
function read(line: string, at: number): Event {
  const [what, who] = line.split(" ");
  return { who, what: what as Event["what"], at };
}

function between(least: number, most: number): number {
  return least + Math.random() * (most - least);
}

function rest(ms: number): Promise<void> {
  let timer: ReturnType<typeof setTimeout>;
  return orCurtain<void>((resolve) =>
    timer = setTimeout(resolve, Math.max(0, ms))
  )
    .finally(() => clearTimeout(timer));
}

/** A promise that also rejects when the curtain falls. */
function orCurtain<T>(
  start: (
    resolve: (value: T) => void,
    reject: (error: unknown) => void,
  ) => void,
): Promise<T> {
  const { signal } = curtain;
  return new Promise<T>((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const fall = () => reject(signal.reason);
    signal.addEventListener("abort", fall, { once: true });
    const heard = () => signal.removeEventListener("abort", fall);
    start(
      (value) => (heard(), resolve(value)),
      (error) => (heard(), reject(error)),
    );
  });
}
