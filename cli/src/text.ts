/** What people read: durations, tables, and other people's words made safe. */

const UNITS: Record<string, number> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** The furthest that a timer can look ahead; beyond, it fires at once. */
export const FURTHEST_MS = 2 ** 31 - 1;

/** `250ms`, `30s`, `1h30m` in milliseconds; `undefined` for anything else. */
export function readDuration(text: string): number | undefined {
  if (text === "0") return 0;
  if (!/^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+$/.test(text)) return undefined;
  let ms = 0;
  for (const [, amount, unit] of text.matchAll(/([\d.]+)([a-z]+)/g)) {
    ms += Number(amount) * UNITS[unit];
  }
  return Math.round(ms);
}

/** The same the other way, in its two greatest units: `850ms`, `2m 3s`, `4d`. */
export function showDuration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)}ms`;
  const seconds = Math.floor(ms / 1_000);
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "m"],
    [seconds % 60, "s"],
  ] as const;
  const first = parts.findIndex(([amount]) => amount > 0);
  return parts.slice(first, first + 2).filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount}${unit}`).join(" ");
}

/** The time of day `ms` ago, with the date if that was not today. */
export function showSince(ms: number, now: Date = new Date()): string {
  const then = new Date(now.getTime() - ms);
  const two = (n: number) => `${n}`.padStart(2, "0");
  const day = (at: Date) =>
    `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = [then.getHours(), then.getMinutes(), then.getSeconds()]
    .map(two).join(":");
  return day(then) === day(now) ? time : `${day(then)} ${time}`;
}

/**
 * A key for a terminal: what could move its cursor, or end the line, is shown
 * as a `?`.
 */
export function plain(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]/g, "?");
}

/** A label for a terminal. */
export function safe(text: string): string {
  return plain(hideInWords(text));
}

/** An argument for a terminal, which may be a URL that went astray. */
export function redact(text: string): string {
  return plain(hide(text));
}

/** A line for a program that reads along. */
export function jsonLine(value: unknown): string {
  const show = (name: string, one: unknown) =>
    name === "label" && typeof one === "string" ? hideInWords(one) : one;
  return `${JSON.stringify(value, show)}\n`;
}

/** Without user and password of a URL, if there is one. */
function hide(text: string): string {
  // Up to the last one: a password may have blanks and slashes in it.
  return text.replace(/(\w:\/\/).*@/gs, "$1***@");
}

/** The same where there are others beside it. */
function hideInWords(text: string): string {
  return text.replace(/[^ "']+/g, hide);
}

/** Its beginning, if it is longer than `width`. */
export function cut(text: string, width: number): string {
  const all = [...text];
  return all.length <= width
    ? text
    : `${all.slice(0, Math.max(0, width - 1)).join("")}…`;
}

/** Lines of columns, as wide as they need be; the `elastic` one gives way. */
export function table(
  rows: readonly (readonly string[])[],
  width: number,
  elastic: number,
): string[] {
  const columns = rows[0].map((_, i) =>
    Math.max(...rows.map((row) => [...row[i]].length))
  );
  const total = columns.reduce((sum, one) => sum + one + 2, -2);
  if (total > width) {
    columns[elastic] = Math.max(6, columns[elastic] - (total - width));
  }
  return rows.map((row) =>
    cut(
      row.map((cell, i) => cut(cell, columns[i]).padEnd(columns[i])).join("  ")
        .trimEnd(),
      width,
    )
  );
}
