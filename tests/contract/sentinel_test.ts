/** The contracts through a client that asks a sentinel who is the primary. */
import { acquireLock, listLocks } from "@dreamer/utils/lock";
import { assertEquals } from "@std/assert";
import type { OpenClient } from "../support/clients.ts";
import { keysLeft } from "../support/keys_left.ts";
import { type RedisGroup, startGroup } from "../support/redis_sentinel.ts";
import { sentinelClients } from "../support/sentinel_clients.ts";
import { after, before, test, timersEnd } from "../support/test.ts";
import { lockContract } from "./lock_contract.ts";
import { waitContract } from "./wait_contract.ts";
import { twoClients } from "./wait_worlds.ts";

let group: RedisGroup;
/** One for all locks: each of its kind builds the server's commands anew. */
let shared: Promise<OpenClient> | undefined;
before(async () => void (group = await startGroup()));
after(async () => {
  await (await shared)?.close();
  await group[Symbol.asyncDispose]();
  await timersEnd();
});

const pass = (ms: number) => new Promise<void>((go) => setTimeout(go, ms));

// That of ioredis is an ioredis client, which others have been through.
const { name, open } = sentinelClients.find(({ name }) =>
  name === "redis sentinel"
)!;

lockContract(name, async () => {
  const { client } = await (shared ??= open(group));
  return {
    on: client,
    pass,
    keysLeft: () => keysLeft(group.primary),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
});

waitContract(name, "called", () =>
  twoClients(
    () => open(group),
    (_, ...args) => group.primary.command(...args),
  ));

test(`${name}: listLocks() finds them on the primary`, async () => {
  await using it = await open(group);
  const keys = ["list:1", "list:2", "list:3"];
  const locks = await Promise.all(
    keys.map((key) => acquireLock(it.client, key)),
  );
  const found: string[] = [];
  for await (const { key } of listLocks(it.client, "list:*")) found.push(key);
  assertEquals(found.sort(), keys);
  await Promise.all(locks.map((lock) => lock.release()));
});
