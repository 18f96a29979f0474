/** The Lua that runs on the server, and how it is called. */

import type { Port } from "../clients/port.ts";
import { BURST_MS, NEAR_MS, SOON_MS } from "../core/bursts.ts";
import {
  type BurstWord,
  type Called,
  type Entry,
  GRANTED,
  type HandOver,
  HEARTBEAT_MS,
  LINE_SHOWN,
  type Place,
  type Refusal,
  SHORT_MS,
  type Turn,
  type Verdict,
} from "../core/backend.ts";
import { systemClock, within } from "../core/clock.ts";
import { drewToken, OWNER_LENGTH } from "../core/keys.ts";

/** One value for each name. */
export type Values<Names extends readonly string[]> = {
  [I in keyof Names]: string;
};

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
  /** The same while it is being worked out. */
  digest?: Promise<string>;
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

/** What no script of ours answers: QUEUED, in somebody's transaction, or what a
 * client makes of a request that was called off. It is a word on nothing. */
class UnexpectedReply extends Error {
  override readonly name = "UnexpectedReply";

  constructor() {
    super("The answer is none of the script's");
  }
}

/** A client may be told to give numbers as text, or bytes; a double may say true
 * and false for 1 and 0. */
function toNumber(reply: unknown): number {
  if (typeof reply === "number") return reply;
  if (typeof reply === "boolean") return Number(reply);
  const text = String(reply);
  if (text.trim() === "" || Number.isNaN(Number(text))) {
    throw new UnexpectedReply();
  }
  return Number(text);
}

/** What the number at the head of an answer says. */
function meaningOf<Meaning>(
  reply: unknown,
  meanings: Readonly<Record<number, Meaning>>,
): Meaning {
  const meaning = meanings[toNumber(reply)];
  if (meaning === undefined) throw new UnexpectedReply();
  return meaning;
}

const VERDICTS = { 1: "done", 0: "absent", [-1]: "taken" } as const;
const toVerdict = (reply: unknown): Verdict => meaningOf(reply, VERDICTS);

const IS_DONE = { 1: true, 0: false };
const isDone = (reply: unknown): boolean => meaningOf(reply, IS_DONE);

/** PTTL: -2 says that it is gone by now, -1 that it stays until deleted. */
const toLeftMs = (reply: unknown): number =>
  Number(reply) === -1 ? Infinity : Math.max(0, Number(reply));

/** A fence is remembered for a day after its last use. */
const FENCE_MS = 86_400_000;

/** Goes on only if `owner` still has the lock. */
const IF_OURS = `local holder = redis.call("GET", lock)
if holder ~= owner then return holder and -1 or 0 end
`;

const FREED = { ...VERDICTS, 2: "wanted" } as const;
/** Deletes the lock if `owner` still has it and nobody stands in line. One
 * script, or our hold may end between GET and DEL and we delete another's. */
const FREE = {
  lua: `${IF_OURS}if redis.pcall("EXISTS", line) == 1 then return 2 end
return redis.call("DEL", lock)`,
  decode: (reply: unknown) => meaningOf(reply, FREED),
};

/** Frees the lock, unless it is wanted. */
export const RELEASE = define({
  keys: ["lock", "line"],
  args: ["owner"],
  ...FREE,
});

/** The same for what may be a double, which looks for the owner behind one
 * key: only there the line is an argument. A client behind a wrapper puts its
 * prefix before keys, and not before arguments: what stands before the key in
 * the lock's name belongs before the line's, which may be out of reach then in
 * a Cluster. */
export const RELEASE_PLAIN = define({
  keys: ["lock"],
  args: ["owner", "line", "key"],
  lua: `line = string.sub(lock, 1, #lock - #key) .. line
${FREE.lua}`,
  decode: (reply) => FREE.decode(reply ?? 0),
});

/** The same of several: for each owner a lock, and then for each a line. What is
 * there and no lock is to be asked about alone, for the server to say so. */
export const RELEASE_ALL = define({
  keys: [] as readonly string[],
  args: [] as readonly string[],
  // In three calls for all: each costs as much as all else that is done for one.
  lua: `local count = #ARGV
local holders = redis.call("MGET", unpack(KEYS, 1, count))
local areWanted = redis.call("EXISTS", unpack(KEYS, count + 1)) > 0
local verdicts, ours = {}, {}
for i, owner in ipairs(ARGV) do
  if holders[i] ~= owner then
    verdicts[i] = holders[i] and -1 or -2 * redis.call("EXISTS", KEYS[i])
  elseif areWanted and redis.call("EXISTS", KEYS[count + i]) == 1 then
    verdicts[i] = 2
  else
    verdicts[i] = 1
    ours[#ours + 1] = KEYS[i]
  end
end
if #ours > 0 then redis.call("DEL", unpack(ours)) end
return verdicts`,
  decode: (reply) =>
    (reply as unknown[]).map((one) =>
      Number(one) === -2 ? "no lock" : FREE.decode(one)
    ),
});

/** Deletes the lock if `owner` still has it, whoever stands in line: by its key
 * alone, as one may always ask a Cluster for a single one. */
