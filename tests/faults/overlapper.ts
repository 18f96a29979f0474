/** One of the processes of `several_soak_test.ts`, any of which may be killed. */
import process from "node:process";

import { type LockTarget, redlock } from "@dreamer/utils/lock";
import { args, say } from "../support/child.ts";
import { clients } from "../support/clients.ts";
import { clusterClients } from "../support/cluster_clients.ts";
import { ledgerAt, overlap, randomBy } from "../support/overlap.ts";

const [world, urlsTold, ledgerUrl, seed, count, seconds] = args;
const urls = urlsTold.split(",");
const ledger = ledgerAt(ledgerUrl);
const closing: (() => Promise<void>)[] = [];

async function open(): Promise<LockTarget> {
  const opened = world === "cluster"
    ? [await clusterClients[0].open(urls)]
    : await Promise.all(urls.map((url) => clients[0].open(url)));
  closing.push(...opened.map((one) => one.close));
  const targets = opened.map(({ client }) => client);
  return world === "quorum"
    // The machine may be busier than any server should be.
    ? redlock(targets, { serverTimeoutMs: 10_000 })
    : targets[0];
}

say({ type: "ready" });
const outcome = await overlap({
  on: [await open()],
  clients: Number(count),
  seconds: Number(seconds),
  prefix: "overlap",
  waitMs: 30_000,
  ttl: 3,
  random: randomBy(Number(seed)),
  ledger,
});
ledger.close();
for (const close of closing) await close();
say({ type: "done", ...outcome });
process.stdin.destroy();
