/** A password among the arguments, out of sight of who lists processes. */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import process from "node:process";

/** What the kernel says of us starts with our name, which may have blanks. */
const ARG_START = 45;

/**
 * Makes the process's title one without its arguments: whether that worked, as
 * far as can be seen.
 *
 * Node and Deno write over them where they set a title. For Bun, which doesn't,
 * we do the same by hand: on Linux a process may write to its own memory.
 */
export function hideArguments(title: string): boolean {
  process.title = title;
  if (process.platform !== "linux") return !("Bun" in globalThis);
  try {
    if (isHidden()) return true;
    const stat = readFileSync("/proc/self/stat", "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [start, end] = fields.slice(ARG_START, ARG_START + 2).map(Number);
    const bytes = new Uint8Array(end - start);
    bytes.set(new TextEncoder().encode(title).subarray(0, end - start - 1));
    const memory = openSync("/proc/self/mem", "r+");
    try {
      writeSync(memory, bytes, 0, bytes.length, start);
    } finally {
      closeSync(memory);
    }
    return isHidden();
  } catch {
    return false;
  }
}

function isHidden(): boolean {
  return !/:\/\/[^\0]*@/.test(readFileSync("/proc/self/cmdline", "utf8"));
}
