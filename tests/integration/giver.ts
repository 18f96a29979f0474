/** The first process of `hand_over_test.ts`: gives its lock away when told to. */
import { acquireLock, LockError, type LockOptions } from "@dreamer/utils/lock";
import { args, lines, say } from "../support/child.ts";
import { clients } from "../support/clients.ts";

const [name, url, key, json] = args;
const options: LockOptions & { throwOnFail?: true } = JSON.parse(json);
const { client } = await clients.find((kind) => kind.name === name)!.open(url);
const lock = await acquireLock(client, key, options);
const { signal, owner, fencingToken } = lock;
say({ type: "held", owner, fencingToken });

/** The code of what `assertHeld()` throws. */
function standing(): string {
  try {
    lock.assertHeld();
    return "held";
  } catch (error) {
    return error instanceof LockError ? error.code : String(error);
  }
}

for await (const _ of lines()) {
  const message = JSON.stringify(lock);
  const after = {
    isAcquired: lock.isAcquired(),
    remainingMs: lock.remainingMs,
    aborted: signal.aborted,
    standing: standing(),
    freed: await lock.release(),
  };
  say({ type: "gave", message, after });
}
