/**
 * The one `test()` for Deno, Bun and Node: node:test, called flat, so that the
 * three count alike. A test also fails for what it leaves behind: a timer set
 * by the library (it would keep somebody's process alive), a rejection or an
 * exception that nobody caught.
 */
import { appendFileSync } from "node:fs";
import nodeTest, { after, before } from "node:test";
import process from "node:process";
import { setImmediate } from "node:timers";
import { fileURLToPath } from "node:url";

import { until } from "./until.ts";

export { after, before };

/** How a test may differ from the others. */
export interface TestOptions {
  /** How long it may take; 20 s unless given. */
  timeoutMs?: number;
  /** Why timers of the library may outlive this test. */
  allowTimers?: string;
}

/** What {@linkcode watched} may be told besides. */
export interface WatchOptions extends TestOptions {
  /** Whose timers count, as part of a path in a stack; the library's. */
  folder?: string;
}

/** A timer that is neither fired nor cleared. */
interface LiveTimer {
  readonly serial: number;
  readonly ms: unknown;
  /** Read only for a suspect: to format a stack costs, to keep it does not. */
  readonly origin: { stack?: string };
}

interface Watcher {
  live: Map<unknown, LiveTimer>;
  /** What nobody caught since the running test began. */
  uncaught: unknown[];
}

const SRC = new URL("../../src/", import.meta.url);
const realSetTimeout = globalThis.setTimeout;
const realClearTimeout = globalThis.clearTimeout;
let serial = 0;

// On globalThis: where every file is a module world of its own in one process,
// a second patch over the first would call our own file the timer's origin.
const SLOT = Symbol.for("dreamer.tests.watcher");
const world = globalThis as unknown as { [SLOT]?: Watcher };
const watcher = world[SLOT] ??= install();

/** Runs `fn` as the test `name`. */
export function test(
  name: string,
  fn: () => unknown,
  options: TestOptions = {},
): void {
  // The limit that speaks is the one in watched(); the runner's is there so
  // that a lower default of its own (Bun) does not come first.
  const timeout = (options.timeoutMs ?? 20_000) + 5_000;
  nodeTest(name, { timeout }, noted(name, () => watched(fn, options)));
}

/** `run`, which writes down how it ended: see tools/clients_table.mjs. */
function noted(name: string, run: () => Promise<void>): () => Promise<void> {
  const file = process.env.TEST_LOG ?? "";
  if (file === "") return run;
  const { bun, deno } = process.versions;
  const runtime = bun ? "Bun" : deno ? "Deno" : "Node";
  return async () => {
    let ok = false;
    try {
      await run();
      ok = true;
    } finally {
      appendFileSync(file, `${JSON.stringify({ runtime, name, ok })}\n`);
    }
  };
}

/**
 * A test that cannot run here, e.g. for want of a server. It says so, and where
 * CI is set it fails: a gate that skips in silence is no gate.
 */
test.unavailable = (name: string, why: string): void => {
  const inCI = (process.env.CI ?? "") !== "";
  process.stderr.write(`SKIPPED ${name}: ${why}\n`);
  if (inCI) {
    nodeTest(name, () => {
      throw new Error(`Must not be skipped where CI is set: ${why}`);
    });
  } else {
    nodeTest(name, { skip: why }, () => {});
  }
};

/** What all of those may take that run side by side: dozens, of some processes. */
const ALL_MS = 60_000;

/** How tests run side by side. */
export interface BesideOptions extends WatchOptions {
  /** How many at a time; all, unless given. Fewer, where each starts processes. */
  atOnce?: number;
}

/**
 * Tests that wait more than they do: with the first all of them begin, and each
 * ends with its own outcome. Once all are done `finale` may look at the world,
 * and what was left behind is told by the last.
 */
test.sideBySide = (
  tests: readonly (readonly [name: string, fn: () => unknown])[],
  finale: () => unknown = () => {},
  options: BesideOptions = {},
): void => {
  const fns = tests.map(([, fn]) => fn);
  const runs = besideEachOther(fns, finale, { timeoutMs: ALL_MS, ...options });
  for (const [index, [name]] of tests.entries()) {
    const timeout = ALL_MS + 5_000;
    nodeTest(name, { timeout }, noted(name, runs[index]));
  }
};

/** Runs of `fns`: the first of them begins them all. */
export function besideEachOther(
  fns: readonly (() => unknown)[],
  finale: () => unknown,
  options: BesideOptions = {},
): (() => Promise<void>)[] {
  let { atOnce = Infinity } = options;
  const waiting: (() => void)[] = [];
  const enter = () =>
    atOnce-- > 0
      ? undefined
      : new Promise<void>((begin) => waiting.push(begin));
  const leave = () => {
    atOnce++;
    waiting.shift()?.();
  };
  let open = () => {};
  const gate = new Promise<void>((done) => open = done);
  const outcomes = fns.map((fn) => gate.then(enter).then(fn).finally(leave));
  let all: Promise<void> | undefined;
  const begin = () =>
    watched(async () => {
      open();
      await Promise.allSettled(outcomes);
      await finale();
    }, options);
  return outcomes.map((outcome, index) => async () => {
    all ??= begin();
    // Whose turn comes late finds its outcome; until then nobody asks for it.
    for (const end of [all, ...outcomes]) end.catch(() => {});
    if (index === fns.length - 1) await Promise.all([outcome, all]);
    else await Promise.race([outcome, all.then(() => outcome)]);
  });
}

