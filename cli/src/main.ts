/** From the command line to the command. */
import process from "node:process";

import { completionFor } from "./completion.ts";
import { EXIT, Failure, misused } from "./failure.ts";
import { free, ls, show, watch } from "./look.ts";
import { helpOf, readArguments, type Said, SUBCOMMANDS } from "./options.ts";
import { type Errand, run } from "./run.ts";
import { connectTo, readPlaces } from "./servers.ts";
import { jsonLine, redact } from "./text.ts";

/** As in deno.json and package.json, which a test compares. */
export const VERSION = "0.1.0";

const DEFAULT_TTL_MS = 30_000;
const DEFAULT_GRACE_MS = 5_000;
const LONGEST_LABEL = 200;

/** Does what `args` ask for: the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const { exitCode, message } = error;
    process.stderr.write(
      wantsJson(args)
        ? jsonLine({ event: "failed", exitCode, message })
        : `lock-cli: ${message}\n`,
    );
    return exitCode;
  }
}

/** Also where something else that was said can't be read. */
function wantsJson(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  return (end < 0 ? args : args.slice(0, end)).includes("--json");
}

async function dispatch([name, ...args]: readonly string[]): Promise<number> {
  if (name === undefined) {
    process.stderr.write(helpOf());
    return EXIT.usage;
  }
  if (name === "--help" || name === "-h" || name === "help") {
    const [about] = args;
    process.stdout.write(helpOf(isSubcommand(about) ? about : undefined));
    return 0;
  }
  if (name === "--version" || name === "-V") {
    process.stdout.write(`lock-cli ${VERSION}\n`);
    return 0;
  }
  if (!isSubcommand(name)) {
    const known = Object.keys(SUBCOMMANDS).join(", ");
    return misused(`there is no command "${redact(name)}": ${known}`);
  }
  const subcommand = SUBCOMMANDS[name];
  const said = readArguments(name, subcommand, args);
  if (said.has("help")) {
    process.stdout.write(helpOf(name));
    return 0;
  }
  if (name === "completion") {
    const script = completionFor(said.operands[0]);
    if (script === undefined) misused("completion knows bash and zsh");
    process.stdout.write(script);
    return 0;
  }
  if (subcommand.takesCommand) return await run(readErrand(name, said));
  const everyMs = said.duration("every") ?? 1_000;
  if (everyMs < 100) misused("--every must be at least 100ms");
  const places = readPlaces(said.all("redis"));
  const servers = await connectTo(places, said.text("cacert"));
  const [operand = "*"] = said.operands;
  const view = {
    json: said.has("json"),
    all: said.has("all"),
    quiet: said.has("quiet"),
    yes: said.has("yes"),
  };
  switch (name) {
    case "ls":
      return await ls(servers, operand, view);
    case "show":
      return await show(servers, operand, view);
    case "free":
      return await free(servers, operand, view);
    default:
      return await watch(servers, operand, everyMs, view);
  }
}

function isSubcommand(name: string | undefined): name is string {
  return name !== undefined && Object.hasOwn(SUBCOMMANDS, name);
}

/** Reads what `run` and `once` have in common, and what they have not. */
function readErrand(name: string, said: Said): Errand {
  const isOnce = name === "once";
  const ttlMs = said.duration("ttl") ?? DEFAULT_TTL_MS;
  if (ttlMs < 100) misused("--ttl must be at least 100ms");
  const longestMs = Math.floor(ttlMs / 3);
  const graceMs = said.duration("grace") ??
    Math.min(DEFAULT_GRACE_MS, longestMs);
  if (graceMs > longestMs) {
    misused("--grace must be at most a third of --ttl: it is taken from there");
  }
  const onLost = said.text("on-lost") ?? "stop";
  if (onLost !== "stop" && onLost !== "ignore") {
    misused("--on-lost must be stop or ignore");
  }
  const code = said.text("conflict-exit-code") ??
    `${isOnce ? 0 : EXIT.taken}`;
  if (!/^\d+$/.test(code) || Number(code) > 255) {
    misused("--conflict-exit-code must be a number from 0 to 255");
  }
  const label = said.text("label");
  if (label !== undefined && label.length > LONGEST_LABEL) {
    misused(`--label must be of at most ${LONGEST_LABEL} characters`);
  }
  const wait = said.duration("wait");
  if (wait !== undefined && said.has("no-wait")) {
    misused("--wait and --no-wait contradict each other");
  }
  const keepMs = said.duration("keep");
  if (isOnce && (keepMs === undefined || keepMs === 0)) {
    misused("once wants --keep: for how long others are kept out");
  }
  return {
    places: readPlaces(said.all("redis")),
    cacert: said.text("cacert"),
    keys: said.operands,
    command: said.command,
    waitMs: said.has("no-wait") ? 0 : wait ?? (isOnce ? 0 : Infinity),
    ttlMs,
    graceMs,
    onLost,
    label,
    takenCode: Number(code),
    keepMs,
    keepFailed: said.has("keep-failed"),
    json: said.has("json"),
    verbose: said.has("verbose"),
  };
}
