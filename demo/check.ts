/** What any record of who came and went says: never two at once, and in order. */

/** One line of a record; `at` is a time, or merely a place in the order. */
export interface Event {
  who: string;
  /** "come" is to wait in line; who tries without is at once in, or refused. */
  what: "come" | "refused" | "enter" | "leave" | "lost" | "dead";
  at: number;
}

/** From one's entering until it left, or died inside. */
export interface Turn {
  readonly who: string;
  /** When it came to wait for this, if it did. */
  readonly came: number | undefined;
  readonly from: number;
  to: number;
  /** It ended by its own leaving. */
  left: boolean;
  /** It was told that the lock is no longer its own: the end is not its own. */
  lost: boolean;
}

/** The turns in a record that has each one's events in their order. */
export function turnsOf(events: readonly Event[]): Turn[] {
  const turns: Turn[] = [];
  const latest = new Map<string, Turn>();
  const came = new Map<string, number>();
  for (const { who, what, at } of events) {
    const turn = latest.get(who);
    if (what === "come") {
      came.set(who, at);
    } else if (what === "refused") {
      came.delete(who);
    } else if (what === "enter") {
      const entered: Turn = {
        who,
        came: came.get(who),
        from: at,
        to: Infinity,
        left: false,
        lost: false,
      };
      came.delete(who);
      latest.set(who, entered);
      turns.push(entered);
    } else if (turn) {
      turn.to = Math.min(turn.to, at);
      if (what === "leave") turn.left = true;
      if (what === "lost") turn.lost = true;
    }
  }
  return turns;
}

/** The pairs that were inside at once, but for those who had been told so. */
export function overlaps(turns: readonly Turn[]): [Turn, Turn][] {
  const pairs: [Turn, Turn][] = [];
  const sound = turns.filter((turn) => !turn.lost)
    .sort((a, b) => a.from - b.from || a.to - b.to);
  let longest: Turn | undefined;
  for (const turn of sound) {
    if (longest && turn.from < longest.to) pairs.push([longest, turn]);
    if (!longest || turn.to > longest.to) longest = turn;
  }
  return pairs;
}

/** Who went in before whom, though that one had come sooner and still waited. */
export function overtakings(
  events: readonly Event[],
): [who: string, whom: string][] {
  const pairs: [string, string][] = [];
  const line: string[] = [];
  for (const { who, what } of events) {
    const place = line.indexOf(who);
    if (what === "enter") {
      // Who never came to wait has overtaken all who did.
      const before = place < 0 ? line : line.slice(0, place);
      for (const whom of before) pairs.push([who, whom]);
    }
    // It has its turn, or gave up, or died: it waits no more.
    if (place >= 0) line.splice(place, 1);
    if (what === "come") line.push(who);
  }
  return pairs;
}

/** One leaves, and the next, who is waiting by then, goes in. */
export function handOvers(turns: readonly Turn[]): [Turn, Turn][] {
  const sorted = [...turns].sort((a, b) => a.from - b.from);
  return sorted.slice(1)
    .map((next, i): [Turn, Turn] => [sorted[i], next])
    .filter(([{ left, to }, { came = to }]) => left && came < to);
}