export const RELEASE_ALONE = define({
  keys: ["lock"],
  args: ["owner"],
  lua: `${IF_OURS}return redis.call("DEL", lock)`,
  decode: toVerdict,
});

/** A process is called on this channel, with its inbox behind. */
const CHANNEL = "lock:inbox:";

/**
 * `call` has a process called: how many have heard it. Where we may not PUBLISH
 * it is `false`, and a key is changed that is called as the channel is: who
 * listens there tracks it as well (see port.ts), and so learns to look around.
 */
const CALL = `local function call(inbox, message)
  local channel = "${CHANNEL}" .. inbox
  local heard = redis.pcall("PUBLISH", channel, message)
  if type(heard) ~= "table" then return heard end
  redis.pcall("SET", channel, "", "PX", 1)
  redis.pcall("DEL", channel)
  return false
end
`;

/** By what an owner is called, if it can be. */
const INBOX = `"^%x+@(%x+%*?)"`;

/**
 * `hint` has the first in line look, where the lease of who has the lock is over
 * before they would ask again: then they know when that is.
 */
const HINT = `${CALL}local function hint(line, lease)
  if not lease or tonumber(lease) >= ${HEARTBEAT_MS} then return end
  local head = redis.pcall("ZRANGE", line, 0, 0)[1]
  local owner = head and string.match(head, "^%d+ %d+ (.*)$")
  local inbox = owner and string.match(owner, ${INBOX})
  if inbox then call(inbox, "look " .. owner) end
end
`;

/** Makes each lock last its ttl from now if its owner still has it: of any
 * number of keys, with an owner and a ttl in milliseconds for each, and then a 1
 * where what lasts longer is to be left alone. One that is no lock any more is
 * another's, and no reason to leave the rest alone. */
export const EXTEND = define({
  keys: [] as readonly string[],
  args: [] as readonly string[],
  lua: `local verdicts, atLeast = {}, ARGV[2 * #KEYS + 1] == "1"
for i, lock in ipairs(KEYS) do
  local holder, ttl = redis.pcall("GET", lock), ARGV[2 * i]
  if holder == ARGV[2 * i - 1] then
    local isLonger = atLeast and redis.call("PTTL", lock) >= tonumber(ttl)
    verdicts[i] = isLonger and 1 or redis.call("PEXPIRE", lock, ttl)
  else
    verdicts[i] = holder and -1 or 0
  end
end
return verdicts`,
  // A double of one key may answer with one number, or nothing.
  decode: (reply) => [reply ?? 0].flat().map(toVerdict),
});

/** The same for one key and a lease that may be over before they ask again who
 * wait, and took it for longer. */
export const EXTEND_BRIEFLY = define({
  keys: ["lock", "line"],
  args: ["owner", "ttlMs"],
  lua: `${IF_OURS}local isLess = redis.call("PTTL", lock) > tonumber(ttlMs)
redis.call("PEXPIRE", lock, ttlMs)
${HINT}if isLess then hint(line, ttlMs) end
return 1`,
  decode: toVerdict,
});

/** How the hold of `owner` stands: ours, another's or nobody's, and what is
 * left of it in milliseconds (-1: no expiry). Also asked after a SET NX that
 * wrote nothing: it may have met its own first sending. */
export const INQUIRE = define({
  keys: ["lock"],
  args: ["owner"],
  lua: `local holder = redis.call("GET", lock)
local verdict = holder == owner and 1 or holder and -1 or 0
return {verdict, redis.call("PTTL", lock)}`,
  decode(reply) {
    const [verdict, leftMs] = reply as unknown[];
    return { verdict: toVerdict(verdict), leftMs: toLeftMs(leftMs) };
  },
});

/** Has the hold of `owner` end `at` that moment, if one is given. When it ends is
 * what is left at one and the same moment: time may go on in a script. */
const ENDS = `local holder = redis.call("GET", lock)
if holder ~= owner then return {holder and -1 or 0} end
local function clock()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local now, left = clock()
for _ = 1, 9 do
  local before = now
  left, now = redis.call("PTTL", lock), clock()
  if now == before then break end
end
if at ~= "" and math.abs(now + left - seen) <= 2 then
  redis.call("PEXPIREAT", lock, at)
  left = math.max(0, at - now)
end
`;
/** And says when that is. */
const TOLD = {
  lua: `return {1, left, string.format("%.0f", now + left)}`,
  decode(reply: unknown) {
    const [verdict, leftMs, endsAt] = reply as unknown[];
    const standing = { verdict: toVerdict(verdict), leftMs: toLeftMs(leftMs) };
    return { ...standing, endsAt: Number(endsAt) };
  },
};

/** When the hold of `owner` ends, by the server's clock; with `at`, it ends then
 * instead. By the moment and not by so much more, so that it can be sent twice.
 * Without an expiry it does not end, and is left alone. */
export const END_AT = define({
  keys: ["lock"],
  args: ["owner", "at", "seen"],
  ...TOLD,
  lua: ENDS + TOLD.lua,
});

/** The same for an end that is sooner than they know who wait. */
export const END_SOONER = define({
  keys: ["lock", "line"],
  args: ["owner", "at", "seen"],
  ...TOLD,
  lua: `${HINT}${ENDS}hint(line, left)
${TOLD.lua}`,
});

