/** The contract through every client, with a real server behind. */
import { clients } from "../support/clients.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before } from "../support/test.ts";
import { lockContract } from "./lock_contract.ts";

const DAY_MS = 86_400_000;

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

for (const { name, open } of clients) {
  lockContract(name, async () => {
    const { client, close } = await open(server.url);
    return {
      on: client,
      pass: (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
      keysLeft: async () => {
        // A fence stays for a day: tests of it may leave that, and no more.
        let locks = 0;
        for (const key of await server.command("KEYS", "*") as string[]) {
          const leftMs = Number(await server.command("PTTL", key));
          if (!/:(fence|seen)$/.test(key)) locks++;
          else if (leftMs < 0 || leftMs > DAY_MS) locks++;
        }
        return locks;
      },
      [Symbol.asyncDispose]: close,
    };
  });
}
