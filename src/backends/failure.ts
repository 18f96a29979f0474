/** What a client's error says of the server, and what is told of it. */

import type { Port } from "../clients/port.ts";
import { LockBackendError } from "../core/errors.ts";

/** How the Cluster of ioredis puts it when it has tried often enough. */
const REDIRECTED = /Too many Cluster redirections\. Last error: \w*Error: /;

/** How a server before version 7 puts what a command in a script met with. */
const IN_SCRIPT = /^ERR Error running script .*?: -/;

/** The server's own error word, if that is what `cause` is: it leads the text. */
function replyOf(cause: unknown): string | undefined {
  if (!(cause instanceof Error) || "errno" in cause) return undefined;
  // "JSON Parse error", say: no server's.
  if (cause instanceof SyntaxError || cause instanceof TypeError) {
    return undefined;
  }
  const text = cause.message.replace(REDIRECTED, "").replace(IN_SCRIPT, "");
  return /^([A-Z]{2,}[A-Z0-9]*) /.exec(text)?.[1];
}

/** What is told of a client's or server's failure, without repeating its text. */
export function failure(
  action: string,
  key: string,
  cause: unknown,
): LockBackendError {
  const reply = replyOf(cause);
  const { code, name, constructor } = Object(cause) as Partial<Error> & {
    code?: unknown;
  };
  // node-redis gives its errors classes, but no names.
  const hint = typeof code === "string"
    ? code
    : name === "Error"
    ? constructor?.name
    : name;
  const what = reply !== undefined
    ? `the server answered ${reply}`
    : `no answer from the server${
      typeof hint === "string" && hint !== "Error" ? ` (${hint})` : ""
    }`;
  return new LockBackendError(
    key,
    `Cannot ${action} "${key}": ${what}`,
    cause,
    reply,
  );
}

/** Throws what is told of it. */
export function failing(
  action: string,
  key: string,
): (cause: unknown) => never {
  return (cause) => {
    throw failure(action, key, cause);
  };
}

/** Whether a server says that to several that it does not say to each. */
export function isAboutSome({ reply }: LockBackendError): boolean {
  return reply === "NOPERM" || reply === "CROSSSLOT" || reply === "ERR";
}

/**
 * Whether what was asked may be done all the same: there is no word from the
 * server, or maybe one about the second sending only.
 */
export function mayBeDone(
  port: Port,
  { reply, cause }: LockBackendError,
  connection: unknown,
): boolean {
  return reply === undefined || connection !== port.connection?.() ||
    REDIRECTED.test(String(cause));
}
