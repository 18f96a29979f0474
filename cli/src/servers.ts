/** From URLs to connections, and what is said where there is none. */
import { readFileSync } from "node:fs";
import process from "node:process";

import type { Redis } from "ioredis";

import {
  type Backend,
  type LockBackendError,
  type LockEvent,
  redis,
  redlock,
} from "@dreamer/utils/lock";

import { EXIT, Failure, misused } from "./failure.ts";
import { hideArguments } from "./secrets.ts";
import { plain, redact } from "./text.ts";

/** For so long a server may be silent as we come. */
const CONNECT_MS = 5_000;
/** For so long we wait for its last word as we go. */
const SETTLE_MS = 1_000;
const SETTLE_STEP_MS = 5;
const RECONNECT_MOST_MS = 500;

/** A server as it was asked for. */
export interface Place {
  /** How it is called in messages: without user and password. */
  readonly name: string;
  readonly host?: string;
  readonly port?: number;
  readonly path?: string;
  readonly username?: string;
  readonly password?: string;
  readonly db: number;
  readonly isSecure: boolean;
}

/** The servers of one call, connected. */
export interface Servers {
  /** One server, or the quorum of several. */
  readonly on: Backend;
  /** Their names, for messages. */
  readonly names: string;
  /** Resolves once all that was sent has been answered, or soon after. */
  settle(): Promise<void>;
}

/**
 * The servers that `--redis` or the environment names.
 *
 * @param given What `--redis` was given, if it was.
 */
export function readPlaces(given: readonly string[] | undefined): Place[] {
  if (given === undefined || given.length === 0) {
    const { REDIS_URL } = process.env;
    const urls = REDIS_URL?.split(/\s+/).filter(Boolean) ?? [];
    if (urls.length === 0) return [readPlace("redis://localhost", "")];
    return urls.map((url) => readPlace(url, "REDIS_URL"));
  }
  const places = given.map((url, i) => {
    const source = given.length > 1 ? `--redis number ${i + 1}` : "--redis";
    const name = /^env:(\w+)$/.exec(url)?.[1];
    if (name === undefined) return readPlace(url, source);
    const value = process.env[name];
    if (!value) misused(`${source}: the variable ${name} is not set`);
    return readPlace(value, name);
  });
  const isTold = given.some((url) => /:\/\/[^/]*@/.test(url));
  if (isTold && !hideArguments("lock-cli")) {
    misused(
      "here a password on the command line can be seen by everybody: put " +
        "the URL into REDIS_URL, or into a variable and use --redis env:NAME",
    );
  }
  return places;
}

/** Reads one URL; what is wrong with it is said without showing it. */
function readPlace(url: string, source: string): Place {
  const socket = /^(?:unix:\/\/(?:([^/@]*)@)?)?(\/[^?]*)(?:\?(.*))?$/.exec(url);
  if (socket !== null) {
    const [, login = "", path, query] = socket;
    const [, username, password] = /^([^:]*):?(.*)$/s.exec(login)!;
    const db = readDb(new URLSearchParams(query).get("db") ?? "0", source);
    const secrets = readLogin(username, password, source);
    return { name: path, path, db, isSecure: false, ...secrets };
  }
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    return misread(source);
  }
  const { protocol, hostname, port, username, password } = parsed;
  const { pathname, searchParams, search, hash } = parsed;
  if (!/^rediss?:$/.test(protocol) || hostname === "") return misread(source);
  // What was meant for a password, and cut there: the rest is no host.
  if (/@/.test(search + hash)) return misread(source);
  const db = pathname.slice(1) || searchParams.get("db") || "0";
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  return {
    name: `${hostname}:${port || 6379}`,
    host,
    port: Number(port || 6379),
    db: readDb(db, source),
    isSecure: protocol === "rediss:",
    ...readLogin(username, password, source),
  };
}

function readLogin(username: string, password: string, source: string) {
  try {
    return {
      ...username && { username: decodeURIComponent(username) },
      ...password && { password: decodeURIComponent(password) },
    };
  } catch {
    return misread(source);
  }
}

function readDb(text: string, source: string): number {
  return /^\d{1,5}$/.test(text) ? Number(text) : misread(source);
}

function misread(source: string): never {
  return misused(
    `${source} is no URL of a Redis server: redis://user:password@host:6379/0, ` +
      "rediss:// for TLS, unix:///path/to/socket",
  );
}

