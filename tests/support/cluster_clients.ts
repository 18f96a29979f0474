/** Clients of a Cluster, as `clients.ts` has them of a server. */
import type { LockTarget } from "@dreamer/utils/lock";

import { type OpenClient, sameAsTheLast } from "./clients.ts";

/** One kind of client. */
export interface ClusterClientKind {
  readonly name: string;
  /** Whether it can be called when a turn comes; else it has to ask. */
  readonly isCalled: boolean;
  open(urls: readonly string[]): Promise<OpenClient>;
}

/** All kinds of them. */
export const clusterClients: readonly ClusterClientKind[] = [
  {
    name: "ioredis Cluster",
    isCalled: true,
    async open([url]) {
      const { Cluster } = await import("ioredis");
      const client = new Cluster([url]);
      client.on("error", () => {});
      return opened(client, () => client.disconnect());
    },
  },
  {
    name: "glide cluster",
    isCalled: false,
    async open(urls) {
      const { GlideClusterClient, Logger } = await import(
        "@valkey/valkey-glide"
      );
      // It writes a line for each error reply.
      Logger.setLoggerConfig("off");
      const client = await GlideClusterClient.createClient({
        addresses: urls.map((url) => {
          const { hostname, port } = new URL(url);
          return { host: hostname, port: Number(port) };
        }),
        requestTimeout: 10_000,
      });
      return opened(client, () => client.close());
    },
  },
  {
    name: "redis cluster",
    isCalled: true,
    async open(urls) {
      const { createCluster } = await import("redis");
      const settings = {
        ...sameAsTheLast,
        rootNodes: urls.map((url) => ({ url })),
      };
      const client = createCluster(settings);
      client.on("error", () => {});
      await client.connect();
      return opened(client as unknown as LockTarget, () => client.destroy());
    },
  },
];

function opened(client: LockTarget, end: () => unknown): OpenClient {
  const close = async () => void await end();
  return { client, close, [Symbol.asyncDispose]: close };
}
