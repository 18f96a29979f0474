/** `ls`, `show`, `watch` and `free`: locks from outside. */
import process from "node:process";
import { createInterface } from "node:readline";

import {
  forceRelease,
  inspectLock,
  listLocks,
  LockBackendError,
  type LockInfo,
} from "@dreamer/utils/lock";

import { codeOf } from "./command.ts";
import { EXIT, misused } from "./failure.ts";
import { nameOf, showHolder } from "./report.ts";
import { type Servers, unavailable } from "./servers.ts";
import {
  FURTHEST_MS,
  jsonLine,
  plain,
  safe,
  showDuration,
  showSince,
  table,
} from "./text.ts";

/** A server that has not answered by then is taken for one that doesn't. */
const ANSWER_MS = 10_000;
/** With less the table has no room for a holder. */
const NARROWEST = 40;

/** How locks are to be shown. */
export interface View {
  readonly json: boolean;
  /** Also what is no lock of ours. */
  readonly all: boolean;
  readonly quiet: boolean;
}

/** Lists what is held. */
export async function ls(
  servers: Servers,
  pattern: string,
  view: View,
): Promise<number> {
  const locks = await locksOf(servers, pattern, view.all);
  if (view.json) print(jsonLine(locks));
  else if (view.quiet) {
    print(locks.map(({ key }) => `${plain(key)}\n`).join(""));
  } else if (locks.length > 0) {
    const width = process.stdout.isTTY ? widthOf() : Infinity;
    print(`${tableOf(locks, width).join("\n")}\n`);
  }
  return 0;
}

/** Shows one lock. */
export async function show(
  servers: Servers,
  key: string,
  { json }: Pick<View, "json">,
): Promise<number> {
  const info = await ask(servers, () => inspectLock(servers.on, key));
  if (json) print(jsonLine(info));
  else print(`${page(info).join("\n")}\n`);
  return info.held ? 0 : EXIT.notHeld;
}

/** Frees one lock, once that was confirmed. */
export async function free(
  servers: Servers,
  key: string,
  { json, yes }: { json: boolean; yes: boolean },
): Promise<number> {
  const before = await ask(servers, () => inspectLock(servers.on, key));
  if (before.held && !yes) {
    if (!process.stdin.isTTY) {
      misused("free asks before it does so: at a terminal, or say --yes");
    }
    const question = `"${plain(key)}" is held by ${
      showHolder(before)
    }. Free it?`;
    if (!await confirm(`${question} [y/N] `)) return EXIT.notHeld;
  }
  const freed = before.held &&
    await ask(servers, () => forceRelease(servers.on, key));
  if (json) {
    print(jsonLine({ key, freed, label: before.label }));
  } else if (freed) print(`"${plain(key)}" taken from ${showHolder(before)}\n`);
  else print(`nobody holds "${plain(key)}"\n`);
  return freed ? 0 : EXIT.notHeld;
}

/** Shows what is held, again and again, until a signal ends it. */
export async function watch(
  servers: Servers,
  pattern: string,
  everyMs: number,
  view: View,
): Promise<number> {
  const isLive = process.stdout.isTTY === true && !view.json;
  const screen = isLive ? new Screen(pattern) : new Changes(view.json);
  let wake = () => {};
  let ended: string | undefined;
  let end = (): void => {};
  const stop = (signal: string) => {
    ended = signal;
    end();
    wake();
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => stop(signal));
  }
  if (isLive) process.on("SIGWINCH", () => wake());
  // Whoever reads along may have had enough.
  process.stdout.on("error", () => stop("SIGPIPE"));
  screen.begin();
  try {
    while (ended === undefined) {
      // A server that says nothing keeps nobody here.
      const looking = locksOf(servers, pattern, view.all);
      // One for each look: a promise that stays keeps all that it raced with.
      const isOver = new Promise<void>((resolve) => end = resolve);
      const locks = await Promise.race([looking, isOver]);
      looking.catch(() => {});
      if (locks === undefined || ended !== undefined) break;
      screen.show(locks);
      await new Promise<void>((done) => {
        const timer = setTimeout(done, Math.min(everyMs, FURTHEST_MS));
        wake = () => {
          clearTimeout(timer);
          done();
        };
      });
    }
  } finally {
    screen.end();
  }
  return ended === "SIGINT" ? 0 : codeOf(ended ?? "");
}

/** A table that is drawn over itself. */
class Screen {
  readonly #pattern: string;
  #height = 0;

  constructor(pattern: string) {
    this.#pattern = pattern;
  }

  begin(): void {
    print("\x1b[?25l");
  }

