/** Where the faces of older APIs are tested: two clients, and no server. */
import type { LockTarget } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";

import { clients } from "../support/clients.ts";
import type { RedisServer } from "../support/redis_server.ts";

/** One place for locks, open. */
export interface World extends AsyncDisposable {
  /** What the face is given. */
  readonly on: LockTarget;
  /** Another way there: another client of the same server, or the same memory. */
  readonly other: LockTarget;
}

/** Opens one; on a server under the prefix of nobody else's keys. */
export interface WorldKind {
  readonly name: string;
  open(server: RedisServer): Promise<World>;
}

/** What the originals were made for, and what most have. */
const KINDS = ["ioredis", "redis", "upstash"];

export const worlds: readonly WorldKind[] = [
  ...clients.filter(({ name }) => KINDS.includes(name))
    .map(({ name, open }): WorldKind => ({
      name,
      async open({ url }) {
        const [here, there] = await Promise.all([open(url), open(url)]);
        return {
          on: here.client,
          other: there.client,
          async [Symbol.asyncDispose]() {
            await Promise.all([here.close(), there.close()]);
          },
        };
      },
    })),
  {
    name: "memory()",
    open() {
      const on = memory();
      return Promise.resolve({
        on,
        other: on,
        [Symbol.asyncDispose]: () => Promise.resolve(),
      });
    },
  },
];

/** Resolves after so many milliseconds. */
export function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
