/** The far side of `process.ts`: what a spawned script talks with. */
import { createInterface } from "node:readline";
import process from "node:process";

/** Sends a message: one line of JSON on stdout. */
export function say(message: unknown): void {
  process.stdout.write(JSON.stringify(message) + "\n");
}

/** The messages of the parent, one by one, until it closes stdin. */
export async function* lines<T = unknown>(): AsyncGenerator<T, void, void> {
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim() !== "") yield JSON.parse(line) as T;
  }
}

/** The arguments given to `spawnScript`. */
export const args: string[] = process.argv.slice(2);
