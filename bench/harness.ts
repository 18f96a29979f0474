/**
 * How is a thing compared with another on a machine that is never quite the
 * same? In rounds: each runs every subject once, so that whatever slows one of
 * them down slows the others of that round, too, and only the ratio within a
 * round counts.
 *
 * Our own, and not tinybench or mitata: those run each task to its end before
 * they begin the next, and then compare a quiet minute with a busy one.
 */

/** How a suite is to be run. */
export interface Settings {
  /** The server. */
  readonly url: string;
  /** The masters of a Cluster, for suites that can also run on one. */
  readonly cluster?: readonly string[] | undefined;
  /** Fewer rounds: to see that it runs, not to quote it. */
  readonly quick: boolean;
}

/** The middle of many values, and where a quarter of them end and begin. */
export interface Quartiles {
  readonly q1: number;
  readonly median: number;
  readonly q3: number;
}

/** What stands in one place of a table. */
export type Cell = string | number | Quartiles;

/** What a suite found out: its table, for the eye and for results.json. */
export interface Report {
  readonly name: string;
  readonly title: string;
  readonly rows: readonly Readonly<Record<string, Cell>>[];
}

/** What came of one subject, round by round. */
export interface Outcome {
  /** What was measured. */
  readonly absolute: Quartiles;
  /** The same as a multiple of the first subject's in the same round. */
  readonly ratio: Quartiles;
}

/**
 * Measures each subject once a round and compares them with the first.
 *
 * The order rotates, and runs backwards in every other round: nobody always
 * goes first, and nobody always sweeps up the garbage of the same neighbour.
 * One round before the first is for warming up and not counted.
 */
export async function inRounds<Subject>(
  subjects: readonly Subject[],
  rounds: number,
  measure: (subject: Subject) => Promise<number>,
): Promise<Outcome[]> {
  const measured: number[][] = subjects.map(() => []);
  for (const subject of subjects) await measure(subject);
  for (let round = 0; round < rounds; round++) {
    for (const index of orderOf(round, subjects.length)) {
      measured[index].push(await measure(subjects[index]));
    }
  }
  return measured.map((values) => ({
    absolute: quartiles(values),
    ratio: quartiles(values.map((value, round) => value / measured[0][round])),
  }));
}

function orderOf(round: number, size: number): number[] {
  const order = Array.from({ length: size }, (_, i) => (i + round) % size);
  return round % 2 === 0 ? order : order.reverse();
}

/** The value below which that part of `values` lies. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * part;
  const below = sorted[Math.floor(at)];
  return below + (sorted[Math.ceil(at)] - below) * (at % 1);
}

/** The three of them. */
export function quartiles(values: readonly number[]): Quartiles {
  const [q1, median, q3] = [0.25, 0.5, 0.75]
    .map((part) => quantile(values, part));
  return { q1, median, q3 };
}

/** A report as a Markdown table that can be read as it is, too. */
export function tableOf({ title, rows }: Report): string {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [
    names,
    ...rows.map((row) => names.map((name) => textOf(row[name]))),
  ];
  const widths = names.map((_, column) =>
    Math.max(...lines.map((line) => line[column].length))
  );
  const [head, ...body] = lines.map((line) =>
    `| ${line.map((text, i) => text.padEnd(widths[i])).join(" | ")} |`
  );
  const rule = `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`;
  return [title, "", head, rule, ...body].join("\n");
}

function textOf(cell: Cell | undefined): string {
  if (cell === undefined) return "";
  if (typeof cell === "string") return cell;
  if (typeof cell === "number") {
    if (Number.isInteger(cell) || cell >= 100) {
      return Math.round(cell).toLocaleString("en");
    }
    return cell.toFixed(cell >= 10 ? 1 : 2);
  }
  return `${textOf(cell.median)} (${textOf(cell.q1)} – ${textOf(cell.q3)})`;
}
