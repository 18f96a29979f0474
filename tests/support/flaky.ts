/** A server in memory that can be away, frozen, or lose what it has to say. */
import { type Backend, LockBackendError } from "@dreamer/utils/lock";
import { memory, type MemoryOptions } from "@dreamer/utils/lock/memory";

/**
 * How a server fares: `well`; `down`, so that each command fails at once and
 * nothing is done; `frozen`, so that commands are done, in their order, once it
 * thaws; `late`, so that they are done and their answers come once it thaws; or
 * `lost`, so that they are done and the answer is an error.
 */
export type State = "well" | "down" | "frozen" | "late" | "lost";

/** One such server. */
export class FlakyServer {
  /** What is asked; see `state`. */
  readonly on: Backend;
  /** The server itself, always well. */
  inner: Backend;
  /** What it was asked, by the names of methods. */
  readonly asked: string[] = [];
  /** Whether its word of a release gets lost. */
  isMute = false;
  readonly #options: MemoryOptions;
  #state: State = "well";
  #waiting: (() => void)[] = [];

  constructor(options: MemoryOptions = {}) {
    this.#options = options;
    this.inner = memory(options);
    const ask = <T>(what: keyof Backend, key: string, fn: () => Promise<T>) => {
      this.asked.push(what);
      return this.#ask(key, fn);
    };
    const { clock } = this.inner;
    this.on = {
      name: "flaky",
      clock,
      tryAcquire: (claim) =>
        ask("tryAcquire", claim.key, () => this.inner.tryAcquire(claim)),
      tryAcquireFenced: (claim) =>
        ask(
          "tryAcquireFenced",
          claim.key,
          () => this.inner.tryAcquireFenced!(claim),
        ),
      raiseFence: (hold, token) =>
        ask("raiseFence", hold.key, () => this.inner.raiseFence!(hold, token)),
      extend: (claims) =>
        ask("extend", claims[0].key, () => this.inner.extend(claims)),
      release: (hold) =>
        ask("release", hold.key, () => this.inner.release(hold)),
      inquire: (hold) =>
        ask("inquire", hold.key, () => this.inner.inquire(hold)),
      inspect: (key) => ask("inspect", key, () => this.inner.inspect!(key)),
      forceRelease: (key) =>
        ask("forceRelease", key, () => this.inner.forceRelease!(key)),
      scan: (pattern) => this.#scan(pattern),
      notices: {
        isOpen: true,
        listen: (ears) =>
          this.inner.notices!.listen({
            onNotice: (name) => {
              if (!this.isMute) ears.onNotice(name);
            },
            onGap: () => ears.onGap(),
          }),
        tryAcquire: (wish, watcher) =>
          ask(
            "tryAcquire",
            wish.key,
            () => this.inner.notices!.tryAcquire(wish, watcher),
          ),
        release: (hold) =>
          ask("release", hold.key, () => this.inner.notices!.release(hold)),
        forget: (key, watcher) => this.inner.notices!.forget(key, watcher),
      },
      // Tried again until it succeeds, as a real one's.
      discard: (claim) => {
        this.asked.push("discard");
        if (this.#state === "well" || this.#state === "lost") {
          this.inner.discard(claim);
        } else this.#waiting.push(() => this.inner.discard(claim));
      },
    };
  }

  /** How it fares. Once it is well, what waits is done. */
  set state(state: State) {
    this.#state = state;
    if (state !== "well") return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const go of waiting) go();
  }

  /** It comes back empty. */
  wipe(): void {
    this.inner = memory(this.#options);
  }

  /** Who has `key` here. */
  async ownerOf(key: string): Promise<string | undefined> {
    return (await this.inner.inspect!(key)).owner;
  }

  #ask<T>(key: string, fn: () => Promise<T>): Promise<T> {
    const cause = new Error("the connection is closed");
    const failed = () =>
      Promise.reject(new LockBackendError(key, `No answer: "${key}"`, cause));
    switch (this.#state) {
      case "well":
        return fn();
      case "down":
        return failed();
      case "lost":
        return fn().then(failed);
      case "late": {
        const answer = fn();
        return new Promise((resolve) =>
          this.#waiting.push(() => resolve(answer))
        );
      }
      case "frozen":
        return new Promise((resolve) =>
          this.#waiting.push(() => resolve(fn()))
        );
    }
  }

  async *#scan(pattern: string): AsyncGenerator<string> {
    const keys = await this.#ask(pattern, async () => {
      const found: string[] = [];
      for await (const key of this.inner.scan!(pattern)) found.push(key);
      return found;
    });
    yield* keys;
  }
}