/** Makes the lock of `owner` that of another, for as long as it has. Sent again
 * it finds that done. */
export const RENAME = define({
  keys: ["lock"],
  args: ["owner", "name"],
  lua: `local holder = redis.call("GET", lock)
if holder == name then return 1 end
if holder ~= owner then return holder and -1 or 0 end
local left = redis.call("PTTL", lock)
redis.call("SET", lock, name, "PX", math.max(1, left))
return 1`,
  decode: toVerdict,
});

/** The server's time in µs. */
const NOW = `local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
`;

/** What bursts.ts has for memory, in Lua: `last` and `ran` are numbers, and the
 * server's µs. */
const BURST =
  `${NOW}local function number(it) return string.format("%.0f", it) end
local function keep(wait)
  redis.call("PEXPIRE", burst, number(4 * wait / 1000 + ${BURST_MS}))
end
`;

/** Has a call join a burst. */
export const JOIN_BURST = define({
  keys: ["burst"],
  args: ["waitMs"],
  lua: `${BURST}local had = redis.call("HMGET", burst, "last", "ran")
local last, ran = tonumber(had[1] or 0), tonumber(had[2] or 0)
local wait = waitMs * 1000
if last <= ran then redis.call("HSET", burst, "due", number(now + 2 * wait)) end
last = math.max(last + 1, now)
redis.call("HSET", burst, "last", number(last), "at", number(now),
  "wait", number(wait))
keep(wait)
return number(last)`,
  decode: toNumber,
});

/** What a call of a burst is to do. */
export const ASK_BURST = define({
  keys: ["burst"],
  args: ["mine", "waitMs", "nextMs"],
  lua: `${BURST}local had = redis.call("HMGET", burst,
  "last", "at", "wait", "ran", "by", "ranAt", "due")
if had[5] == mine then return {1} end
local ran = tonumber(had[4] or 0)
local me, wait = tonumber(mine), waitMs * 1000
if me <= ran then return {0} end
local last, at = tonumber(had[1] or 0), tonumber(had[2] or 0)
local lastWait = tonumber(had[3] or 0)
local function take(upTo)
  redis.call("HSET", burst, "ran", number(upTo), "by", mine,
    "ranAt", number(now), "due", number(now + wait))
  keep(wait)
  return {1}
end
local function again(at) return {2, math.ceil((at - now) / 1000)} end
local soonest = had[6] and tonumber(had[6]) + wait or 0
if me == last then
  return now >= soonest and take(me) or again(soonest)
end
if nextMs == "0" then return {0} end
local due = math.max(tonumber(had[7] or now), soonest)
local over = at + lastWait
if now >= due and now < over then return take(me) end
local ends = math.max(over, soonest)
local dead = ends + math.min(math.max(lastWait / 2, 250000), 5000000)
if now >= dead then return take(math.max(last, me)) end
local ask = now < ends and ends + ${SOON_MS}000 or dead
if now < due and due < over then ask = due end
if nextMs ~= "" and now + nextMs * 1000 <= ask + ${NEAR_MS}000 then
  return {0}
end
return again(ask)`,
  decode(reply): BurstWord {
    const [word, inMs] = reply as unknown[];
    return meaningOf(word, { 0: "done", 1: "run", 2: toNumber(inMs ?? 0) });
  },
});

/**
 * Draws a fencing token: one more than the last, and no less than the server's
 * time in microseconds, so that it grows also where the last was lost. In full
 * digits: Lua's own conversion keeps 14.
 */
const DRAW = `token = math.max((tonumber(last) or 0) + 1, now)
token = string.format("%.0f", token)
redis.call("SET", fence, token, "PX", ${FENCE_MS})
`;

/**
 * Takes the lock if it is free and draws its fencing token. Sent again it finds
 * its own owner, and the token drawn for it; a lease that was made longer since
 * stays so.
 */
export const ACQUIRE_FENCED = define({
  keys: ["lock", "fence"],
  args: ["owner", "ttlMs"],
  lua: `local last = redis.call("GET", fence)
if not redis.call("SET", lock, owner, "PX", ttlMs, "NX") then
  if redis.call("GET", lock) ~= owner then
    return {0, redis.call("PTTL", lock)}
  end
  if redis.call("PTTL", lock) < tonumber(ttlMs) then
    redis.call("PEXPIRE", lock, ttlMs)
  end
  if last then return {1, last} end
end
${NOW}local token
${DRAW}return {1, token}`,
  decode(reply) {
    const [granted, number] = reply as unknown[];
    return isDone(granted)
      ? { granted: true as const, fencingToken: Number(number) }
      : refusal(toLeftMs(number));
  },
});

/** Makes the fence at least `token` if `owner` still has the lock. One script,
 * or the next owner may have drawn its own token in between. */
export const RAISE_FENCE = define({
  keys: ["lock", "fence"],
  args: ["owner", "token"],
  lua: `${IF_OURS}local last = tonumber(redis.call("GET", fence) or 0)
token = string.format("%.0f", math.max(last, tonumber(token)))
redis.call("SET", fence, token, "PX", ${FENCE_MS})
return 1`,
  decode: toVerdict,
});

