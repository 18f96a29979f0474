/** For what happens elsewhere, and nobody calls back about. */

/** Resolves once `look` sees it; rejects where it doesn't for `limitMs`. */
export async function until(
  what: string,
  look: () => unknown,
  limitMs = 10_000,
): Promise<void> {
  const deadline = performance.now() + limitMs;
  // Less often by and by: many look at the same time, and tests have two cores.
  for (let pauseMs = 2; !await look(); pauseMs = Math.min(pauseMs * 1.3, 20)) {
    if (performance.now() > deadline) {
      throw new Error(`Not in ${limitMs} ms: ${what}`);
    }
    await new Promise((done) => setTimeout(done, pauseMs));
  }
}
