/**
 * How does each way of locking compare with the bare commands on its client?
 * The table of it, for any one measure.
 */
import { type Cell, inRounds, type Outcome, type Settings } from "./harness.ts";
import { fields, type Subject } from "./subjects.ts";

/** What is measured, and how often. */
export interface Measure {
  readonly rounds: number;
  /** Before anything counts, once for each subject: code, scripts, buffers. */
  warmUp(subject: Subject): Promise<unknown>;
  /** One round's value of one subject. */
  take(subject: Subject): Promise<number>;
  /** The column with the value itself. */
  readonly unit: string;
}

/** One row for each subject, and for each that cannot run here. */
export async function compare(
  { url }: Settings,
  { rounds, warmUp, take, unit }: Measure,
): Promise<Record<string, Cell>[]> {
  const rows: Record<string, Cell>[] = [];
  for await (const { client, subjects, absent } of fields(url)) {
    for (const subject of subjects) await warmUp(subject);
    const outcomes: Outcome[] = await inRounds(subjects, rounds, take);
    outcomes.forEach(({ ratio, absolute }, index) =>
      rows.push({
        client,
        lock: subjects[index].name,
        "times bare": index === 0 ? 1 : ratio,
        [unit]: absolute.median,
      })
    );
    for (const { name, reason } of absent) {
      rows.push({ client, lock: name, "times bare": `not here: ${reason}` });
    }
  }
  return rows;
}