/** How long a line is remembered of which nobody has been heard. */
export const LINE_MS = 10_000;

/**
 * A line is a sorted set: who stands there, by ticket. A member says all that
 * it takes to give that wish its turn, so that whoever releases the lock can:
 * `<lease in ms> <number of tokens> <owner>`, and the owner says whom to call.
 *
 * `give` makes `member` the owner of the lock, and draws its fencing tokens:
 * all of them, so that they are used up also where the process that passes the
 * turn on dies on the way. `drawn` is the first of those that were drawn for who
 * has the lock already; should the fence have been lost since, they are drawn
 * anew. `queue` puts it in line, behind all others even if the clock was set
 * back, or where it stood before: its ticket. `handOver` gives the lock to the
 * first in line who can be called, or where there is nobody to `last`: PUBLISH
 * says how many heard it, and one whom nobody heard for is gone, or comes back
 * with its ticket. In a Cluster it counts those at one node only, and the
 * others hear it all the same: whose inbox ends with a star listens at each
 * master, and is called only where somebody is there. To one who can't be
 * called, or whom we may not call, the lock is given in silence. Whoever was
 * called out there comes with a plus in place of the lease.
 *
 * Each call of Redis in here costs as much as some lines of Lua, and everybody
 * waits meanwhile: so none is made whose answer is known.
 */
const LINE = `${HINT}${NOW}local at = time[1] .. " " .. time[2]
local function give(lock, fence, member, most)
  local ttl, tokens, owner = string.match(member, "^(%d+) (%d+) (.*)$")
  local lease = tonumber(ttl) > most and most or ttl
  local token = "-"
  if tokens ~= "0" then
    local last = tonumber(redis.call("GET", fence) or 0)
    token = string.format("%.0f", math.max(last + 1, now))
    last = string.format("%.0f", token + tokens - 1)
    redis.call("SET", fence, last, "PX", ${FENCE_MS})
  end
  redis.call("SET", lock, owner, "PX", lease)
  return owner, lease, token
end
local function drawn(fence, tokens)
  local last = redis.call("GET", fence)
  if not last then
    last = string.format("%.0f", now + tokens - 1)
    redis.call("SET", fence, last, "PX", ${FENCE_MS})
  end
  return string.format("%.0f", last - tokens + 1)
end
local function queue(line, member, ticket)
  local score = string.format("%.0f", ticket or now)
  local isNew = redis.call("ZADD", line, "NX", score, member) == 1
  redis.call("PEXPIRE", line, ${LINE_MS})
  if ticket or not isNew then
    score = redis.call("ZSCORE", line, member)
    return score, redis.call("ZRANK", line, member) + 1, isNew
  end
  local size = redis.call("ZCARD", line)
  if size > 1 and redis.call("ZCOUNT", line, score, "+inf") > 1 then
    local last = redis.call("ZRANGE", line, -1, -1, "WITHSCORES")[2]
    score = string.format("%.0f", last + 1)
    redis.call("ZADD", line, score, member)
  end
  return score, size
end
local function handOver(lock, line, fence, mine, last)
  while true do
    local head = redis.call("ZPOPMIN", line)[1] or last
    if not head then
      redis.call("DEL", lock)
      return
    end
    local owner, lease, token = give(lock, fence, head, ${SHORT_MS})
    if head == last then return lease, owner, lease, token, true end
    local inbox = string.match(owner, ${INBOX})
    if not inbox then return lease end
    if inbox == mine then return lease, owner, lease, token end
    local turn = lease .. " " .. at .. " " .. token .. " " .. owner
    local heard = 1
    if string.sub(inbox, -1) == "*" then
      heard = redis.pcall("PUBSUB", "NUMSUB", "${CHANNEL}" .. inbox)[2] or 1
    end
    if heard > 0 then heard = call(inbox, "turn " .. turn) end
    if not heard then return lease end
    if heard > 0 then return lease, owner, "+", "-" end
  end
end
`;

/** The server's clock as a script has it, in milliseconds. */
const toMs = (seconds: string, micros: string): number =>
  Number(seconds) * 1000 + Number(micros) / 1000;

/** `<lease> <s> <µs> <token>`, from that field on. */
function toTurn(fields: readonly string[], from: number): Turn {
  const leftMs = toLeftMs(fields[from]);
  const at = toMs(fields[from + 1], fields[from + 2]);
  const token = fields[from + 3];
  const fencingToken = token === "-" ? undefined : Number(token);
  return { granted: true, leftMs, at, fencingToken };
}

/** `<left> <s> <µs> <ticket> <place> <kind>`, from that field on; of what kind:
 * 1 for a foreign holder, and 2 more for a wish that was in line no more. */
function toPlace(fields: readonly string[], from: number): Place {
  const leftMs = toLeftMs(fields[from]);
  const ticket = fields[from + 3];
  const isInLine = ticket !== "-";
  const kind = Number(fields[from + 5]);
  return {
    granted: false,
    retryAfterMs: Number.isFinite(leftMs) ? leftMs : undefined,
    at: toMs(fields[from + 1], fields[from + 2]),
    ticket: isInLine ? Number(ticket) : undefined,
    place: isInLine ? Number(fields[from + 4]) : undefined,
    isForeign: (kind & 1) === 1,
    isAnew: (kind & 2) === 2,
  };
}

