/** What can be said on the command line: the table that all else is made of. */
import { parseArgs } from "node:util";

import { misused } from "./failure.ts";
import { readDuration, redact } from "./text.ts";

/** Ten years: what is longer is a slip of the finger. */
const LONGEST_MS = 3_652 * 86_400_000;

/** One option. */
export interface Option {
  /** What stands for its value in the help; a switch has none. */
  readonly value?: string;
  readonly short?: string;
  readonly help: string;
  /** What it is if it is not given, as it is shown. */
  readonly preset?: string;
  readonly multiple?: true;
  /** What can stand there, for completion. */
  readonly choices?: readonly string[];
}

/** One command. */
export interface Subcommand {
  /** What follows its name. */
  readonly usage: string;
  readonly help: string;
  /** More, for its own page. */
  readonly more: readonly string[];
  readonly options: Readonly<Record<string, Option>>;
  /** How many keys or patterns there may be. */
  readonly operands: readonly [least: number, most: number];
  /** Whether a command follows after `--`. */
  readonly takesCommand: boolean;
}

const ANYWHERE: Record<string, Option> = {
  redis: {
    value: "URL",
    help: "the server; thrice or more: a quorum",
    preset: "$REDIS_URL",
    multiple: true,
  },
  cacert: { value: "FILE", help: "whom to trust for rediss://" },
  json: { help: "for programs" },
  help: { short: "h", help: "this page" },
};

const UNDER_A_LOCK: Record<string, Option> = {
  wait: { value: "TIME", help: "for how long to be patient" },
  ttl: {
    value: "TIME",
    help: "what a crash costs the others",
    preset: "30s",
  },
  "on-lost": {
    value: "stop|ignore",
    help: "the command, if the lock is lost",
    preset: "stop",
    choices: ["stop", "ignore"],
  },
  grace: {
    value: "TIME",
    help: "from its SIGTERM to SIGKILL",
    preset: "5s, at most ttl/3",
  },
  label: { value: "TEXT", help: "who holds it, for the others to see" },
  "conflict-exit-code": {
    short: "E",
    value: "N",
    help: "if it is taken",
    preset: "75",
  },
  verbose: { short: "v", help: "say what happens" },
};

const ALL: Option = { short: "a", help: "keys of other programs, too" };

export const SUBCOMMANDS: Readonly<Record<string, Subcommand>> = {
  run: {
    usage: "KEY... -- COMMAND [ARGS]",
    help: "a command while nobody else does",
    more: [
      "The exit code is the command's, or 64 usage, 69 no server, 75 taken,",
      "76 lock lost, 126/127 no such command, 128+N signal N.",
      "The command has LOCK_KEY, LOCK_FENCING_TOKEN and LOCK_DEADLINE_MS.",
    ],
    options: {
      ...UNDER_A_LOCK,
      wait: { ...UNDER_A_LOCK.wait, preset: "as long as it takes" },
      "no-wait": { short: "n", help: "give up at once if it is taken" },
      ...ANYWHERE,
    },
    operands: [1, Infinity],
    takesCommand: true,
  },
  once: {
    usage: "KEY --keep TIME -- COMMAND",
    help: "the same, once in a while for all",
    more: [
      "Taken, it says nothing and exits with 0: somebody else has done it.",
      "A command that fails frees the lock, unless --keep-failed.",
    ],
    options: {
      keep: { value: "TIME", help: "from the start: hold it at least" },
      "keep-failed": { help: "also if the command fails" },
      ...UNDER_A_LOCK,
      wait: { ...UNDER_A_LOCK.wait, preset: "0" },
      "conflict-exit-code": {
        ...UNDER_A_LOCK["conflict-exit-code"],
        preset: "0",
      },
      ...ANYWHERE,
    },
    operands: [1, 1],
    takesCommand: true,
  },
  ls: {
    usage: "[PATTERN]",
    help: "who holds what",
    more: [
      "PATTERN is a glob: *, ?, [a-z]. Without one all keys are looked at.",
    ],
    options: {
      all: ALL,
      quiet: { short: "q", help: "the keys alone" },
      ...ANYWHERE,
    },
    operands: [0, 1],
    takesCommand: false,
  },
  show: {
    usage: "KEY",
    help: "one lock: holder, token, who waits",
    more: ["Exits with 1 if nobody holds it."],
    options: ANYWHERE,
    operands: [1, 1],
    takesCommand: false,
  },
  watch: {
    usage: "[PATTERN]",
    help: "the same as ls, live",
    more: ["Not at a terminal it prints what changes, line by line."],
    options: {
      every: { value: "TIME", help: "between two looks", preset: "1s" },
      all: ALL,
      ...ANYWHERE,
    },
    operands: [0, 1],
    takesCommand: false,
  },
  free: {
    usage: "KEY",
    help: "take it from whoever holds it",
    more: [
      "The holder is told, and stops its command. Exits with 1 if nobody",
      "held it.",
    ],
    options: {
      yes: { short: "y", help: "do not ask" },
      ...ANYWHERE,
    },
    operands: [1, 1],
    takesCommand: false,
  },
  completion: {
    usage: "bash|zsh",
    help: "a script that completes all this",
    more: ['For example, in .bashrc:  eval "$(lock-cli completion bash)"'],
    options: { help: ANYWHERE.help },
    operands: [1, 1],
    takesCommand: false,
  },
};

