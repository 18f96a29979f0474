/**
 * What does a lock cost that nobody else wants? One key, acquired and released
 * one time after the other: the median of a pair, times that of the bare
 * commands.
 */
import { compare } from "./compare.ts";
import { quantile, type Report, type Settings } from "./harness.ts";
import type { Subject } from "./subjects.ts";

const KEY = "bench:uncontended";

export async function uncontended(settings: Settings): Promise<Report> {
  // Short turns, many rounds: on a shared machine a round trip takes 40 µs now
  // and 110 a second later, and a round is to fit into one of the two.
  const rounds = settings.quick ? 5 : 121;
  const pairs = 100;
  const rows = await compare(settings, {
    rounds,
    warmUp: (subject) => latencies(subject, 20 * pairs),
    take: async (subject) => quantile(await latencies(subject, pairs), 0.5),
    unit: "µs",
  });
  const title = "Uncontended: latency p50 of acquire + release, less is " +
    `better; median (quartiles) of ${rounds} rounds of ${pairs} pairs`;
  return { name: "uncontended", title, rows };
}

/** How long each of so many pairs takes, in microseconds. */
async function latencies(subject: Subject, pairs: number): Promise<number[]> {
  const took: number[] = [];
  for (let i = 0; i < pairs; i++) {
    const begun = performance.now();
    await subject.hold(KEY);
    took.push((performance.now() - begun) * 1000);
  }
  return took;
}
