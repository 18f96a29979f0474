/** Clients of a Cluster, as `clients.ts` has them of a server. */
import type { LockTarget } from "@dreamer/utils/lock";

import type { OpenClient } from "./clients.ts";

/** One kind of client. */
export interface ClusterClientKind {
  readonly name: string;
  open(urls: readonly string[]): Promise<OpenClient>;
}

/** All kinds of them. */
export const clusterClients: readonly ClusterClientKind[] = [
  {
    name: "ioredis Cluster",
    async open([url]) {
      const { Cluster } = await import("ioredis");
      const client = new Cluster([url]);
      client.on("error", () => {});
      return opened(client, () => client.disconnect());
    },
  },
  {
    name: "redis cluster",
    async open(urls) {
      const { createCluster } = await import("redis");
      const client = createCluster({ rootNodes: urls.map((url) => ({ url })) });
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