/** Runs `fn` and rejects for whatever it did wrong or left behind. */
export async function watched(
  fn: () => unknown,
  options: WatchOptions = {},
): Promise<void> {
  const { timeoutMs = 20_000, folder } = options;
  const since = ++serial;
  const before = watcher.uncaught.length;
  let limit: ReturnType<typeof setTimeout> | undefined;
  try {
    await Promise.race([
      // Called in a then(), so that a synchronous throw is a rejection too.
      Promise.resolve().then(fn),
      new Promise((_, reject) => {
        limit = realSetTimeout(
          () => reject(new Error(`Not done after ${timeoutMs} ms`)),
          timeoutMs,
        );
      }),
    ]);
  } finally {
    realClearTimeout(limit);
  }
  // Rejections are reported only once the microtasks have run dry.
  await new Promise<void>((resolve) => setImmediate(resolve));
  await new Promise<void>((resolve) => setImmediate(resolve));
  const uncaught = watcher.uncaught.splice(before);
  if (uncaught.length > 0) {
    throw new Error(
      `Nobody caught: ${uncaught.map(describe).join("\n")}`,
      { cause: uncaught[0] },
    );
  }
  if (options.allowTimers) return;
  const left = leakedTimers(since, folder);
  if (left.length > 0) {
    throw new Error(
      `${left.length} timer(s) left behind, set here:\n${left.join("\n")}`,
    );
  }
}

/** How many timers of the library are neither fired nor cleared, in all tests. */
export function timersLeft(): number {
  return leakedTimers(0).length;
}

/** Resolves once none is; rejects, and tells whose they are, after 10 s. */
export async function timersEnd(): Promise<void> {
  await until("no timer is left", () => timersLeft() === 0).catch((error) => {
    throw new Error(`${error.message}\n${leakedTimers(0).join("\n")}`);
  });
}

/** The stacks of the live timers set in `folder` since `serial`. */
function leakedTimers(since: number, folder?: string): string[] {
  const stacks: string[] = [];
  for (const [handle, timer] of watcher.live) {
    if (timer.serial <= since) continue;
    // node:timers has ways around clearTimeout: close(), Symbol.dispose.
    if ((handle as { _destroyed?: boolean })?._destroyed) continue;
    const frames = (timer.origin.stack ?? "").split("\n").slice(1);
    if (!isFrom(frames[0] ?? "", folder)) continue;
    stacks.push(`${timer.ms} ms\n${frames.join("\n")}`);
  }
  return stacks;
}

/**
 * Whether a stack's frame lies in `folder`. Only the topmost frame is asked:
 * the timers that a Redis client sets while we call it are its own affair. Bun
 * has no frame for who returns setTimeout(...) outright; Deno and Node do.
 */
function isFrom(frame: string, folder?: string): boolean {
  return folder === undefined
    ? frame.includes(SRC.href) || frame.includes(fileURLToPath(SRC))
    : frame.includes(folder);
}

/** Replaces the global timers and listens for what nobody catches; once. */
function install(): Watcher {
  const watcher: Watcher = { live: new Map(), uncaught: [] };
  const { live } = watcher;
  for (const name of ["setTimeout", "setInterval"] as const) {
    const real = globalThis[name] as (...args: unknown[]) => unknown;
    const patched = function (
      callback: unknown,
      ms?: unknown,
      ...args: unknown[]
    ): unknown {
      // Bad arguments are for the runtime to refuse.
      if (typeof callback !== "function") return real(callback, ms, ...args);
      const handle = real(
        function (this: unknown, ...given: unknown[]) {
          if (name === "setTimeout") live.delete(handle);
          return callback.apply(this, given);
        },
        ms,
        ...args,
      );
      const origin: { stack?: string } = {};
      Error.captureStackTrace(origin, patched);
      live.set(handle, { serial: ++serial, ms, origin });
      return handle;
    };
    // With all that hangs on the real one, e.g. what util.promisify() asks for.
    Object.defineProperties(patched, Object.getOwnPropertyDescriptors(real));
    (globalThis as unknown as Record<string, unknown>)[name] = patched;
  }
  for (const name of ["clearTimeout", "clearInterval"] as const) {
    const real = globalThis[name];
    const patched = function (handle?: unknown): void {
      if (!live.delete(handle) && handle !== undefined && handle !== null) {
        // Node and Bun take the number of a timer for the timer, too.
        for (const other of live.keys()) {
          if (Number(other) === Number(handle)) live.delete(other);
        }
      }
      real(handle as number);
    };
    (globalThis as unknown as Record<string, unknown>)[name] = patched;
  }
  const note = (reason: unknown) => void watcher.uncaught.push(reason);
  process.on("unhandledRejection", note);
  process.on("uncaughtException", note);
  process.on("exit", () => {
    // What came after the last test has no test left to fail.
    if (watcher.uncaught.length === 0) return;
    process.stderr.write(
      `Nobody caught: ${watcher.uncaught.map(describe).join("\n")}\n`,
    );
    process.exitCode ||= 1;
  });
  return watcher;
}

function describe(reason: unknown): string {
  return reason instanceof Error && reason.stack
    ? reason.stack
    : String(reason);
}
