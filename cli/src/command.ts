/**
 * The command that runs under the lock: its processes, and how they are told
 * to stop.
 *
 * Without a terminal it leads a group of its own, and all in it are told. At a
 * terminal it stays in the group of the shell's job, or it could neither ask
 * for a password there nor be stopped by Ctrl-Z; there the terminal itself
 * tells everybody of Ctrl-C, and its descendants are found by their parents.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import process from "node:process";

import { EXIT, Failure } from "./failure.ts";
import { redact } from "./text.ts";

/** How it ended: its exit code, or 128 and the number of the signal. */
export interface Ending {
  readonly code: number;
  readonly signal: NodeJS.Signals | undefined;
}

/** It runs. */
export interface Command {
  readonly exited: Promise<Ending>;
  /** Passes on a signal that we got. */
  tell(signal: NodeJS.Signals): void;
  /** Ends all of it: SIGTERM now, SIGKILL `graceMs` later. */
  stop(graceMs: number): Promise<void>;
  /** From now on nobody ends it because we are gone. */
  letGo(): void;
}

/** What is passed on; the terminal's own go by themselves at a terminal. */
export const SIGNALS = [
  ...["SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"],
] as NodeJS.Signals[];
const OF_THE_TERMINAL = ["SIGINT", "SIGQUIT"];

/** As a shell has it. */
export function codeOf(signal: string): number {
  const numbers: Record<string, number> = constants.signals;
  return EXIT.signalled + (numbers[signal] ?? 0);
}

const windows = process.platform === "win32";
const LOOK_MS = 20;

/**
 * Waits for the end of its input, which comes when we are gone in whatever way,
 * and ends the command then: `$1`, in tenths of a second. `$2` is its process,
 * and `$3` its group, if it leads one.
 */
const GUARD = `
trap '' HUP INT QUIT TERM
pairs() {
  awk '/^Pid:/ {p = $2} /^PPid:/ {print p, $2}' /proc/[0-9]*/status ||
    ps -A -o pid= -o ppid=
}
all() {
  [ -n "$3" ] && { echo "-$3"; return; }
  pairs | awk -v root="$2" '{up[$1] = $2} END {
    for (p in up) {
      for (a = p; a in up && a != root && n[p]++ < 99;) a = up[a]
      if (a == root) print p
    }
  }'
}
tell() { for one in $them; do kill -s "$1" -- "$one"; done; }
while read -r _; do :; done
them=$(all "$@")
tell TERM
tell CONT
i=0
while [ "$i" -lt "$1" ] && tell 0; do sleep 0.1; i=$((i + 1)); done
them="$them $(all "$@")"
tell KILL
`;

/**
 * Starts it, with our own stdin, stdout and stderr.
 *
 * @param graceMs What the guard gives it, should we be killed; no guard if
 * `undefined`.
 * @throws {Failure} There is no such command, or it can't be run.
 */
export async function start(
  [program, ...args]: readonly string[],
  env: Record<string, string>,
  graceMs: number | undefined,
): Promise<Command> {
  const { stdin, stdout, stderr } = process;
  const isAtTerminal = [stdin, stdout, stderr].some(({ isTTY }) => isTTY);
  const leadsGroup = !isAtTerminal && !windows;
  let child: ChildProcess;
  try {
    child = spawn(program, args, {
      stdio: "inherit",
      env: { ...process.env, ...env },
      detached: leadsGroup,
    });
  } catch (error) {
    throw unstarted(program, error);
  }
  const ended = new Promise<Ending>((resolve) =>
    child.on("exit", (code, signal) =>
      resolve({
        code: code ?? codeOf(signal ?? ""),
        signal: signal ?? undefined,
      }))
  );
  const begins = begun(child, program);
  const pid = child.pid ?? 0;
  // In the same breath, or we could be killed in between.
  const guard = pid === 0 || graceMs === undefined || windows
    ? undefined
    : watchOver(pid, leadsGroup, graceMs);
  try {
    await begins;
  } catch (error) {
    guard?.kill("SIGKILL");
    throw error;
  }
  const family = leadsGroup ? new Group(pid) : new Descendants(pid);
  let hasEnded = false;
  void ended.then(() => hasEnded = true);
  let stopping: Promise<void> | undefined;

  async function stop(graceMs: number): Promise<void> {
    const until = performance.now() + graceMs;
    family.tell("SIGTERM");
    // One that is stopped would not hear of it.
    if (!windows) family.tell("SIGCONT");
    while (family.isAlive() && performance.now() < until) {
      const leftMs = Math.max(0, until - performance.now());
      await new Promise((done) => setTimeout(done, Math.min(LOOK_MS, leftMs)));
    }
    family.tell("SIGKILL");
    await ended;
  }

  return {
    exited: ended,
    tell(signal) {
      // Ours by the terminal, the command has it as well.
      const isKnown = isAtTerminal && OF_THE_TERMINAL.includes(signal) &&
        isInForeground();
      if (!hasEnded && !isKnown) family.tell(signal);
    },
    stop: (graceMs) => stopping ??= stop(graceMs),
    letGo: () => void guard?.kill("SIGKILL"),
  };
}

