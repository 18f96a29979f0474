/** A primary, a replica of it, and a sentinel that makes the one the other. */
import { type RedisServer, startRedis } from "./redis_server.ts";
import { until } from "./until.ts";

/** By what the sentinel knows the two. */
export const GROUP = "locks";

/** A running group. */
export interface RedisGroup extends AsyncDisposable {
  readonly primary: RedisServer;
  readonly replica: RedisServer;
  readonly sentinel: RedisServer;
  /** Lets nothing of what the primary does from now on reach the replica. */
  part(): Promise<void>;
  /** Resolves once the replica has all that the primary has. */
  replicated(): Promise<void>;
  /** Resolves once the replica is the primary. */
  promoted(): Promise<void>;
}

/**
 * Starts one; the sentinel knows of both when this resolves.
 *
 * @param downAfterMs After so long without an answer the primary counts as gone:
 * for whom that is not the story, longer than a machine may be busy.
 */
export async function startGroup(downAfterMs = 60_000): Promise<RedisGroup> {
  const started: RedisServer[] = [];
  const stop = async () => {
    // The sentinel first, or it would see the others fail.
    await started.at(-1)?.stop();
    await Promise.all(started.slice(0, -1).map((it) => it.stop()));
  };
  const add = (it: RedisServer): RedisServer => {
    started.push(it);
    return it;
  };
  try {
    const primary = add(
      await startRedis({ args: ["--repl-diskless-sync-delay", "0"] }),
    );
    const replica = add(
      await startRedis({
        args: ["--replicaof", "127.0.0.1", `${primary.port}`],
      }),
    );
    const info = async (server: RedisServer) =>
      String(await server.command("INFO", "replication"));
    // The sentinel looks at once, and again only ten seconds later.
    await until(
      "the replica is one",
      async () =>
        /state=online/.test(await info(primary)) &&
        /master_link_status:up/.test(await info(replica)),
    );
    const sentinel = add(
      await startRedis({
        sentinel: [
          `sentinel monitor ${GROUP} 127.0.0.1 ${primary.port} 1`,
          `sentinel down-after-milliseconds ${GROUP} ${downAfterMs}`,
          `sentinel failover-timeout ${GROUP} 3000`,
        ],
      }),
    );
    await until("the sentinel knows the replica", async () => {
      const text = String(
        await sentinel.command("SENTINEL", "REPLICAS", GROUP),
      );
      return text.includes(String(replica.port)) &&
        text.includes("master-link-status,ok");
    });
    return {
      primary,
      replica,
      sentinel,
      async part() {
        // With a password that nobody asked for it is sent away.
        await replica.command("CONFIG", "SET", "masterauth", "nobody's");
        await primary.command("CLIENT", "KILL", "TYPE", "replica");
      },
      async replicated() {
        // It waits for what came by the same connection, and what was before.
        await primary.command("SET", "replicated", "", "PX", 1);
        await until(
          "the replica has it all",
          async () => await primary.command("WAIT", 1, 100) === 1,
        );
      },
      promoted: () =>
        until(
          "the replica is the primary",
          // It hangs up on everybody as it becomes one.
          () =>
            info(replica).then((it) => it.includes("role:master"), () => {}),
        ),
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
