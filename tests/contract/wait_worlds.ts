/** Where {@linkcode waitContract} runs, if there is a server behind. */
import { type IoredisClient, type LockEvent, redis } from "@dreamer/utils/lock";
import type { OpenClient } from "../support/clients.ts";
import { stall } from "../support/stall.ts";
import { until } from "../support/until.ts";
import type { WaitWorld } from "./wait_contract.ts";

/**
 * Two clients of one kind, as two processes have them.
 *
 * @param command Sends a command to the server that has `key`.
 */
export async function twoClients(
  open: () => Promise<OpenClient>,
  command: (key: string, ...args: (string | number)[]) => Promise<unknown>,
): Promise<WaitWorld & AsyncDisposable> {
  const [here, there] = await Promise.all([open(), open()]);
  const events: LockEvent[] = [];
  const on = redis(here.client as IoredisClient, {
    onEvent: (event) => events.push(event),
  });
  return {
    here: { on: here.client },
    there: { on: there.client },
    observed: { on, events },
    pass: (ms) => new Promise((go) => setTimeout(go, ms)),
    stall,
    served: (waiting) => waiting,
    inLine: (key, count) =>
      until(
        `${count} in line`,
        async () => await command(key, "ZCARD", `{${key}}:line`) === count,
      ),
    async keysLeft(key) {
      const [line, fence, seen] = ["line", "fence", "seen"]
        .map((what) => `{${key}}:${what}`);
      const fenceMs = Number(await command(key, "PTTL", fence));
      const left = Number(await command(key, "EXISTS", key, line, seen));
      return fenceMs === -1 ? left + 1 : left;
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([here.close(), there.close()]);
    },
  };
}
