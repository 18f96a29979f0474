/**
 * The members of the workspace besides the root, as deno.json lists them: each
 * is a package of its own, and goes through every step of the gate.
 */
import { readFileSync } from "node:fs";
import { join, posix } from "node:path";

/** Their folders, as paths from the root. */
export function membersOf(root) {
  return (manifestOf(root, ".").workspace ?? [])
    .map((member) => posix.join(member));
}

/**
 * What a member exports: the name of each door, with that of the member before
 * it unless that is the root, and its file as a path from the root.
 */
export function doorsOf(root, member) {
  const { name, exports } = manifestOf(root, member);
  const doors = typeof exports === "string" ? { ".": exports } : exports;
  return Object.entries(doors).map(([door, path]) => ({
    door: member === "." ? door : posix.join(name, door),
    path: posix.join(member, path),
  }));
}

function manifestOf(root, member) {
  return JSON.parse(readFileSync(join(root, member, "deno.json"), "utf8"));
}
