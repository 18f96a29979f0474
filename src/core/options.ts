/** Every default, every check, and every duration that follows from another. */

/** What a lock can be asked for with. */
export interface LockOptions {
  /**
   * Seconds that the server keeps a silent hold: what a crashed holder costs
   * the others at most. Fractions are kept to the millisecond. Default: 30.
   *
   * After waiting in line on a server it is two seconds at most to begin with,
   * and made the whole within the first of them, if the program runs that long.
   */
  ttl?: number | undefined;
  /**
   * Ends the attempt, or the waiting: it rejects with `signal.reason`, a grant
   * that was under way is handed on, and no place in line is left behind.
   * Default: none.
   */
  signal?: AbortSignal | undefined;
  /**
   * Whether a taken lock is an error, or a `null`. It speaks of that alone: a
   * server that fails always rejects. Default: `true`.
   */
  throwOnFail?: boolean | undefined;
  /**
   * The message of the error if the lock is taken.
   * Default: `"Operation in progress, please try again later"`.
   */
  errorMessage?: string | undefined;
  /**
   * Who holds it, for those who look at the lock on the server; kept there for
   * as long as the lock. At most 200 characters, and no secret. Default: none.
   */
  label?: string | undefined;
  /**
   * Milliseconds of patience while the lock is taken: 0 fails at once, and
   * `Infinity` waits until `signal` says stop. Who waits stands in line, and is
   * served in the order in which the server saw them. A server that is up and
   * not ready (`READONLY`, `LOADING`, `CLUSTERDOWN` …) is waited for as well.
   * Default: 0.
   */
  waitMs?: number | undefined;
  /**
   * Whether to renew the lock in the background until it is released, so that
   * `ttl` is only what a crash costs. Default: `true` for `withLock`, `false`
   * for `acquireLock`.
   */
  autoExtend?: boolean | undefined;
  /**
   * Milliseconds after which a lock counts as lost however often it was renewed:
   * its signal aborts with the reason `max-hold`, and it is renewed no more.
   * Others get in at the release, or when the last lease is over. Default: none.
   */
  maxHoldMs?: number | undefined;
  /**
   * Whether to draw a fencing token, in the same round trip: see
   * {@linkcode DistributedLock.fencingToken}. Default: `false`.
   */
  fencing?: boolean | undefined;
  /**
   * How many waiters of this process one turn in line may serve, one after the
   * other and without a word to the server; never past 10 ms since the turn
   * began, nor more than 100 with `fencing`. 0 for strict order across all
   * processes. Default: 16.
   */
  localTurns?: number | undefined;
  /**
   * How many replicas of the server have to confirm the lock before it counts
   * as acquired (`WAIT`), so that it outlives a failover to one of those. Where
   * fewer have in what is left of `waitMs`, but at least a second, and at most a
   * third of `ttl`, the lock is released again, with a
   * {@linkcode LockReplicationError}. Default: 0.
   */
  replicas?: number | undefined;
}

/** {@linkcode LockOptions} by the name that they had at first. */
export type DistributedLockOptions = LockOptions;

/** {@linkcode LockOptions}, checked, complete and in milliseconds. */
export interface Settings {
  readonly ttlMs: number;
  readonly throwOnFail: boolean;
  readonly errorMessage: string;
  readonly label: string | undefined;
  readonly signal: AbortSignal | undefined;
  readonly autoExtend: boolean;
  readonly maxHoldMs: number;
  readonly fencing: boolean;
  readonly waitMs: number;
  readonly localTurns: number;
  readonly replicas: number;
  readonly isUnhurried: boolean;
  readonly driftFactor: number | undefined;
}

/** What only the faces of older APIs ask for. */
export interface Manner {
  /** Whether patience does not count until the server has said a first no. */
  readonly isUnhurried?: boolean | undefined;
  /** How differently clocks may run, as a part of the lease. */
  readonly driftFactor?: number | undefined;
}

const PLAIN: Manner = {};

const DEFAULTS: Settings = {
  ttlMs: 30_000,
  throwOnFail: true,
  errorMessage: "Operation in progress, please try again later",
  label: undefined,
  signal: undefined,
  autoExtend: false,
  maxHoldMs: Infinity,
  fencing: false,
  waitMs: 0,
  localTurns: 16,
  replicas: 0,
  isUnhurried: false,
  driftFactor: undefined,
};
const DEFAULTS_SCOPED: Settings = { ...DEFAULTS, autoExtend: true };

