/** Whether two were inside at once: asked of any record of who came and went. */

/** One line of a record; `at` is a time, or merely a place in the order. */
export interface Event {
  who: string;
  what: "enter" | "leave" | "lost" | "dead";
  at: number;
}

/** From one's entering until it left, or died inside. */
export interface Turn {
  readonly who: string;
  readonly from: number;
  to: number;
  /** It was told that the lock is no longer its own: the end is not its own. */
  lost: boolean;
}

/** The turns in a record that has each one's events in their order. */
export function turnsOf(events: readonly Event[]): Turn[] {
  const turns: Turn[] = [];
  const latest = new Map<string, Turn>();
  for (const { who, what, at } of events) {
    const turn = latest.get(who);
    if (what === "enter") {
      const entered = { who, from: at, to: Infinity, lost: false };
      latest.set(who, entered);
      turns.push(entered);
    } else if (turn) {
      turn.to = Math.min(turn.to, at);
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
