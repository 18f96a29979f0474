/** The running log: a column for the time, and a lane for each worker. */
import process from "node:process";

import type { Report } from "./turns.ts";

/** What a lane shows: a worker's own report, its place, or its end. */
export type Scene =
  | Exclude<Report, { type: "come" }>
  | { type: "waits"; at: number; place: number }
  | { type: "dead"; at: number; how: string };

const isColoured = process.stdout.isTTY === true &&
  (process.env.NO_COLOR ?? "") === "" && process.env.TERM !== "dumb";

/** `text` in the colours of these SGR codes, where there are colours. */
export function paint(codes: string, text: string): string {
  return isColoured && text ? `\x1b[${codes}m${text}\x1b[0m` : text;
}

export const dim = (text: string): string => paint("2", text);
export const bold = (text: string): string => paint("1", text);
export const alarm = (text: string): string => paint("1;31", text);

/** `1,893 ms` */
export function inMs(ms: number): string {
  return `${Math.round(ms).toLocaleString("en-US")} ms`;
}

/** `1.89 s` */
export function inSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}

const COLOURS = ["36", "33", "32", "35"];
/** Time and four lanes: 79 columns. */
const TIME = 9;
const LANE = 17;

/** Messages of one instant come through pipes of their own: we wait for the
 * slowest, so that the log shows things in the order in which they happened. */
const PATIENCE_MS = 60;
/** The order within a millisecond. */
const RANK = ["leave", "lost", "dead", "enter", "waits", "refused"];
/** What stands in a lane: of who is inside, waits, or is dead. */
const INSIDE = "┃";
const WAITING = "·";
const DEAD = "┊";

/** Prints what happens, in order. */
export class Screen {
  readonly #names: readonly string[];
  /** What stands in a lane between two events of its own. */
  readonly #bars: string[];
  #begunAt = 0;
  #enteredAt = 0;
  /** When the last one left, or died inside. */
  #leftAt = 0;
  #scenes: { name: string; scene: Scene }[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(names: readonly string[]) {
    this.#names = names;
    this.#bars = names.map(() => "");
  }

  /** `name` in its own colour, at least `width` wide. */
  name(name: string, width = 0): string {
    const colour = COLOURS[this.#names.indexOf(name) % COLOURS.length];
    return paint(`1;${colour}`, name.padEnd(width));
  }

  /** A line as it is. */
  say(line = ""): void {
    process.stdout.write(`${line}\n`);
  }

  /** The head of an act; times count from `begunAt`. */
  begin(title: string, begunAt: number): void {
    this.#flush();
    this.#begunAt = begunAt;
    this.say(`\n${title}\n`);
    const names = this.#names.map((name) => this.name(name, LANE)).join("");
    this.say(dim("time".padStart(TIME - 3) + "   ") + names.trimEnd());
  }

  /** Takes note of what happened to `name`; it is shown a moment later. */
  add(name: string, scene: Scene): void {
    this.#scenes.push({ name, scene });
    this.#timer ??= setTimeout(() => this.#show(PATIENCE_MS), PATIENCE_MS);
  }

  /** Shows what is left to be shown; what comes later is not. */
  end(): void {
    this.#flush();
    this.add = () => {};
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#show(-Infinity);
  }

  #show(patienceMs: number): void {
    this.#timer = undefined;
    const until = Date.now() - patienceMs;
    const due = this.#scenes.filter(({ scene }) => scene.at <= until);
    this.#scenes = this.#scenes.filter(({ scene }) => scene.at > until);
    due.sort(({ scene: a }, { scene: b }) =>
      a.at - b.at || RANK.indexOf(a.type) - RANK.indexOf(b.type)
    );
    for (const { name, scene } of due) this.#row(name, scene);
    if (this.#scenes.length > 0) {
      this.#timer = setTimeout(() => this.#show(PATIENCE_MS), PATIENCE_MS);
    }
  }

  #row(name: string, scene: Scene): void {
    const here = this.#names.indexOf(name);
    const text = this.#enact(here, scene);
    const cells = this.#names.map((other, lane) => {
      const cell = lane === here ? text : this.#bars[lane];
      if (scene.type === "dead" && lane === here) {
        return alarm(cell.padEnd(LANE));
      }
      if (scene.type === "refused" && lane === here) {
        return dim(cell.padEnd(LANE));
      }
      return paint(COLOURS[this.#names.indexOf(other)], cell.padEnd(LANE));
    });
    const time = ((scene.at - this.#begunAt) / 1000).toFixed(3);
    this.say(dim(time.padStart(TIME - 2) + "  ") + cells.join("").trimEnd());
  }

  /** What the event's own cell says, and what its lane shows from now on. */
  #enact(lane: number, scene: Scene): string {
    const bars = this.#bars;
    const was = bars[lane];
    if (was === INSIDE) this.#leftAt = scene.at;
    switch (scene.type) {
      case "enter": {
        // Who died is off the server's books as of now.
        for (const i of bars.keys()) if (bars[i] === DEAD) bars[i] = "";
        bars[lane] = INSIDE;
        this.#enteredAt = scene.at;
        const gap = scene.at - this.#leftAt;
        if (was !== WAITING) return "┏ enters";
        return `┏ enters +${gap < 1000 ? inMs(gap) : inSeconds(gap)}`;
      }
      case "leave":
        bars[lane] = "";
        return `┗ after ${inSeconds(scene.at - this.#enteredAt)}`;
      case "lost":
        bars[lane] = "";
        return "┗ lost it";
      case "dead":
        bars[lane] = was && DEAD;
        return `╳ ${scene.how}`;
      case "waits":
        bars[lane] = WAITING;
        return `○ waits: place ${scene.place}`;
      case "refused":
        bars[lane] = "";
        return scene.retryAfterMs === undefined
          ? "○ refused"
          : `○ refused ${inSeconds(scene.retryAfterMs)}`;
    }
  }
}