/** Resolves once it runs. */
function begun(child: ChildProcess, program: string): Promise<void> {
  return new Promise((resolve, reject) => {
    child.on("spawn", resolve);
    child.on("error", (error) => reject(unstarted(program, error)));
  });
}

/** What is said of one that did not come to run: at once or in an event. */
function unstarted(program: string, error: unknown): Failure {
  const { code } = error as NodeJS.ErrnoException;
  // Too long a name is nowhere either, and Deno and Bun say so themselves.
  return code === "ENOENT" || code === "ENAMETOOLONG"
    ? new Failure(EXIT.notFound, `${redact(program)}: there is no such command`)
    : new Failure(
      EXIT.notExecutable,
      `${redact(program)}: it can't be executed`,
    );
}

function watchOver(
  pid: number,
  leadsGroup: boolean,
  graceMs: number,
): ChildProcess {
  const tenths = Math.ceil(graceMs / 100);
  const guard = spawn(
    "/bin/sh",
    [
      ...["-c", GUARD, `guard of lock-cli ${process.pid}`, `${tenths}`],
      ...[`${pid}`, leadsGroup ? `${pid}` : ""],
    ],
    // In a session of its own: what ends us must not end it along.
    { stdio: ["pipe", "ignore", "ignore"], detached: true },
  );
  // Where there is no shell there is no guard.
  guard.on("error", () => {});
  guard.stdin?.on("error", () => {});
  return guard;
}

/** All processes of a group. */
class Group {
  readonly #id: number;

  constructor(id: number) {
    this.#id = id;
  }

  tell(signal: NodeJS.Signals): void {
    send(-this.#id, signal);
  }

  isAlive(): boolean {
    return send(-this.#id, 0);
  }
}

/** A process and all that came of it. */
class Descendants {
  /** Those who lost their parents since are still known. */
  readonly #known = new Set<number>();

  constructor(root: number) {
    this.#known.add(root);
  }

  tell(signal: NodeJS.Signals): void {
    this.#look();
    for (const pid of this.#known) send(pid, signal);
  }

  isAlive(): boolean {
    this.#look();
    return [...this.#known].some(isRunning);
  }

  #look(): void {
    const parents = parentsOfAll();
    let size;
    do {
      size = this.#known.size;
      for (const [pid, parent] of parents) {
        if (this.#known.has(parent)) this.#known.add(pid);
      }
    } while (this.#known.size > size);
    for (const pid of this.#known) {
      if (!parents.has(pid)) this.#known.delete(pid);
    }
  }
}

/** The parent of each process there is. */
function parentsOfAll(): Map<number, number> {
  const parents = new Map<number, number>();
  if (process.platform === "linux") {
    for (const name of readdirSync("/proc")) {
      if (!/^\d+$/.test(name)) continue;
      const [state, parent] = statusOf(Number(name)) ?? [];
      if (state !== undefined && state !== "Z") {
        parents.set(Number(name), Number(parent));
      }
    }
  } else if (!windows) {
    const list = ["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="];
    const { stdout } = spawnSync("ps", list, { encoding: "utf8" });
    for (const line of (stdout ?? "").split("\n")) {
      const [pid, parent, state = "Z"] = line.trim().split(/\s+/);
      if (!state.startsWith("Z")) parents.set(Number(pid), Number(parent));
    }
  }
  return parents;
}

/** What Linux says of a process: its state, parent, group, … */
function statusOf(pid: number | "self"): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    // Gone by now.
    return undefined;
  }
}

function isRunning(pid: number): boolean {
  return send(pid, 0);
}

/** Whether the terminal's keys reach us: we are its foreground job. */
function isInForeground(): boolean {
  const [, , group, , , foreground] = statusOf("self") ?? [];
  return group === undefined || group === foreground;
}

/** Whether there was anybody to get it. */
function send(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}