/** All options there are: of an object by name, so that none is forgotten. */
const NAMES = new Set(Object.keys(
  {
    ttl: 0,
    waitMs: 0,
    signal: 0,
    throwOnFail: 0,
    errorMessage: 0,
    autoExtend: 0,
    maxHoldMs: 0,
    localTurns: 0,
    replicas: 0,
    fencing: 0,
    label: 0,
  } satisfies Record<keyof LockOptions, 0>,
));

const LONGEST_LABEL = 200;

/** A value as a message shows it: short, and nothing that may be a secret. */
function show(value: unknown): string {
  if (typeof value === "string") {
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  }
  if (typeof value === "object" && value !== null) return kindOf(value);
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value !== "function") return String(value);
  return isClass(value) ? "a class" : "a function";
}

/** Whether it is to be called with `new`. */
export function isClass(value: object): boolean {
  return /^class\b/.test(Function.prototype.toString.call(value));
}

/** What kind of thing `value` is, without showing it. */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return "an array";
  if (typeof value === "function" && isClass(value)) return "a class";
  if (typeof value !== "object") return `a ${typeof value}`;
  const name = value.constructor?.name;
  return name && name !== "Object" ? `an object (${name})` : "an object";
}

/** Throws for an argument of the wrong kind: what was to be done, rule, value. */
export function wrongType(
  action: string,
  rule: string,
  value: unknown,
  shown: string = show(value),
): never {
  throw new TypeError(
    `Cannot ${action} as ${rule}: current value is ${shown}`,
  );
}

/** Throws for an argument of the right kind with a value that it can't have. */
export function outOfRange(
  action: string,
  rule: string,
  value: unknown,
  shown: string = show(value),
): never {
  throw new RangeError(
    `Cannot ${action} as ${rule}: current value is ${shown}`,
  );
}

/** Refuses options that are none, and those whose names are not in `names`. */
export function checkOptions(
  action: string,
  options: unknown,
  names?: ReadonlySet<string>,
): void {
  if (
    typeof options !== "object" || options === null ||
    Array.isArray(options) || options instanceof Promise ||
    options instanceof Map
  ) {
    // Its kind only: a URL in the wrong place has a password in it.
    wrongType(action, "options must be an object", options, kindOf(options));
  }
  // Also what is inherited: a misspelt default is misspelt.
  for (const name in options) {
    if (names === undefined || names.has(name)) continue;
    const rule = `options must be among ${[...names].join(", ")}`;
    wrongType(action, rule, name);
  }
}

/** Refuses an observer that can't be told anything. */
export function checkObserver(action: string, onEvent: unknown): void {
  if (onEvent !== undefined && typeof onEvent !== "function") {
    wrongType(action, "onEvent must be a function", onEvent);
  }
}

/** What a number may have to be, in words. */
const RULES = {
  ">= 0": (value: number) => value >= 0,
  ">= 1": (value: number) => value >= 1,
  "> 0": (value: number) => value > 0,
  "a whole number >= 0": (value: number) =>
    Number.isSafeInteger(value) && value >= 0,
};

/** Refuses an option that is there and no number, or not as it `must` be. */
export function checkNumber(
  action: string,
  name: string,
  value: unknown,
  must: keyof typeof RULES,
): asserts value is number | undefined {
  if (value === undefined) return;
  if (typeof value !== "number") {
    wrongType(action, `${name} must be a number`, value);
  }
  if (!RULES[must](value)) {
    outOfRange(action, `${name} must be ${must}`, value);
  }
}

/** Refuses what is no boolean. */
export function checkBoolean(
  action: string,
  name: string,
  value: unknown,
): asserts value is boolean {
  if (typeof value !== "boolean") {
    wrongType(action, `${name} must be a boolean`, value);
  }
}

/** Refuses a key that is no key. */
export function checkKey(
  action: string,
  key: unknown,
  name = "key",
): asserts key is string {
  if (typeof key !== "string") {
    wrongType(action, `${name} must be a string`, key);
  }
  if (key === "") outOfRange(action, `${name} must not be empty`, key);
}

/**
 * One key, or several as they are to be taken: each once, and in an order that
 * is the same for everybody, so that no two wait for each other.
 */
export function readKeys(
  action: string,
  key: string | readonly string[],
): string | readonly string[] {
  if (!Array.isArray(key)) {
    checkKey(action, key);
    return key;
  }
  for (const one of key) checkKey(action, one);
  const keys = [...new Set<string>(key)].sort();
  if (keys.length === 0) {
    outOfRange(action, "there must be at least one key", key);
  }
  return keys.length === 1 ? keys[0] : keys;
}

