/** Valkey GLIDE 2, for one server and for a Cluster. */

import { command, scan } from "./command.ts";
import type { Port } from "./port.ts";

/** What is called of a Valkey GLIDE client. */
export interface GlideClient {
  /** Sends one command, given as its words. */
  customCommand(args: string[]): Promise<unknown>;
  /** Never called: what tells it from a batch of commands. */
  close(errorMessage?: string): void;
}

/** Members that are only read, or not on every kind of GLIDE client. */
interface Extras {
  readonly isClosed?: boolean;
  customCommand(args: string[], options?: { route: Route }): Promise<unknown>;
  fcallWithRoute?: unknown;
}

/** Which node of a Cluster to ask. */
type Route =
  | "randomNode"
  | { type: "routeByAddress"; host: string; port: number };

/**
 * Speaks through a GLIDE client. What one subscribes to is settled when it is
 * created, so that we can't listen; it rejects what was left without an answer.
 */
export function glide(glideClient: GlideClient): Port {
  const client = glideClient as unknown as Extras;
  const send = (args: string[], route?: Route) =>
    client.customCommand(args, route && { route }).catch((error) => {
      throw inServersWords(error);
    });
  const isCluster = client.fcallWithRoute !== undefined;
  const port = command((args) => send(args));
  return {
    ...port,
    isCluster,
    isClosed: () => client.isClosed ?? false,
    ...isCluster && {
      async *scan(pattern) {
        for (const node of await masters(send)) {
          yield* scan((args) => send(args, node), pattern);
        }
      },
    },
  };
}

/** Where the masters of a Cluster are. */
async function masters(
  send: (args: string[], route: Route) => Promise<unknown>,
): Promise<Route[]> {
  const nodes = String(await send(["CLUSTER", "NODES"], "randomNode"));
  // <id> <host>:<port>@<…> <flags> …
  return nodes.split("\n").filter((line) => /^\S+ \S+ \S*master/.test(line))
    .map((line) => {
      const [, host, port] = /^\S+ (\S+):(\d+)/.exec(line)!;
      return { type: "routeByAddress", host, port: Number(port) };
    });
}

/** Codes of the server that GLIDE has quite other names for. */
const CODES: Readonly<Record<string, string>> = {
  BusyLoading: "LOADING",
  PermissionDenied: "NOPERM",
  Response: "ERR",
};

/**
 * GLIDE tells in its own words what the server said: `… signalled by the server:
 * - NoScriptError: No matching script.`, or, of what it does not know, `OOM: …`.
 */
function inServersWords(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const signalled = /signalled by the server: - (\w+?)(?:Error)?: (.*)/s
    .exec(error.message);
  const [, name, text] = signalled ?? /^([A-Z]+): (.*)/s.exec(error.message) ??
    [];
  if (name === undefined) return error;
  const code = CODES[name] ?? name.toUpperCase();
  return new Error(`${code} ${text}`, { cause: error });
}
