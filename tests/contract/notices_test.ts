/** Word of releases: in memory, and from real servers by each kind of client. */
import { assert, assertEquals } from "@std/assert";

import { redis } from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import { connect } from "../../src/connect.ts";
import { clients } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { type RedisCluster, startCluster } from "../support/redis_cluster.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { until } from "../support/until.ts";
import { noticesContract } from "./notices_contract.ts";

let server: RedisServer;
let cluster: RedisCluster;
before(async () => {
  [server, cluster] = await Promise.all([startRedis(), startCluster()]);
});
after(() => Promise.all([server.stop(), cluster.stop()]));

noticesContract("memory", () => {
  const on = memory();
  return Promise.resolve({
    on,
    there: on,
    keysLeft: () => Promise.resolve(0),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  });
});

const isFence = (key: string) => key.endsWith(":fence");

for (const kind of clients.filter(({ name }) => /^(io)?redis$/.test(name))) {
  noticesContract(kind.name, async () => {
    const [here, there] = [
      await kind.open(server.url),
      await kind.open(server.url),
    ];
    return {
      on: connect(here.client),
      there: connect(there.client),
      async keysLeft(key) {
        const keys = await server.command("KEYS", `*${key}*`) as string[];
        return keys.filter((key) => !isFence(key)).length;
      },
      async [Symbol.asyncDispose]() {
        await Promise.all([here.close(), there.close()]);
        await timersEnd();
      },
    };
  });
}

for (const kind of clusterClients.filter(({ isCalled }) => isCalled)) {
  noticesContract(kind.name, async () => {
    const [here, there] = [
      await kind.open(cluster.urls),
      await kind.open(cluster.urls),
    ];
    return {
      on: connect(here.client),
      there: connect(there.client),
      async keysLeft(key) {
        const keys = await cluster.command("KEYS", `*${key}*`) as string[][];
        return keys.flat().filter((key) => !isFence(key)).length;
      },
      async [Symbol.asyncDispose]() {
        await Promise.all([here.close(), there.close()]);
        await timersEnd();
      },
    };
  });
}

test("one who can't be called is passed over, and all that is noted expires", async () => {
  await using opened = await clients[0].open(server.url);
  const { notices } = connect(opened.client);
  const hearing = notices!.listen({ onNotice: () => called++, onGap() {} });
  let called = 0;
  await hearing.opened;
  const wish = (owner: string) => ({
    ...{ key: "k", owner, ttlMs: 10_000, tokens: 0 },
  });
  await notices!.tryAcquire(wish("a"));
  for (const gone of ["1", "2", "3"]) {
    await notices!.tryAcquire(wish("b"), `deadbeef${gone} ${gone}`);
  }
  await notices!.tryAcquire(wish("b"), `${hearing.inbox} me`);
  const leftMs = Number(await server.command("PTTL", "{k}:watch"));
  assert(leftMs > 0 && leftMs <= 10_000, `${leftMs} ms`);
  await notices!.release(wish("a"));
  await until("it is told", () => called === 1);
  assertEquals(await server.command("EXISTS", "{k}:watch"), 0);
  notices!.forget("k", `${hearing.inbox} me`);
  await until(
    "it is free",
    async () => await server.command("EXISTS", "k") === 0,
  );
  hearing.close();
  await opened.close();
  await timersEnd();
});

test("whoever holds it without knowing of notices is said to be a stranger", async () => {
  await using opened = await clients[0].open(server.url);
  const { notices } = redis(opened.client as never);
  await server.command("SET", "strange", "theirs", "PX", 10_000);
  const wish = { key: "strange", owner: "b", ttlMs: 10_000, tokens: 0 };
  const answer = await notices!.tryAcquire(wish, "1234 me");
  assert(!answer.granted && answer.isForeign);
  notices!.forget("strange", "1234 me");
  await until(
    "it is forgotten",
    async () => await server.command("EXISTS", "{strange}:watch") === 0,
  );
});

test("who listens anew for notices is told so", async () => {
  await using own = await startRedis();
  await using opened = await clients[0].open(own.url);
  const { notices } = connect(opened.client);
  let gaps = 0;
  const hearing = notices!.listen({ onNotice() {}, onGap: () => gaps++ });
  await hearing.opened;
  assertEquals(gaps, 0);
  await own.command("CLIENT", "KILL", "TYPE", "pubsub");
  await until("it is told", () => gaps > 0);
  hearing.close();
  await opened.close();
  await timersEnd();
});
