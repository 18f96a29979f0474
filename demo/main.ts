/**
 * Four workers, one lock, and a murder: who is inside, who is refused, and what
 * it costs the others when the one inside is killed.
 *
 *     npm run demo
 *     deno task demo
 *     npm run demo -- 20        # seconds; 8 unless given
 */
import process from "node:process";

import { type Event, overlaps, type Turn, turnsOf } from "./check.ts";
import { alarm, bold, dim, inMs, inSeconds, Screen } from "./screen.ts";
import { type Actor, openStage, type Stage } from "./stage.ts";
import { type Report, TTL } from "./turns.ts";

const NAMES = ["ada", "bob", "cyd", "dee"];
const seconds = Number(process.argv[2] ?? 8);
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
    return await play(stage) ? 0 : 1;
  } catch (error) {
    screen.end();
    if (error === null) screen.say("\nStopped.");
    else screen.say(alarm(`\nBroke off: ${(error as Error).message}`));
    return error === null ? 130 : 1;
  } finally {
    await stage?.close();
  }
}

/** The whole of it; true if all was well. */
async function play(stage: Stage): Promise<boolean> {
  const reports: (Event | { who: string; what: "refused"; at: number })[] = [];
  const listeners = new Set<(name: string, report: Report) => void>();
  const hear = (name: string, report: Report) => {
    reports.push({ who: name, what: report.type, at: report.at });
    screen.add(name, report);
    for (const listener of [...listeners]) listener(name, report);
  };
  const fail = (error: Error) => curtain.abort(error);

  /** The next to enter, of those who are wanted. */
  const entrance = (wanted: (name: string, long: boolean) => boolean) =>
    orCurtain<{ name: string; at: number }>((resolve) => {
      const listener = (name: string, report: Report) => {
        if (report.type !== "enter" || !wanted(name, report.long)) return;
        listeners.delete(listener);
        resolve({ name, at: report.at });
      };
      listeners.add(listener);
    });

  const actors = await orCurtain<Actor[]>((resolve, reject) => {
    const casting = NAMES.map((name) => stage.cast(name, { hear, fail }));
    Promise.all(casting).then(resolve, reject);
  });
  const tell = (order: "go" | "long" | "short") => {
    for (const actor of actors) actor.send(order);
  };

  screen.say(dim(
    `Whoever is refused is told how long the lock is kept at most; ttl ${TTL} s.`,
  ));
  screen.say();
  const begunAt = Date.now();
  screen.begin(begunAt);
  tell("go");
  await rest(seconds * 300);

  // A long turn, so that there is a middle to be killed in.
  tell("long");
  const { name } = await entrance((_, long) => long);
  tell("short");
  await rest(300);
  const victim = actors.find((actor) => actor.name === name)!;
  const killedAt = Date.now();
  victim.kill();
  // In the same breath: nobody can come in between, for the ttl still runs.
  const noted = stage.write(`dead ${name}`);
  screen.add(name, { type: "killed", at: killedAt, how: stage.death });
  await Promise.all([noted, victim.gone]);
  reports.push({ who: name, what: "dead", at: Date.now() });
  const heir = await entrance((other) => other !== name);

  await rest(begunAt + seconds * 1000 - Date.now());
  for (const actor of actors) if (actor !== victim) actor.send("stop");
  await orCurtain((resolve) => {
    Promise.all(actors.map((actor) => actor.gone)).then(resolve);
    setTimeout(resolve, 3_000).unref();
  });
  screen.end();

  const told = turnsOf(reports.filter((one) => one.what !== "refused"));
  const written = turnsOf((await stage.book()).map(read));
  const left = await stage.leftovers();

  screen.say();
  screen.say(dim("      worker   turns   refused     inside"));
  for (const who of NAMES) {
    const turns = told.filter((turn) => turn.who === who);
    const inside = turns.reduce((sum, { from, to }) => sum + to - from, 0);
    const refused = count(who, "refused");
    screen.say([
      `      ${screen.name(who, 6)}`,
      `${turns.length}`.padStart(8),
      `${refused}`.padStart(10),
      inSeconds(inside).padStart(11),
      who === name ? `   killed at ${inSeconds(killedAt - begunAt)}` : "",
    ].join(""));
  }
  screen.say([
    `      ${"all".padEnd(6)}`,
    `${told.length}`.padStart(8),
    `${count(undefined, "refused")}`.padStart(10),
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
  remark(
    `${name}'s death cost ${inMs(heir.at - killedAt)}`,
    `until ${heir.name} went in: what was left of the ttl,`,
    "and the pause until the next try",
  );
  if (left.length === 0) remark("nothing left behind", `${stage.key} is gone`);
  else remark(alarm("LEFT BEHIND"), ...left);
  return clashes.length === 0 && left.length === 0;

  function count(who: string | undefined, what: string): number {
    return reports.filter((one) =>
      one.what === what && (who === undefined || one.who === who)
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

function rest(ms: number): Promise<void> {
  let timer: ReturnType<typeof setTimeout>;
  return orCurtain<void>((resolve) => timer = setTimeout(resolve, ms))
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
