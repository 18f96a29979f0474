/** The contract of events through real clients, on a wire that can be cut. */
import { type Backend, redis } from "@dreamer/utils/lock";
import { clients } from "../support/clients.ts";
import { startProxy } from "../support/proxy.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before } from "../support/test.ts";
import { until } from "../support/until.ts";
import { eventContract } from "./event_contract.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

for (const { name, open } of clients) {
  // The newest of each, and none that is another in disguise.
  if (!/^(ioredis|redis|upstash|bun)$/.test(name)) continue;
  eventContract(name, async (onEvent) => {
    const proxy = await startProxy(server.port);
    const { client, close } = await open(proxy.url, { offline: "fail" });
    const on = redis(client as Exclude<typeof client, Backend>, { onEvent });
    const hears = () =>
      on.inquire({ key: "k", owner: "o" }).then(() => true, () => false);
    return {
      on,
      pass: (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
      async fail(isDown: boolean) {
        proxy.refuse(isDown);
        if (isDown) proxy.cut();
        // The client has to notice, either way.
        const what = isDown ? "cut" : "connected again";
        await until(what, async () => await hears() !== isDown);
      },
      async [Symbol.asyncDispose]() {
        await close();
        await proxy.stop();
      },
    };
  });
}