  show(locks: readonly LockInfo[]): void {
    const rows = Math.max(3, (process.stdout.rows || 24) - 1);
    const count = `${locks.length} ${locks.length === 1 ? "lock" : "locks"}`;
    const head = `${plain(this.#pattern)}  ${count}  ${showSince(0)}`;
    const lines = [head, ...locks.length > 0 ? tableOf(locks, widthOf()) : []];
    const more = lines.length - rows;
    const shown = more > 0
      ? [...lines.slice(0, rows - 1), `… and ${more + 1} more`]
      : lines;
    const back = this.#height > 0 ? `\x1b[${this.#height}A` : "";
    print(`${back}\r${shown.map((line) => `${line}\x1b[K\n`).join("")}\x1b[J`);
    this.#height = shown.length;
  }

  end(): void {
    print("\x1b[?25h");
  }
}

/** A line for each that came, went or changed hands. */
class Changes {
  readonly #json: boolean;
  readonly #known = new Map<string, LockInfo>();

  constructor(json: boolean) {
    this.#json = json;
  }

  begin(): void {}

  show(locks: readonly LockInfo[]): void {
    const here = new Set(locks.map(({ key }) => key));
    for (const info of locks) {
      const before = this.#known.get(info.key);
      this.#known.set(info.key, info);
      if (before === undefined || isAnother(before, info)) {
        this.#tell("held", info);
      } else if (before.waiting !== info.waiting) this.#tell("line", info);
    }
    for (const [key, { label }] of this.#known) {
      if (here.has(key)) continue;
      this.#known.delete(key);
      this.#tell("free", {
        key,
        held: false,
        ...label !== undefined && { label },
      });
    }
  }

  end(): void {}

  #tell(event: "held" | "line" | "free", info: LockInfo): void {
    if (this.#json) return print(jsonLine({ event, ...info }));
    const key = plain(info.key);
    print(
      event === "free"
        ? `${showSince(0)} ${key} free\n`
        : `${showSince(0)} ${key} held by ${showHolder(info)}, ${
          info.waiting ?? 0
        } in line\n`,
    );
  }
}

/** Whether it is not the hold that it was. */
function isAnother(before: LockInfo, now: LockInfo): boolean {
  return before.label !== now.label ||
    before.fencingToken !== now.fencingToken;
}

/** All that is held, by key. */
async function locksOf(
  servers: Servers,
  pattern: string,
  all: boolean,
): Promise<LockInfo[]> {
  const locks: LockInfo[] = [];
  await ask(servers, async () => {
    for await (const info of listLocks(servers.on, pattern)) {
      if (all || !info.isForeign) locks.push(info);
    }
  });
  return locks.sort((a, b) => a.key < b.key ? -1 : 1);
}

/** What the server says, or that it doesn't. */
async function ask<T>(
  servers: Servers,
  question: () => Promise<T>,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(unavailable(servers)), ANSWER_MS);
  });
  try {
    return await Promise.race([question(), limit]);
  } catch (error) {
    throw error instanceof LockBackendError
      ? unavailable(servers, error)
      : error;
  } finally {
    clearTimeout(timer);
  }
}

function tableOf(locks: readonly LockInfo[], width: number): string[] {
  const rows = locks.map((info) => [
    plain(info.key),
    nameOf(info),
    info.heldMs === undefined ? "" : showDuration(info.heldMs),
    info.remainingMs === undefined
      ? "for good"
      : showDuration(info.remainingMs),
    info.waiting === undefined ? "" : `${info.waiting}`,
  ]);
  return table([["KEY", "HOLDER", "HELD", "LEFT", "LINE"], ...rows], width, 1);
}

function page(info: LockInfo): string[] {
  const { key, held, heldMs, remainingMs, fencingToken, waiting, line } = info;
  const rows: [string, string][] = [["key", plain(key)]];
  rows.push(["holder", held ? nameOf(info) : "nobody"]);
  if (heldMs !== undefined) {
    rows.push(["held", `${showDuration(heldMs)}, since ${showSince(heldMs)}`]);
  }
  if (held) {
    rows.push([
      "remaining",
      remainingMs === undefined
        ? "until it is deleted"
        : `${showDuration(remainingMs)}, unless renewed`,
    ]);
  }
  if (fencingToken !== undefined) rows.push(["token", `${fencingToken}`]);
  if (waiting !== undefined) {
    rows.push(["line", waiting === 0 ? "nobody" : `${waiting}`]);
    for (const [i, { label, waitedMs }] of (line ?? []).entries()) {
      const who = label === undefined ? "without a label" : safe(label);
      rows.push([`  ${i + 1}`, `${who}, for ${showDuration(waitedMs)}`]);
    }
    if (waiting > (line?.length ?? 0)) rows.push(["  …", ""]);
  }
  return rows.map(([name, value]) => `${name.padEnd(11)}${value}`.trimEnd());
}

function confirm(question: string): Promise<boolean> {
  const asked = createInterface({
    input: process.stdin,
    output: process.stderr,
  });
  return new Promise((resolve) => {
    asked.question(question, (answer) => {
      resolve(/^y(es)?$/i.test(answer.trim()));
      asked.close();
    });
    asked.on("close", () => resolve(false));
  });
}

function widthOf(): number {
  return Math.max(NARROWEST, process.stdout.columns || 80);
}

function print(text: string): void {
  process.stdout.write(text);
}
