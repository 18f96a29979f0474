/** After a failure: until a client works, and nobody cleans up after it. */
import {
  acquireLock,
  type DistributedLock,
  type LockTarget,
} from "@dreamer/utils/lock";
import { timersLeft } from "./test.ts";
import { until } from "./until.ts";

/**
 * More than once in a row: who cleans up has a timer, or has asked; and over
 * HTTP, or by a pool, what was asked first need not be answered first.
 */
const TIMES = 5;

/**
 * Resolves once `on` acquires and releases `key` again, and no timer of the
 * library is left. A client that does not show that it is closed has to be
 * waited for before that, or what it leaves undone is tried again for long.
 *
 * @param failed Looks at each error until then.
 */
export async function worksAgain(
  on: LockTarget,
  key: string,
  failed: (error: unknown) => void = () => {},
): Promise<void> {
  let inARow = 0;
  // Of a pool one connection may work and the next not. What could not be
  // released yet is so first: the next attempt would meet it.
  let held: DistributedLock | undefined;
  await until("the client works again, and nobody cleans up", async () => {
    try {
      held ??= await acquireLock(on, key, { ttl: 1 });
      const isReleased = await held.release();
      held = undefined;
      const isDone = isReleased && timersLeft() === 0;
      inARow = isDone ? inARow + 1 : 0;
    } catch (error) {
      inARow = 0;
      failed(error);
    }
    return inARow >= TIMES;
  });
}