/** `1` and the fields of a turn, or `0` and those of a place. */
function toTurnOrPlace(fields: readonly string[]): Turn | Place {
  return isDone(fields[0]) ? toTurn(fields, 1) : toPlace(fields, 1);
}

/** What is behind that many fields; a label may have spaces, too. */
function rest(fields: readonly string[], from: number): string {
  return fields.length === from + 1
    ? fields[from]
    : fields.slice(from).join(" ");
}

/** `<lease> <s> <µs> <token> <owner>`, from that field on. */
function toCalled(fields: readonly string[], from: number): Called {
  return { owner: rest(fields, from + 4), turn: toTurn(fields, from) };
}

/**
 * For each wish: is it ours already, as the call was lost or this was sent
 * before? Is it free, and nobody in line before us? Then we have it; else we
 * stand in line, and whoever is first there gets what is free. A wish is a
 * member and, where the server may have forgotten it, its ticket; behind that the
 * former owner, whose place or lock it takes over (`rename`). An `inbox` is tried
 * out on the way.
 */
export const STAND = define({
  keys: [] as readonly string[],
  args: ["isPassing", "inbox"] as readonly string[],
  // The usual case first, in few calls: a lock that nobody has or waits for.
  lua: `local first = redis.pcall("GET", KEYS[1])
if not first and #KEYS == 3 and inbox == "" and
  redis.call("EXISTS", KEYS[2]) == 0 then
  local ttl, owner = string.match(ARGV[3], "^(%d+) 0 (.*)$")
  if ttl then
    redis.call("SET", KEYS[1], owner, "PX", ttl)
    return {"1 " .. ttl .. " 0 0 -"}
  end
end
${LINE}local function rename(lock, line, member, holder, terms)
  local ticket, former = string.match(terms, "^(%d+) (.*)$")
  local head, owner = string.match(member, "^(%d+ %d+ )(.*)$")
  redis.call("ZREM", line, head .. former)
  if holder == former then
    local left = redis.call("PTTL", lock)
    redis.call("SET", lock, owner, "PX", math.max(1, left))
    holder = owner
  end
  return tonumber(ticket), holder
end
local answers = {}
for i = 1, #KEYS / 3 do
  local lock, line, fence = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local member, terms = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local ticket, holder = tonumber(terms), first
  if i > 1 then holder = redis.pcall("GET", lock) end
  if not ticket and terms ~= "" then
    ticket, holder = rename(lock, line, member, holder, terms)
  end
  local answer = type(holder) == "table" and "-1 " .. holder.err
  if not holder then
    local head = redis.call("ZRANGE", line, 0, 0)[1]
    if head == member then
      redis.call("ZREM", line, member)
    elseif head then
      if isPassing == "" then queue(line, member, ticket) end
      hint(line, handOver(lock, line, fence))
      holder = redis.call("GET", lock)
    end
    if not holder then
      local _, lease, token = give(lock, fence, member, math.huge)
      if head then hint(line, lease) end
      answer = "1 " .. lease .. " " .. at .. " " .. token
    end
  end
  if not answer then
    local left = redis.call("PTTL", lock)
    local tokens, owner = string.match(member, "^%d+ (%d+) (.*)$")
    if holder == owner then
      local token = tokens ~= "0" and drawn(fence, tokens) or "-"
      redis.call("ZREM", line, member)
      answer = "1 " .. left .. " " .. at .. " " .. token
    elseif isPassing ~= "" then
      answer = "0 " .. left .. " " .. at .. " -"
    else
      local ticket, place, isAnew = queue(line, member, ticket)
      local kind = string.byte(holder, ${OWNER_LENGTH}) == 64 and 0 or 1
      if isAnew then kind = kind + 2 end
      answer = table.concat({0, left, at, ticket, place, kind}, " ")
    end
  end
  answers[i] = answer
end
if inbox ~= "" then
  local heard = redis.pcall("PUBLISH", "${CHANNEL}" .. inbox, "test")
  answers[#answers + 1] = "test " .. (type(heard) == "table" and -1 or heard)
end
return answers`,
  decode(reply) {
    const answers: (Turn | Place | Error)[] = [];
    let heard: number | undefined;
    for (const answer of reply as unknown[]) {
      const fields = String(answer).split(" ");
      const [word] = fields;
      if (word === "test") heard = Number(fields[1]);
      else if (word === "-1") answers.push(new Error(rest(fields, 1)));
      else answers.push(toTurnOrPlace(fields));
    }
    return { answers, heard };
  },
});

/**
 * Gives the lock to the next in line if `owner` still has it, and deletes it if
 * there is nobody; has `next` stand at the end before that, and `leaving` leave.
 * One of the same process is named in the answer, and need not be called.
 */
