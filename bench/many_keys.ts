/**
 * How much does a busy process get done? 256 keys at once, each acquired and
 * released one time after the other: pairs per second, times the bare commands.
 */
import { compare } from "./compare.ts";
import type { Report, Settings } from "./harness.ts";
import type { Subject } from "./subjects.ts";

const KEYS = Array.from({ length: 256 }, (_, i) => `bench:many:${i}`);

export async function manyKeys(settings: Settings): Promise<Report> {
  const rounds = settings.quick ? 5 : 41;
  const times = 16;
  const rows = await compare(settings, {
    rounds,
    warmUp: (subject) => pairsPerSecond(subject, 3 * times),
    take: (subject) => pairsPerSecond(subject, times),
    unit: "pairs/s",
  });
  const title = "256 keys at once: pairs per second, more is better; " +
    `median (quartiles) of ${rounds} rounds of ${times} pairs on each key`;
  return { name: "many_keys", title, rows };
}

async function pairsPerSecond(
  subject: Subject,
  times: number,
): Promise<number> {
  const begun = performance.now();
  await Promise.all(KEYS.map(async (key) => {
    for (let i = 0; i < times; i++) await subject.hold(key);
  }));
  return KEYS.length * times / (performance.now() - begun) * 1000;
}
