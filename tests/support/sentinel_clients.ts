/** Clients that ask a sentinel who is the primary, as `clients.ts` has them. */
import type { LockTarget } from "@dreamer/utils/lock";

import type { OpenClient } from "./clients.ts";
import { GROUP, type RedisGroup } from "./redis_sentinel.ts";

/** One kind of client. */
export interface SentinelClientKind {
  readonly name: string;
  open(group: RedisGroup): Promise<OpenClient>;
}

/** All kinds of them. */
export const sentinelClients: readonly SentinelClientKind[] = [
  {
    name: "ioredis by sentinel",
    async open({ sentinel: { host, port } }) {
      const { Redis } = await import("ioredis");
      return openIoredis(
        new Redis({ sentinels: [{ host, port }], name: GROUP }),
      );
    },
  },
  {
    name: "ioredis5 by sentinel",
    async open({ sentinel: { host, port } }) {
      const { Redis } = await import("ioredis5");
      return openIoredis(
        new Redis({ sentinels: [{ host, port }], name: GROUP }),
      );
    },
  },
  {
    name: "redis sentinel",
    async open(group) {
      const { createSentinel } = await import("redis");
      return await openNodeRedis(createSentinel(settings(group)));
    },
  },
  {
    name: "redis5 sentinel",
    async open(group) {
      const { createSentinel } = await import("redis5");
      return await openNodeRedis(createSentinel(settings(group)));
    },
  },
];

function settings({ sentinel: { host, port } }: RedisGroup) {
  return { name: GROUP, sentinelRootNodes: [{ host, port }] };
}

function openIoredis(
  client: LockTarget & {
    disconnect(): void;
    on(event: "error", listener: () => void): unknown;
  },
): OpenClient {
  client.on("error", () => {});
  return opened(client, () => client.disconnect());
}

async function openNodeRedis(
  client: LockTarget & {
    connect(): Promise<unknown>;
    destroy(): unknown;
    on(event: "error", listener: () => void): unknown;
  },
): Promise<OpenClient> {
  client.on("error", () => {});
  await client.connect();
  return opened(client, () => client.destroy());
}

function opened(client: LockTarget, end: () => unknown): OpenClient {
  const close = async () => void await end();
  return { client, close, [Symbol.asyncDispose]: close };
}