export const HAND_OVER = define({
  keys: ["lock", "line", "fence"],
  args: ["owner", "mine", "next", "leaving"],
  lua: `if leaving ~= "" then redis.call("ZREM", line, leaving) end
local holder = redis.call("GET", lock)
if holder ~= owner then return holder and "-1" or "0" end
${LINE}local wanted = next ~= "" and next or nil
local left, called, lease, token, isLast =
  handOver(lock, line, fence, mine, wanted)
local place = " - 0 0 "
if wanted and not isLast then
  local ticket, nth = queue(line, next)
  place = " " .. ticket .. " " .. nth .. " 0 "
end
local answer = "1 " .. (left or -2) .. " " .. at .. place
if not called then return answer .. "-" end
return answer .. lease .. " " .. at .. " " .. token .. " " .. called`,
  // `1`, the fields of a place, and behind it those of who is called, or was.
  decode(reply): HandOver & { calledOut?: string } {
    const fields = String(reply).split(" ");
    const verdict = toVerdict(fields[0]);
    if (verdict !== "done") return { verdict };
    // A wish that is in line no more is the one that was called.
    const next = fields[4] === "-" ? undefined : toPlace(fields, 1);
    const lease = fields[7];
    if (lease === "-") return { verdict, next };
    return lease === "+"
      ? { verdict, next, calledOut: rest(fields, 11) }
      : { verdict, next, called: toCalled(fields, 7) };
  },
});

/**
 * How long the lock is kept for who was told of its release over a quorum: for
 * a message to come and an attempt to go.
 */
const RESERVED_MS = 200;

/**
 * `tell` keeps the lock for the first who is noted and can be called, and calls;
 * where there is nobody, it deletes the lock. That is no hold: the owner which
 * stands there in between is nobody's, and only keeps the others out, so that
 * whoever was called finds the votes of all servers.
 */
const TELL = `local function tell(lock, watch)
  while true do
    local head = redis.call("ZPOPMIN", watch)[1]
    if not head then return redis.call("DEL", lock) end
    redis.call("SET", lock, "next " .. head, "PX", ${RESERVED_MS})
    local inbox, name = string.match(head, "^(%S+) (.*)$")
    local heard = call(inbox, "free " .. name)
    if not heard or heard > 0 or string.sub(inbox, -1) == "*" then return 1 end
  end
end
`;

/** The release of a member of a quorum: tells the first who is noted. */
export const RELEASE_TELLING = define({
  keys: ["lock", "line", "watch"],
  args: ["owner"],
  lua: `${IF_OURS}if redis.call("EXISTS", line, watch) == 0 then
  return redis.call("DEL", lock)
end
if redis.call("EXISTS", line) == 1 then return 2 end
${CALL}${TELL}return tell(lock, watch)`,
  decode: FREE.decode,
});

/**
 * Takes the lock if it is free, or kept for `watcher`, and draws a token if
 * `tokens` is not 0; else notes who is to be told of the release: by the ticket
 * given, or a new one. The answer is that of `STAND`. Sent again it finds its own.
 */
export const TRY_OR_WATCH = define({
  keys: ["lock", "fence", "watch"],
  args: ["owner", "ttlMs", "tokens", "watcher", "ticket"],
  lua: `local holder = redis.call("GET", lock)
${NOW}local at = " " .. time[1] .. " " .. time[2] .. " "
local isKept = watcher ~= "" and holder == "next " .. watcher
if holder and holder ~= owner and not isKept then
  local isKeptForOther = string.find(holder, "^next ")
  -- For how long it is kept says nothing of the hold that follows.
  local left = isKeptForOther and -1 or redis.call("PTTL", lock)
  if watcher == "" then return "0 " .. left .. at .. "-" end
  if ticket ~= "" then redis.call("ZADD", watch, ticket, watcher)
  else redis.call("ZADD", watch, "NX", string.format("%.0f", now), watcher) end
  redis.call("PEXPIRE", watch, ${LINE_MS})
  local isOurs = isKeptForOther or string.find(holder, "^%x+@")
  local place = redis.call("ZRANK", watch, watcher) + 1
  ticket = redis.call("ZSCORE", watch, watcher)
  local foreign = isOurs and 0 or 1
  return "0 " .. left .. at .. ticket .. " " .. place .. " " .. foreign
end
if watcher ~= "" then redis.call("ZREM", watch, watcher) end
if holder ~= owner or redis.call("PTTL", lock) < tonumber(ttlMs) then
  redis.call("SET", lock, owner, "PX", ttlMs)
end
local token = "-"
if tokens ~= "0" then
  local last = redis.call("GET", fence)
  if holder == owner and last then return "1 " .. ttlMs .. at .. last end
  ${DRAW}end
return "1 " .. ttlMs .. at .. token`,
  decode(reply): Turn | Place {
    return toTurnOrPlace(String(reply).split(" "));
  },
});

/** `watcher` is to be told no more; what was kept for it is for the next. */
export const FORGET = define({
  keys: ["lock", "watch"],
  args: ["watcher"],
  lua: `${CALL}${TELL}redis.call("ZREM", watch, watcher)
if redis.call("GET", lock) == "next " .. watcher then tell(lock, watch) end
return 1`,
  decode: () => undefined,
});

/**
 * Has those asked to look who were given these locks, and may not have heard:
 * only where they have not taken them up, nor let go of them. Each with its line
 * as a second key.
 */
