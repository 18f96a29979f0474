/** Where a Cluster keeps a key: its slot, by the hash tag that it may have. */

const SLOTS = 16_384;

/**
 * What of `key` counts: what is between the first `{` and the first `}` after
 * it, unless there is nothing; else all of it (Redis Cluster specification).
 */
export function tagOf(key: string): string {
  const from = key.indexOf("{");
  const to = from < 0 ? -1 : key.indexOf("}", from + 1);
  return to > from + 1 ? key.slice(from + 1, to) : key;
}

/** The slot of `key`: CRC-16/XMODEM of its tag. */
export function slotOf(key: string): number {
  let crc = 0;
  for (const byte of new TextEncoder().encode(tagOf(key))) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1) & 0xffff;
    }
  }
  return crc % SLOTS;
}

/** The first number in base 36 that is found in each slot, as they are met. */
const tags = new Map<number, string>();
let met = 0;

/** A hash tag for `slot`: the same for everybody. */
export function tagFor(slot: number): string {
  for (; !tags.has(slot); met++) {
    const tag = met.toString(36);
    const its = slotOf(tag);
    if (!tags.has(its)) tags.set(its, tag);
  }
  return tags.get(slot)!;
}
