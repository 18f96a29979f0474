/**
 * A real terminal for a program: `script` of util-linux opens one, and we read
 * what comes out as the eye would, and type what we like.
 */
import { execFileSync, spawn } from "node:child_process";
import process from "node:process";

import { until } from "../../../tests/support/until.ts";

import { ROOT } from "./cli.ts";

/** Why there is no terminal to be had, or undefined where there is. */
export function terminalMissing(): string | undefined {
  try {
    const version = execFileSync("script", ["--version"], { encoding: "utf8" });
    if (version.includes("util-linux")) return undefined;
  } catch {
    // None, or one of another family.
  }
  return "no script(1) of util-linux on PATH";
}

/** A terminal with something running in it. */
export interface Terminal extends AsyncDisposable {
  /** What is to be seen, line by line, without blanks at the end. */
  readonly lines: string[];
  /** All that came so far, as it came. */
  readonly raw: string;
  /** The exit code of what runs there. */
  readonly exited: Promise<number>;
  type(text: string): void;
  /** Resolves once `look` finds something among the lines. */
  shows(look: RegExp): Promise<void>;
}

/** Opens one and runs `command` there, a line for a shell. */
export function openTerminal(
  command: string,
  { env = {}, columns = 80, rows = 24 }: {
    env?: Record<string, string>;
    columns?: number;
    rows?: number;
  } = {},
): Terminal {
  const sized = `stty cols ${columns} rows ${rows}; ${command}`;
  const child = spawn("script", ["-qfec", sized, "/dev/null"], {
    cwd: ROOT,
    env: {
      ...process.env,
      REDIS_URL: "",
      TERM: "xterm",
      SHELL: "/bin/sh",
      ...env,
    },
  });
  const screen = new Screen(rows);
  let raw = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    raw += text;
    screen.write(text);
  });
  child.stdin.on("error", () => {});
  const exited = new Promise<number>((resolve) =>
    child.on("close", (code) => resolve(code ?? -1))
  );
  return {
    get lines() {
      return screen.lines;
    },
    get raw() {
      return raw;
    },
    exited,
    type: (text) => void child.stdin.write(text),
    async shows(look) {
      try {
        await until(
          `${look} on the screen`,
          () => look.test(screen.lines.join("\n")),
        );
      } catch (error) {
        throw new Error(`${error}\n${screen.lines.join("\n")}`);
      }
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

/** As much of a terminal as our programs ask for. */
export class Screen {
  readonly #rows: number;
  #lines: string[] = [""];
  #row = 0;
  #column = 0;
  #pending = "";

  constructor(rows: number) {
    this.#rows = rows;
  }

  get lines(): string[] {
    const lines = this.#lines.map((line) => line.trimEnd());
    while (lines.length > 0 && lines.at(-1) === "") lines.pop();
    return lines;
  }

  write(text: string): void {
    // deno-lint-ignore no-control-regex
    const token = /\x1b\[(\?)?(\d*)([A-Za-z])|\x1b[^[]|[\s\S]/uy;
    const all = this.#pending + text;
    token.lastIndex = 0;
    for (let at = 0; at < all.length; at = token.lastIndex) {
      // deno-lint-ignore no-control-regex
      if (/^\x1b(\[[\d?]*)?$/.test(all.slice(at))) {
        this.#pending = all.slice(at);
        return;
      }
      const [one, , count, action] = token.exec(all)!;
      if (action !== undefined) this.#control(action, Number(count || 1));
      else if (one === "\n") this.#feed();
      else if (one === "\r") this.#column = 0;
      else if (one === "\b") this.#column = Math.max(0, this.#column - 1);
      else if (one >= " ") this.#put(one);
    }
    this.#pending = "";
  }

  #put(character: string): void {
    const line = [...this.#lines[this.#row].padEnd(this.#column)];
    line[this.#column++] = character;
    this.#lines[this.#row] = line.join("");
  }

  #feed(): void {
    this.#row++;
    if (this.#row >= this.#lines.length) this.#lines.push("");
    if (this.#row < this.#rows) return;
    this.#lines.shift();
    this.#row--;
  }

  #control(action: string, count: number): void {
    const line = () => [...this.#lines[this.#row]].slice(0, this.#column);
    if (action === "A") this.#row = Math.max(0, this.#row - count);
    else if (action === "K") this.#lines[this.#row] = line().join("");
    else if (action === "J") {
      this.#lines[this.#row] = line().join("");
      this.#lines.length = this.#row + 1;
    }
  }
}

/** `text` as one word of a shell. */
export function word(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