export const REMIND = define({
  keys: [] as readonly string[],
  args: [] as readonly string[],
  lua: `${HINT}for i, owner in ipairs(ARGV) do
  local lock, line = KEYS[2 * i - 1], KEYS[2 * i]
  local left = redis.pcall("GET", lock) == owner and redis.call("PTTL", lock)
  if left and left <= ${SHORT_MS} then
    local inbox = string.match(owner, ${INBOX})
    if inbox then call(inbox, "look " .. owner) end
    hint(line, left)
  end
end`,
  decode: () => {},
});

/** Who has the lock, for how long, the last token drawn for it, and who stands
 * in line. A token is the time at which it was drawn, unless the clock was set
 * back since: then it is of no use for that. */
export const INSPECT = define({
  keys: ["lock", "line", "fence"],
  args: [],
  // With a character before it the owner, which may be anybody's, is no JSON:
  // Upstash's client would make something else of that.
  lua: `local owner = redis.call("GET", lock)
local time = redis.call("TIME")
return {
  owner and "=" .. owner, redis.call("PTTL", lock), redis.call("GET", fence),
  time[1], time[2], redis.call("ZCARD", line),
  redis.call("ZRANGE", line, 0, ${LINE_SHOWN - 1}, "WITHSCORES")
}`,
  decode(reply): Entry {
    // Nothing is null, and undefined to some who wrap a client.
    const [holder, leftMs, token, seconds, micros, waiting, members] =
      (reply as unknown[]).map((it) => it ?? null);
    const left = toLeftMs(leftMs);
    const now = toMs(String(seconds), String(micros));
    const since = (drawn: unknown) => now - Number(drawn) / 1000;
    const owner = holder === null ? undefined : String(holder).slice(1);
    const fencingToken = token === null ? undefined : Number(token);
    const heldMs = owner !== undefined && drewToken(owner) && fencingToken
      ? since(fencingToken)
      : -1;
    return {
      owner,
      leftMs: Number.isFinite(left) ? left : undefined,
      fencingToken,
      heldMs: heldMs >= 0 ? heldMs : undefined,
      waiting: toNumber(waiting),
      // Member and score by turns: nested by a client that speaks RESP3 only
      // outside of scripts.
      line: (members as unknown[]).flatMap((member, i, all) =>
        i % 2 === 1 ? [] : [{
          owner: String(member).replace(/^\d+ \d+ /, ""),
          waitedMs: Math.max(0, since(all[i + 1])),
        }]
      ),
    };
  },
});

/** Takes the lock from whoever has it, who is told if it can be called, and
 * gives it to the next in line. GET refuses what is no lock at all. */
