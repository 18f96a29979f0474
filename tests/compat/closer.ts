/** The second process of `redis_mutex_test.ts`: ends by itself once closed. */
import { RedisMutex } from "@dreamer/utils/lock/redis-mutex";
import { args, say } from "../support/child.ts";

const [url] = args;
const nowhere = new RedisMutex({
  client: { port: 1, maxRetriesPerRequest: 1 },
});
const failed = await nowhere.lock("a").then(() => "held", ({ name }) => name);
await nowhere.close();

const mutex = new RedisMutex({ client: url });
const { unlock } = await mutex.lock("a");
const shortly = { retryOptions: { retries: 1, minTimeout: 500 } };
const taken = await mutex.lock("a", shortly).then(
  () => "held",
  ({ name }) => name,
);
await unlock();
await mutex.close();
say({ type: "closed", failed, taken });
