/** The program many times in one process, call by call: cli.ts's `asked()`. */
import process from "node:process";

import { lines, say } from "../../../tests/support/child.ts";
import { SIGNALS } from "../../src/command.ts";
import { main } from "../../src/main.ts";

/** One call, and what else is in its environment. */
export interface Call {
  readonly args: readonly string[];
  readonly env: Record<string, string>;
}

/** What came of it. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

for await (const { args, env } of lines<Call>()) {
  const before = { ...process.env };
  Object.assign(process.env, env);
  const stdout = listenTo(process.stdout);
  const stderr = listenTo(process.stderr);
  const code = await main(args);
  const outcome: Outcome = { code, stdout: stdout(), stderr: stderr() };
  for (const signal of SIGNALS) process.removeAllListeners(signal);
  for (const name of Object.keys(env)) {
    if (before[name] === undefined) delete process.env[name];
    else process.env[name] = before[name];
  }
  say(outcome);
}
// As the program does: no connection is waited for.
process.exit();

/** Keeps what is written there, until it is asked for. */
function listenTo(stream: NodeJS.WriteStream): () => string {
  const { write } = stream;
  let said = "";
  stream.write = (text: string | Uint8Array) => {
    said += text;
    return true;
  };
  return () => {
    stream.write = write;
    return said;
  };
}
