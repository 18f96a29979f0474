/** The second process of `debounce_test.ts`: calls when it is told to. */
import { Debounce } from "@dreamer/utils/lock/upstash";

import { clients } from "../support/clients.ts";
import { args, lines, say } from "../support/child.ts";

const [url, id, wait] = args;
const { open } = clients.find(({ name }) => name === "ioredis")!;
const { client, close } = await open(url);
const ran: number[] = [];
const it = new Debounce({
  ...{ id, redis: client, wait: Number(wait) },
  callback: (i: number) => void ran.push(i),
});
say({ type: "ready" });
for await (const { call, end } of lines<{ call?: number; end?: boolean }>()) {
  if (call !== undefined) {
    void it.call(call).then(() => say({ type: "done", call }));
  }
  if (end) break;
}
say({ type: "ran", args: ran });
await close();