/** Connects to all, or to as many as make a majority. */
export async function connectTo(
  places: readonly Place[],
  cacert: string | undefined,
  onEvent?: (event: LockEvent) => void,
): Promise<Servers> {
  if (places.length === 2) {
    misused("two servers are no quorum: give one, or three or more");
  }
  const ca = cacert === undefined ? undefined : readCertificate(cacert);
  // What starts slowest comes last: --help need not wait for it.
  const { Redis } = await import("ioredis");
  const clients = places.map((place) => {
    const { name: _, isSecure, ...where } = place;
    let wasUp = places.length > 1;
    const client = new Redis({
      ...where,
      ...isSecure && { tls: ca === undefined ? {} : { ca } },
      lazyConnect: true,
      connectTimeout: CONNECT_MS,
      // It asks for INFO, and complains aloud where that is forbidden.
      enableReadyCheck: false,
      disableClientInfo: true,
      maxRetriesPerRequest: null,
      // Where there is none, that is said at once; one that was lost comes back.
      retryStrategy: (times) =>
        wasUp ? Math.min(25 * 2 ** times, RECONNECT_MOST_MS) : null,
    });
    client.once("ready", () => wasUp = true);
    return client;
  });
  const needed = places.length > 1 ? Math.floor(places.length / 2) + 1 : 1;
  const why = await connectSome(clients, needed);
  if (why.length > places.length - needed) {
    const reasons = why.map(({ index, error }) =>
      `${places[index].name}: ${reasonOf(error)}`
    );
    throw new Failure(
      EXIT.unavailable,
      places.length === 1
        ? `cannot reach the server at ${reasons[0]}`
        : `cannot reach a majority of the servers: ${reasons.join("; ")}`,
    );
  }
  return {
    on: places.length === 1
      ? redis(clients[0], { onEvent })
      : redlock(clients, { onEvent }),
    names: places.map(({ name }) => name).join(", "),
    async settle() {
      const last = clients.filter(({ status }) => status === "ready")
        .map(async (client) => {
          // A script that the server doesn't know is sent twice, and what was
          // under way may be given back only when it is answered.
          for (let i = 0; i < 3; i++) {
            await client.ping();
            await new Promise((done) => setTimeout(done, SETTLE_STEP_MS));
          }
        });
      const limit = new Promise((done) => setTimeout(done, SETTLE_MS));
      await Promise.race([Promise.allSettled(last), limit]);
    },
  };
}

function readCertificate(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return misused(`--cacert: cannot read ${redact(path)}`);
  }
}

interface Unreached {
  readonly index: number;
  readonly error: unknown;
}

/** Resolves with those that can't be reached, as soon as so many can be. */
function connectSome(
  clients: readonly Redis[],
  needed: number,
): Promise<Unreached[]> {
  return new Promise((resolve) => {
    const unreached: Unreached[] = [];
    let reached = 0;
    const look = () => {
      if (reached >= needed || reached + unreached.length === clients.length) {
        clearTimeout(limit);
        resolve([...unreached]);
      }
    };
    const limit = setTimeout(() => {
      const error = new Error("no answer");
      resolve(
        clients.flatMap((client, index) =>
          client.status === "ready" ? [] : [{ index, error }]
        ),
      );
    }, CONNECT_MS + 500);
    for (const [index, client] of clients.entries()) {
      // Its promise only says that the connection is closed; this says why.
      let last: unknown;
      client.on("error", (error: unknown) => last ??= error);
      const { db = 0 } = client.options;
      // The client chooses the database by itself, and is silent if it can't.
      const greet = () => db > 0 ? client.select(db) : client.ping();
      client.connect().then(greet).then(
        () => reached++,
        (error: unknown) => {
          // A server's own word comes with the rejection.
          const said = wordOf(error) === undefined ? last ?? error : error;
          unreached.push({ index, error: said });
        },
      ).then(look);
    }
  });
}

/** The word with which a server's error reply begins. */
function wordOf(error: unknown): string | undefined {
  const { message = "" } = error as Partial<Error>;
  return /^([A-Z]{4,}) /.exec(message)?.[1];
}

const REASONS: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  ENOENT: "there is no such socket",
  ENOTFOUND: "there is no such host",
  EAI_AGAIN: "the host's name can't be looked up",
  ETIMEDOUT: "no answer",
  ECONNRESET: "the connection was closed",
  EACCES: "not permitted",
  EHOSTUNREACH: "no route to it",
  ENETUNREACH: "no route to it",
  NOAUTH: "it wants a password",
  WRONGPASS: "it refuses this user and password",
  NOPERM: "this user may not do that",
  LOADING: "it is still loading its data",
  MOVED: "it is a node of a Cluster, which this program doesn't speak with",
  CLUSTERDOWN: "its Cluster is down",
  READONLY: "it is a replica, where nothing can be locked",
  OOM: "it is out of memory",
  MISCONF: "it can't write to its disk, and takes no writes",
};

/** What is said where there is no answer, or this one. */
export function unavailable(
  { names }: Servers,
  error?: LockBackendError,
): Failure {
  if (error?.reply === "WRONGTYPE") {
    return new Failure(
      EXIT.unavailable,
      `what is under "${plain(error.key)}" is no string, and hence no lock`,
    );
  }
  const why = error === undefined ? "no answer" : reasonOf(error);
  return new Failure(
    EXIT.unavailable,
    `the server at ${names} can't be asked: ${why}`,
  );
}

/** Why, in words of ours: a client's may repeat what was sent. */
function reasonOf(error: unknown): string {
  const { code, message = "", cause } = error as {
    code?: unknown;
    message?: string;
    cause?: unknown;
  };
  if (
    /certificate|CERT_|_CERT|self.signed|issuer/i.test(`${code} ${message}`)
  ) {
    return "its certificate is not trusted (see --cacert)";
  }
  // Deno names the error only in its text.
  const word = wordOf(error) ??
    (typeof code === "string" && code !== "LOCK_BACKEND"
      ? code
      : /\b(E[A-Z]{4,})\b/.exec(message)?.[1]) ??
    (error as Partial<LockBackendError>).reply;
  if (word !== undefined) {
    const reason = REASONS[word];
    return reason === undefined ? word : `${reason} (${word})`;
  }
  if (/invalid username-password|invalid password/i.test(message)) {
    return "it refuses this user and password";
  }
  if (/timed? ?out|no answer/i.test(message)) return "no answer";
  if (/db index|invalid db/i.test(message)) return "it has no such database";
  return cause === undefined ? "the connection was closed" : reasonOf(cause);
}