export const FORCE_RELEASE = define({
  keys: ["lock", "line", "fence", "watch"],
  args: [],
  lua: `local holder = redis.call("GET", lock)
if not holder then return 0 end
${LINE}${TELL}hint(line, handOver(lock, line, fence))
if redis.call("EXISTS", lock) == 0 then tell(lock, watch) end
local inbox = string.match(holder, ${INBOX})
if inbox then call(inbox, "end " .. holder) end
return 1`,
  decode: isDone,
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
  decode: isDone,
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
  return runThen(port, script, keys, args, (result) => result, rethrow);
}

/** Leaves what failed to whoever called. */
export function rethrow(cause: unknown): never {
  throw cause;
}

/** As `run()`, and `then` or `fail`, with one promise for all: for every lock. */
export function runThen<
  Keys extends readonly string[],
  Args extends readonly string[],
  Result,
  Then,
>(
  port: Port,
  script: Script<Keys, Args, Result>,
  keys: Values<Keys>,
  args: Values<Args>,
  then: (result: Result) => Then | Promise<Then>,
  fail: (cause: unknown) => Then | Promise<Then>,
): Promise<Then> {
  const decoded = (reply: unknown) => {
    let result: Result;
    try {
      result = script.decode(reply);
    } catch (cause) {
      return fail(cause);
    }
    return then(result);
  };
  if (port.evalSha === undefined) {
    return attempt(() => port.eval(script.lua, keys, args)).then(decoded, fail);
  }
  if (script.sha === undefined) {
    return prepare(script).then(() =>
      runThen(port, script, keys, args, then, fail)
    );
  }
  // As by `attempt()`, but without a closure: it is done for every lock.
  let reply: Promise<unknown>;
  try {
    reply = port.evalSha(script.sha, keys, args);
  } catch (cause) {
    reply = Promise.reject(cause);
  }
  return reply.then(decoded, (error) => {
    if (!isUnseen(error)) return fail(error);
    return bring(port, script, keys, args).then(decoded, fail);
  });
}

/** The same with its whole text, whether the server has seen it or not. */
export function runInFull<
  Keys extends readonly string[],
  Args extends readonly string[],
  Result,
>(
  port: Port,
  { lua, decode }: Script<Keys, Args, Result>,
  keys: Values<Keys>,
  args: Values<Args>,
): Promise<Result> {
  return attempt(() => port.eval(lua, keys, args)).then(decode);
}

/** Whether the server has not seen the script. */
function isUnseen(error: unknown): boolean {
  return /NOSCRIPT|NoScriptError/.test(String(error));
}

/** The reply to a script that the server has not seen. */
function bring(
  port: Port,
  script: Pick<Script<[], [], unknown>, "lua" | "sha">,
  keys: readonly string[],
  args: readonly string[],
): Promise<unknown> {
  const evalInFull = () => attempt(() => port.eval(script.lua, keys, args));
  // Thousands may have been sent before the first is told: one brings it. That
  // may be lost, where each request goes by itself.
  const under = loading.get(script);
  if (under?.port === port && systemClock.now() - under.since < BRING_MS) {
    return under.done.then(() => port.evalSha!(script.sha!, keys, args))
      .catch((error) => {
        if (!isUnseen(error)) throw error;
        return evalInFull();
      });
  }
  const reply = evalInFull();
  const over = reply.then(() => {}, () => {}).then(() => {
    if (loading.get(script) === bringing) loading.delete(script);
  });
  const done = within(systemClock, BRING_MS, () => over).catch(() => {});
  const bringing: Bringing = { port, since: systemClock.now(), done };
  loading.set(script, bringing);
  return reply;
}

/** Somebody's wrapper may throw where a client rejects. */
function attempt(send: () => Promise<unknown>): Promise<unknown> {
  try {
    return send();
  } catch (cause) {
    return Promise.reject(cause);
  }
}

/** Works out by what a server knows `script`: then it is sent when it is run. */
export async function prepare(
  script: Pick<Script<[], [], unknown>, "lua" | "sha" | "digest">,
): Promise<void> {
  // One for all who come meanwhile: each its own, they would change places.
  script.digest ??= sha1(script.lua);
  script.sha = await script.digest;
}

/** Scripts that are on their way to a server in full. */
const loading = new Map<object, Bringing>();

interface Bringing {
  readonly port: Port;
  readonly since: number;
  readonly done: Promise<void>;
}

/** How long to wait for another's request to bring a script. */
const BRING_MS = 100;

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

/**
 * Takes all locks, or none, where nobody has one or stands in line for it. A
 * member for each, as in a line. Sent again it finds its own. A lock that nobody
 * has goes to who stands in line for it; those may all be gone.
 */
export const ACQUIRE_ALL = define({
  keys: [] as readonly string[],
  args: [] as readonly string[],
  // The usual case first, in one call and one for each: nobody has any of them.
  lua: `local wanted = {}
for i = 1, #KEYS, 3 do
  wanted[#wanted + 1] = KEYS[i]
  wanted[#wanted + 1] = KEYS[i + 1]
end
if #wanted < 1000 and string.find(ARGV[1], "^%d+ 0 ") and
  redis.call("EXISTS", unpack(wanted)) == 0 then
  local tokens = {}
  for i, member in ipairs(ARGV) do
    local ttl, owner = string.match(member, "^(%d+) 0 (.*)$")
    redis.call("SET", KEYS[3 * i - 2], owner, "PX", ttl)
    tokens[i] = "-"
  end
  return {1, tokens}
end
${LINE}local mine = {}
for i = 1, #KEYS / 3 do
  local holder = redis.call("GET", KEYS[3 * i - 2])
  local owner = string.match(ARGV[i], "^%d+ %d+ (.*)$")
  mine[i] = holder == owner
  if holder and not mine[i] then
    return {0, redis.call("PTTL", KEYS[3 * i - 2]), i}
  elseif not holder and redis.call("EXISTS", KEYS[3 * i - 1]) == 1 then
    local line = KEYS[3 * i - 1]
    local left = handOver(KEYS[3 * i - 2], line, KEYS[3 * i])
    hint(line, left)
    if left then return {0, left, i} end
  end
end
local tokens = {}
for i = 1, #KEYS / 3 do
  local lock, fence = KEYS[3 * i - 2], KEYS[3 * i]
  if mine[i] then
    local ttl, wanted = string.match(ARGV[i], "^(%d+) (%d+) ")
    if redis.call("PTTL", lock) < tonumber(ttl) then
      redis.call("PEXPIRE", lock, ttl)
    end
    tokens[i] = wanted ~= "0" and drawn(fence, wanted) or "-"
  else
    local _, _, token = give(lock, fence, ARGV[i], math.huge)
    tokens[i] = token
  end
end
return {1, tokens}`,
  decode(reply) {
    const [granted, rest, nth] = reply as unknown[];
    if (!isDone(granted)) {
      return { ...refusal(toLeftMs(rest)), index: Number(nth) - 1 };
    }
    return (rest as unknown[]).map((token) =>
      // As text: a client may be told to give bytes.
      String(token) === "-"
        ? GRANTED
        : { ...GRANTED, fencingToken: Number(token) }
    );
  },
});

/** The channel on which the process of that inbox is called. */
export function channelOf(inbox: string): string {
  return CHANNEL + inbox;
}

/** What is called out by the scripts. */
export function toCall(
  message: string,
):
  | Called
  | { ended: string }
  | { reminded: string }
  | { free: string }
  | "test"
  | undefined {
  if (message.startsWith("turn ")) return toCalled(message.split(" "), 1);
  if (message.startsWith("end ")) return { ended: message.slice(4) };
  if (message.startsWith("look ")) return { reminded: message.slice(5) };
  if (message.startsWith("free ")) return { free: message.slice(5) };
  return message === "test" ? "test" : undefined;
}
