/** The Lua that runs on the server, and how it is called. */

import type { Port } from "../clients/port.ts";

/** One value for each name. */
type Values<Names extends readonly string[]> = { [I in keyof Names]: string };

/** A script with its keys and arguments by name, and the meaning of its reply. */
export interface Script<
  Keys extends readonly string[],
  Args extends readonly string[],
  Result,
> {
  readonly keys: Keys;
  readonly args: Args;
  /** Its whole text: a local for each name, then the body. */
  readonly lua: string;
  readonly decode: (reply: unknown) => Result;
  /** By which a server that has seen it knows it; worked out at first use. */
  sha: string | undefined;
}

/** Names keys and arguments once: the script gets its locals, the call its types. */
function define<
  const Keys extends readonly string[],
  const Args extends readonly string[],
  Result,
>(
  script: {
    keys: Keys;
    args: Args;
    lua: string;
    decode: (reply: unknown) => Result;
  },
): Script<Keys, Args, Result> {
  const locals = (names: readonly string[], from: string) =>
    names.map((name, i) => `local ${name} = ${from}[${i + 1}]\n`).join("");
  return {
    ...script,
    lua: locals(script.keys, "KEYS") + locals(script.args, "ARGV") + script.lua,
    sha: undefined,
  };
}

/** A client may be told to give numbers as text. */
const toVerdict = (reply: unknown) =>
  Number(reply) === 1 ? "done" : Number(reply) === -1 ? "taken" : "absent";

/** Deletes the lock if `owner` still has it. One script, or our hold may end
 * between GET and DEL and we delete another's. */
export const RELEASE = define({
  keys: ["lock"],
  args: ["owner"],
  lua: `local now = redis.call("GET", lock)
if now == owner then return redis.call("DEL", lock) end
return now and -1 or 0`,
  decode: toVerdict,
});

/** Makes the lock last `ttlMs` from now if `owner` still has it. */
export const EXTEND = define({
  keys: ["lock"],
  args: ["owner", "ttlMs"],
  lua: `local now = redis.call("GET", lock)
if now == owner then return redis.call("PEXPIRE", lock, ttlMs) end
return now and -1 or 0`,
  decode: toVerdict,
});

/** Why a SET NX wrote nothing: by our own first sending of it, or by another,
 * who keeps it for so many milliseconds more (-1: until deleted). */
export const REFUSED = define({
  keys: ["lock"],
  args: ["owner"],
  lua: `if redis.call("GET", lock) == owner then return {1, 0} end
return {0, redis.call("PTTL", lock)}`,
  decode(reply) {
    const [ours, leftMs] = (reply as unknown[]).map(Number);
    return { ours: ours === 1, leftMs };
  },
});

/**
 * Runs `script` by its digest, and in full where the server has not seen it:
 * new, restarted, failed over, or told to forget its scripts.
 */
export async function run<
  Keys extends readonly string[],
  Args extends readonly string[],
  Result,
>(
  port: Port,
  script: Script<Keys, Args, Result>,
  keys: Values<Keys>,
  args: Values<Args>,
): Promise<Result> {
  if (port.evalSha === undefined) {
    return script.decode(await port.eval(script.lua, keys, args));
  }
  script.sha ??= await sha1(script.lua);
  try {
    return script.decode(await port.evalSha(script.sha, keys, args));
  } catch (error) {
    if (!/NOSCRIPT|NoScriptError/.test(String(error))) throw error;
    return script.decode(await port.eval(script.lua, keys, args));
  }
}

async function sha1(text: string): Promise<string> {
  const digest = await crypto.subtle.digest(
    "SHA-1",
    new TextEncoder().encode(text),
  );
  return Array.from(
    new Uint8Array(digest),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}
