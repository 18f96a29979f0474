/** The contract through every client, with a real server behind. */
import { clients } from "../support/clients.ts";
import { keysLeft } from "../support/keys_left.ts";
import { type RedisServer, startRedis } from "../support/redis_server.ts";
import { after, before } from "../support/test.ts";
import { lockContract } from "./lock_contract.ts";

let server: RedisServer;
before(async () => void (server = await startRedis()));
after(() => server.stop());

for (const { name, open } of clients) {
  lockContract(name, async () => {
    const { client, close } = await open(server.url);
    return {
      on: client,
      pass: (ms: number) => new Promise<void>((done) => setTimeout(done, ms)),
      keysLeft: () => keysLeft(server),
      [Symbol.asyncDispose]: close,
    };
  });
}
