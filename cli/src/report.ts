/** What is said on stderr while a command waits or runs, and to whom. */
import process from "node:process";

import type { LockInfo } from "@dreamer/utils/lock";

import { cut, jsonLine, safe, showDuration, showSince } from "./text.ts";

/** What happened, for a program that reads along. */
export type Happening = { event: string } & Record<string, unknown>;

/** How loud to be. */
export interface Loudness {
  readonly json: boolean;
  readonly verbose: boolean;
}

const REDRAW_MS = 500;

/** Tells of one call, in words or in lines of JSON. */
export class Reporter {
  readonly #json: boolean;
  readonly #verbose: boolean;
  #line: (() => string) | undefined;
  #redraw: ReturnType<typeof setInterval> | undefined;

  constructor({ json, verbose }: Loudness) {
    this.#json = json;
    this.#verbose = verbose;
  }

  /** Whether a live line can be drawn. */
  get isLive(): boolean {
    return !this.#json && process.stderr.isTTY === true;
  }

  /** What everybody is to know. */
  say(text: string, happening: Happening): void {
    this.endLine();
    process.stderr.write(
      this.#json ? jsonLine(happening) : `lock-cli: ${text}\n`,
    );
  }

  /** What only those want to know who asked for it. */
  mention(text: string, happening: Happening): void {
    if (this.#verbose || this.#json) this.say(text, happening);
  }

  /** Keeps a line up to date until something else is said. */
  live(line: () => string): void {
    this.#line = line;
    this.#draw();
    this.#redraw ??= setInterval(() => this.#draw(), REDRAW_MS);
  }

  endLine(): void {
    clearInterval(this.#redraw);
    this.#redraw = undefined;
    if (this.#line !== undefined) process.stderr.write("\r\x1b[K");
    this.#line = undefined;
  }

  #draw(): void {
    const width = (process.stderr.columns || 80) - 1;
    process.stderr.write(`\r\x1b[K${cut(this.#line?.() ?? "", width)}`);
  }
}

/** Who has it: `root@web-3 pid 7: sync.sh for 2m 3s`. */
export function showHolder(info: LockInfo | undefined): string {
  if (info === undefined || !info.held) return "somebody";
  const who = nameOf(info);
  return info.heldMs === undefined
    ? who
    : `${who} for ${showDuration(info.heldMs)}`;
}

/** The same with the time of day: since when exactly. */
export function showHolderSince(info: LockInfo | undefined): string {
  const holder = showHolder(info);
  return info?.heldMs === undefined
    ? holder
    : `${holder}, since ${showSince(info.heldMs)}`;
}

/** The holder's label, or what there is instead. */
export function nameOf({ label, isForeign }: LockInfo): string {
  if (label !== undefined && label !== "") return safe(label);
  return isForeign ? "another program" : "somebody without a label";
}