/**
 * The public `ttl`, in seconds, as whole milliseconds.
 *
 * The upper end is where a double stops telling milliseconds apart; a server
 * takes a little more (Redis: what fits in 63 bits along with its clock).
 */
export function readTtl(action: string, ttl: unknown): number {
  if (typeof ttl !== "number") {
    wrongType(action, "ttl must be a number of seconds", ttl);
  }
  if (!(ttl > 0)) outOfRange(action, "ttl must be > 0", ttl);
  const ttlMs = Math.round(ttl * 1000);
  if (ttlMs < 1) outOfRange(action, "ttl must be at least 0.001", ttl);
  if (ttlMs > Number.MAX_SAFE_INTEGER) {
    outOfRange(action, "ttl must be at most 9007199254740", ttl);
  }
  return ttlMs;
}

/** How differently clocks may run, as a part: as in the Redlock specification. */
const DRIFT_FACTOR = 0.01;

/**
 * How much sooner than the server we take a lease to be over: the clocks of
 * two machines run at different speeds, and expiry is kept to the millisecond.
 * A part of it and 2 ms; for a lease of a few milliseconds no more than half.
 */
export function driftMs(ttlMs: number, factor: number = DRIFT_FACTOR): number {
  return Math.min(ttlMs * factor + 2, ttlMs / 2);
}

/** For how much of a lease it is known to last, from when it was asked for. */
export function validMs(ttlMs: number, { driftFactor }: Manner): number {
  return ttlMs - driftMs(ttlMs, driftFactor);
}

/**
 * Checks the options of a call and completes them.
 *
 * @param action What the call was to do, for messages.
 * @param options As the caller gave them.
 * @param isScoped Whether the lock ends with a function: then it is renewed.
 * @param manner What an older API asks for, along with options.
 */
export function readOptions(
  action: string,
  options: unknown,
  isScoped: boolean,
  { isUnhurried = false, driftFactor }: Manner = PLAIN,
): Settings {
  const defaults = isScoped ? DEFAULTS_SCOPED : DEFAULTS;
  if (options === undefined) return defaults;
  checkOptions(action, options, NAMES);
  // Read by name, so that a getter or an inherited default is an option too.
  const given = options as { [Name in keyof LockOptions]: unknown };
  const { ttl, signal, errorMessage, label, maxHoldMs } = given;
  const { waitMs, localTurns, replicas } = given;
  const {
    throwOnFail = defaults.throwOnFail,
    autoExtend = defaults.autoExtend,
    fencing = defaults.fencing,
  } = given;
  checkNumber(action, "waitMs", waitMs, ">= 0");
  checkNumber(action, "localTurns", localTurns, "a whole number >= 0");
  checkNumber(action, "replicas", replicas, "a whole number >= 0");
  if (signal !== undefined && !isAbortSignal(signal)) {
    wrongType(action, "signal must be an AbortSignal", signal);
  }
  if (errorMessage !== undefined && typeof errorMessage !== "string") {
    wrongType(action, "errorMessage must be a string", errorMessage);
  }
  if (label !== undefined) {
    if (typeof label !== "string") {
      wrongType(action, "label must be a string", label);
    }
    if (label.length > LONGEST_LABEL) {
      const rule = `label must be of at most ${LONGEST_LABEL} characters`;
      outOfRange(action, rule, label);
    }
  }
  checkNumber(action, "maxHoldMs", maxHoldMs, "> 0");
  checkBoolean(action, "throwOnFail", throwOnFail);
  checkBoolean(action, "autoExtend", autoExtend);
  checkBoolean(action, "fencing", fencing);
  return {
    ttlMs: ttl === undefined ? defaults.ttlMs : readTtl(action, ttl),
    throwOnFail,
    errorMessage: errorMessage ?? defaults.errorMessage,
    // Half of a surrogate pair is another text once it was sent: then the server
    // would call for one whom nobody here knows.
    label: label?.replace(/\p{Surrogate}/gu, "\ufffd"),
    signal,
    autoExtend,
    maxHoldMs: maxHoldMs ?? defaults.maxHoldMs,
    fencing,
    waitMs: waitMs ?? defaults.waitMs,
    localTurns: localTurns ?? defaults.localTurns,
    replicas: replicas ?? defaults.replicas,
    isUnhurried,
    driftFactor,
  };
}

/** By shape: signals of another realm, and polyfills, are signals too. */
function isAbortSignal(value: unknown): value is AbortSignal {
  const signal = value as Partial<AbortSignal> | null;
  return typeof signal === "object" && signal !== null &&
    typeof signal.aborted === "boolean" &&
    typeof signal.addEventListener === "function";
}