/** What was said. */
export interface Said {
  readonly operands: readonly string[];
  readonly command: readonly string[];
  has(name: string): boolean;
  text(name: string): string | undefined;
  all(name: string): string[] | undefined;
  /** In milliseconds. */
  duration(name: string): number | undefined;
}

/** Reads what follows the name of a command. */
export function readArguments(
  name: string,
  { options, operands: [least, most], takesCommand }: Subcommand,
  args: readonly string[],
): Said {
  const at = takesCommand ? args.indexOf("--") : -1;
  const own = at < 0 ? [...args] : args.slice(0, at);
  const command = at < 0 ? [] : args.slice(at + 1);
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({
      args: own,
      allowPositionals: true,
      options: Object.fromEntries(
        Object.entries(options).map(([name, { value, short, multiple }]) => [
          name,
          {
            type: value === undefined ? "boolean" : "string",
            ...short && { short },
            ...multiple && { multiple },
          },
        ]),
      ),
    });
  } catch (error) {
    // Its first sentence, or line; the rest is about how it is used.
    const [first] = redact((error as Error).message).split(/\.[ ?]/);
    return misused(`${first}; see lock-cli ${name} --help`);
  }
  const { values, positionals } = parsed;
  if (values.help !== true) {
    if (positionals.length < least) {
      misused(`${name} wants a ${most === 1 ? operandOf(name) : "KEY"}`);
    }
    if (positionals.length > most) {
      const extra = redact(positionals[most]);
      misused(
        `${name} doesn't know what to do with "${extra}"` +
          (takesCommand ? ": the command comes after --" : ""),
      );
    }
    if (positionals.includes("")) misused("a key must not be empty");
    if (takesCommand && command.length === 0) {
      misused(`${name} wants a command, after --`);
    }
    if (command[0] === "") misused("a command must not be empty");
  }
  return {
    operands: positionals,
    command,
    has: (option) => values[option] === true,
    text: (option) => values[option] as string | undefined,
    all: (option) => values[option] as string[] | undefined,
    duration(option) {
      const text = values[option] as string | undefined;
      if (text === undefined) return undefined;
      const ms = readDuration(text) ?? misused(
        `--${option} wants a time such as 250ms, 30s or 5m, not "${
          redact(text)
        }"`,
      );
      return ms <= LONGEST_MS
        ? ms
        : misused(`--${option} wants a time of at most ten years`);
    },
  };
}

function operandOf(name: string): string {
  return name === "completion" ? "shell: bash or zsh" : "KEY";
}

/** The page that `--help` shows. */
export function helpOf(name?: string): string {
  if (name === undefined) return overview();
  const { usage, help, more, options } = SUBCOMMANDS[name];
  const rows = Object.entries(options).map(([long, option]) => {
    const { short, value, help, preset } = option;
    const left = `${short ? `-${short}, ` : "    "}--${long}` +
      (value ? ` ${value}` : "");
    return [left, preset === undefined ? help : `${help} (${preset})`];
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return [
    `lock-cli ${name} ${usage}`,
    `  ${help}`,
    "",
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}${right}`),
    "",
    ...more,
    "",
  ].join("\n");
}

function overview(): string {
  const rows = Object.entries(SUBCOMMANDS).map(([name, { usage, help }]) =>
    `  ${`${name} ${usage}`.padEnd(39)}${help}`
  );
  return `\
lock-cli COMMAND: one of us at a time, on all machines with one Redis

${rows.join("\n")}

  lock-cli run deploy -- ./deploy.sh
  lock-cli run --no-wait sync -- rsync -a src/ host:dst/
  lock-cli once report --keep 1h -- ./report.sh

--redis URL, or REDIS_URL, names the server: redis://user:password@host:6379/0,
rediss:// for TLS, unix:///path; thrice or more for a quorum; env:NAME for what
is in that variable. Without any it is localhost:6379. Times are 250ms, 30s, 5m.

lock-cli COMMAND --help says more, --version which version this is.
`;
}
