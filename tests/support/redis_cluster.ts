/** A Redis Cluster of one's own: three masters, and nobody to take over. */
import { freePort, type RedisServer, startRedis } from "./redis_server.ts";
import { until } from "./until.ts";

const SLOTS = 16_384;

/** A running Cluster. */
export interface RedisCluster extends AsyncDisposable {
  readonly masters: readonly RedisServer[];
  /** The URL of each. */
  readonly urls: readonly string[];
  stop(): Promise<void>;
  /** Asks all of them, one after the other. */
  command(...args: (string | number)[]): Promise<unknown[]>;
  /** Asks whichever has `key`. */
  commandFor(key: string, ...args: (string | number)[]): Promise<unknown>;
  /** Opens the slot of `key`, on its way to the next master. */
  move(key: string): Promise<Move>;
}

/** A slot on its way from one master to another, as `redis-cli` moves them. */
export interface Move {
  readonly from: RedisServer;
  readonly to: RedisServer;
  /** Moves these keys; those that are not there are none. */
  keys(...keys: string[]): Promise<void>;
  /** Moves what is left, and gives the slot to the other one. */
  finish(): Promise<void>;
}

/** Starts one; every slot is served when this resolves. */
export async function startCluster(): Promise<RedisCluster> {
  const masters = await Promise.all([0, 1, 2].map(async () =>
    await startRedis({
      args: [
        ...["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"],
        // Without it ioredis would be sent to no address at all.
        ...["--cluster-announce-ip", "127.0.0.1"],
        ...["--cluster-port", `${await freePort()}`],
        ...["--cluster-node-timeout", "2000"],
      ],
    })
  ));
  const stop = async () => {
    await Promise.all(masters.map((master) => master.stop()));
  };
  /** Where slots are that were moved. */
  const moved = new Map<number, number>();
  /** Done once no slot is being given to another. */
  let giving: Promise<void> = Promise.resolve();
  const slotOf = async (key: string) =>
    Number(await masters[0].command("CLUSTER", "KEYSLOT", key));
  const homeOf = (slot: number) =>
    moved.get(slot) ?? Math.floor(slot * 3 / SLOTS);
  const cluster: RedisCluster = {
    masters,
    urls: masters.map(({ url }) => url),
    stop,
    [Symbol.asyncDispose]: stop,
    async command(...args) {
      const replies: unknown[] = [];
      for (const master of masters) replies.push(await master.command(...args));
      return replies;
    },
    async commandFor(key, ...args) {
      const home = masters[homeOf(await slotOf(key))];
      return await home.command(...args).catch((error) => {
        // A busy one may not have heard yet that a slot is its own.
        const [, port] = /^MOVED .*:(\d+)$/.exec(error.message) ?? [];
        const other = masters.find((it) => String(it.port) === port);
        if (other === undefined) throw error;
        return other.command(...args);
      });
    },
    async move(key) {
      const slot = await slotOf(key);
      const there = (homeOf(slot) + 1) % masters.length;
      const [from, to] = [masters[homeOf(slot)], masters[there]];
      const [fromId, toId] = await Promise.all(
        [from, to].map((it) => it.command("CLUSTER", "MYID").then(String)),
      );
      const set = (on: RedisServer, how: string, id: string) =>
        on.command("CLUSTER", "SETSLOT", slot, how, id);
      await set(to, "IMPORTING", fromId);
      // It may not have heard yet that a slot that was moved is its own again.
      await until(
        "it can be moved",
        () => set(from, "MIGRATING", toId).then(() => true, () => false),
      );
      const migrate = async (...keys: string[]) => {
        if (keys.length === 0) return;
        const [host, port] = [to.host, to.port];
        const how = ["MIGRATE", host, port, "", 0, 5_000, "KEYS", ...keys];
        await from.command(...how);
      };
      return {
        from,
        to,
        keys: migrate,
        async finish() {
          for (;;) {
            const left = await from.command(
              ...["CLUSTER", "GETKEYSINSLOT", slot, 10],
            ) as string[];
            if (left.length === 0) break;
            await migrate(...left);
          }
          // One after the other: each counts up what decides who has a slot, and
          // of two who count at the same time one may lose what it was given.
          const before = giving;
          giving = (async () => {
            await before;
            await set(to, "NODE", toId);
            await set(from, "NODE", toId);
            const [other] = masters.filter((it) => it !== from && it !== to);
            await set(other, "NODE", toId);
            moved.set(slot, there);
          })();
          await giving;
        },
      };
    },
  };
  try {
    await join(masters);
  } catch (error) {
    await stop();
    throw error;
  }
  return cluster;
}

async function join(masters: readonly RedisServer[]): Promise<void> {
  const info = async (master: RedisServer, name: string) => {
    const text = String(await master.command("CONFIG", "GET", name));
    return text.split(",").at(-1)!;
  };
  const [first] = masters;
  const firstBus = await info(first, "cluster-port");
  for (const [i, master] of masters.entries()) {
    const from = Math.ceil(i * SLOTS / 3);
    const to = Math.ceil((i + 1) * SLOTS / 3) - 1;
    await master.command("CLUSTER", "ADDSLOTSRANGE", from, to);
    // Epochs of their own, or they would have to agree on them first.
    await master.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1);
    if (master !== first) {
      await master.command("CLUSTER", "MEET", first.host, first.port, firstBus);
    }
  }
  await until("every slot is served", async () => {
    for (const master of masters) {
      const state = String(await master.command("CLUSTER", "INFO"));
      if (!/cluster_state:ok/.test(state)) return false;
      if (!/cluster_known_nodes:3/.test(state)) return false;
    }
    return true;
  });
}
