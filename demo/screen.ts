/** The running log: a column for the time, and a lane for each worker. */
import process from "node:process";

import type { Report } from "./turns.ts";

/** What a lane shows: a worker's own report, or its end at another's hand. */
export type Scene = Report | { type: "killed"; at: number; how: string };

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
const RANK = ["leave", "lost", "killed", "enter", "refused"];

/** Prints what happens, in order. */
export class Screen {
  readonly #names: readonly string[];
  /** What stands in a lane between two events of its own. */
  readonly #bars: string[];
  #begunAt = 0;
  #enteredAt = 0;
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

  /** The head of the log; times count from here. */
  begin(at: number): void {
    this.#begunAt = at;
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
    clearTimeout(this.#timer);
    this.#show(-Infinity);
    this.add = () => {};
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
      if (scene.type === "killed" && lane === here) {
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
    switch (scene.type) {
      case "enter":
        // Who died in here is off the server's books as of now.
        for (const i of bars.keys()) if (bars[i] === "┊") bars[i] = "";
        bars[lane] = "┃";
        this.#enteredAt = scene.at;
        return "┏ enters";
      case "leave":
        bars[lane] = "";
        return `┗ after ${inSeconds(scene.at - this.#enteredAt)}`;
      case "lost":
        bars[lane] = "";
        return "┗ lost it";
      case "killed":
        bars[lane] = bars[lane] && "┊";
        return `╳ ${scene.how}`;
      case "refused":
        return scene.retryAfterMs === undefined
          ? "○ refused"
          : `○ refused ${inSeconds(scene.retryAfterMs)}`;
    }
  }
}
