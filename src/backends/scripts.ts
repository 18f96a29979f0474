/** The Lua that runs on the server, and how it is called. */

import type { Port } from "../clients/port.ts";
import type { Refusal, Verdict } from "../core/backend.ts";

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
const toVerdict = (reply: unknown): Verdict =>
  Number(reply) === 1 ? "done" : Number(reply) === -1 ? "taken" : "absent";

/** PTTL: -2 says that it is gone by now, -1 that it stays until deleted. */
const toLeftMs = (reply: unknown): number =>
  Number(reply) === -1 ? Infinity : Math.max(0, Number(reply));

/** A fence is remembered for a day after its last use. */
const FENCE_MS = 86_400_000;

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

/** Makes each lock last its ttl from now if its owner still has it: of any
 * number of keys, with an owner and a ttl in milliseconds for each. One that is
 * no lock any more is another's, and no reason to leave the rest alone. */
export const EXTEND = define({
  keys: [] as readonly string[],
  args: [] as readonly string[],
  lua: `local verdicts = {}
for i, lock in ipairs(KEYS) do
  local now = redis.pcall("GET", lock)
  if now == ARGV[2 * i - 1] then
    verdicts[i] = redis.call("PEXPIRE", lock, ARGV[2 * i])
  else
    verdicts[i] = now and -1 or 0
  end
end
return verdicts`,
  // A double of one key may answer with one number.
  decode: (reply) => [reply].flat().map(toVerdict),
});

/** How the hold of `owner` stands: ours, another's or nobody's, and what is
 * left of it in milliseconds (-1: no expiry). Also asked after a SET NX that
 * wrote nothing: it may have met its own first sending. */
export const INQUIRE = define({
  keys: ["lock"],
  args: ["owner"],
  lua: `local now = redis.call("GET", lock)
return {now == owner and 1 or now and -1 or 0, redis.call("PTTL", lock)}`,
  decode(reply) {
    const [verdict, leftMs] = reply as unknown[];
    return { verdict: toVerdict(verdict), leftMs: toLeftMs(leftMs) };
  },
});

/**
 * Takes the lock if it is free and draws its fencing token: one more than the
 * last, and no less than the server's time in microseconds, so that it grows
 * also where the last was lost. In full digits: Lua's own conversion keeps 14.
 * Sent again it finds its own owner, and the token drawn for it.
 */
export const ACQUIRE_FENCED = define({
  keys: ["lock", "fence"],
  args: ["owner", "ttlMs"],
  lua: `local last = redis.call("GET", fence)
if not redis.call("SET", lock, owner, "PX", ttlMs, "NX") then
  if redis.call("GET", lock) ~= owner then
    return {0, redis.call("PTTL", lock)}
  end
  if last then return {1, last} end
end
local time = redis.call("TIME")
local token = math.max((tonumber(last) or 0) + 1, time[1] * 1000000 + time[2])
token = string.format("%.0f", token)
redis.call("SET", fence, token, "PX", ${FENCE_MS})
return {1, token}`,
  decode(reply) {
    const [granted, number] = reply as unknown[];
    return Number(granted) === 1
      ? { granted: true as const, fencingToken: Number(number) }
      : refusal(toLeftMs(number));
  },
});

/** Who has the lock, for how long, and the last token drawn for it. */
export const INSPECT = define({
  keys: ["lock", "fence"],
  args: [],
  lua: `return {
  redis.call("GET", lock), redis.call("PTTL", lock), redis.call("GET", fence)
}`,
  decode(reply) {
    const [owner, leftMs, token] = reply as unknown[];
    const left = toLeftMs(leftMs);
    return {
      owner: owner === null ? undefined : String(owner),
      leftMs: Number.isFinite(left) ? left : undefined,
      fencingToken: token === null ? undefined : Number(token),
    };
  },
});

/** Deletes the lock whoever has it. GET refuses what is no lock at all. */
export const FORCE_RELEASE = define({
  keys: ["lock"],
  args: [],
  lua: `return redis.call("GET", lock) and redis.call("DEL", lock) or 0`,
  decode: (reply) => Number(reply) === 1,
});

/** Writes unless a greater token was seen. Value and token are kept alike:
 * were the token the first to go, the past could write again. */
export const WRITE_FENCED = define({
  keys: ["target", "seen"],
  args: ["value", "token", "ttlMs"],
  lua: `local newest = tonumber(redis.call("GET", seen) or 0)
if tonumber(token) < newest then return 0 end
if ttlMs == "" then
  redis.call("SET", target, value)
  redis.call("SET", seen, token)
else
  redis.call("SET", target, value, "PX", ttlMs)
  redis.call("SET", seen, token, "PX", ttlMs)
end
return 1`,
  decode: (reply) => Number(reply) === 1,
});

/** A refusal with what is left, where that is known. */
export function refusal(leftMs: number): Refusal {
  return Number.isFinite(leftMs)
    ? { granted: false, retryAfterMs: leftMs }
    : { granted: false };
}

/**
 * Runs `script` by its digest, and in full where the server has not seen it:
 * new, restarted, failed over, or told to forget its scripts.
 */
export function run<
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
    return port.eval(script.lua, keys, args).then(script.decode);
  }
  if (script.sha === undefined) {
    return sha1(script.lua).then((sha) => {
      script.sha = sha;
      return run(port, script, keys, args);
    });
  }
  return port.evalSha(script.sha, keys, args).then(script.decode, (error) => {
    if (!/NOSCRIPT|NoScriptError/.test(String(error))) throw error;
    return port.eval(script.lua, keys, args).then(script.decode);
  });
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
