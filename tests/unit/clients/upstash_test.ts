/** What an Upstash client says that nobody is to read in a log. */
import { assert, assertEquals, assertFalse, assertRejects } from "@std/assert";

import { acquireLock, LockBackendError } from "@dreamer/utils/lock";
import { test } from "../../support/test.ts";

test("upstash: no error repeats the owner, as those of the client do", async () => {
  const owners: string[] = [];
  const client = {
    createScript: () => {},
    exec: ([name, ...words]: string[]) => {
      if (name !== "SET") return Promise.resolve(0);
      owners.push(words[1]);
      const command = JSON.stringify([name, ...words]);
      const text = `NOPERM this user, command was: ${command}`;
      return Promise.reject(
        Object.assign(new Error(text), { name: "Upstash" }),
      );
    },
  };
  const error = await assertRejects(
    () => acquireLock(client, "k"),
    LockBackendError,
    "NOPERM",
  );
  assertEquals(owners.length, 1);
  const { cause } = error;
  assert(cause instanceof Error);
  assertEquals([cause.name, cause.message], ["Upstash", "NOPERM this user"]);
  assertFalse(`${error.stack}${cause.stack}`.includes(owners[0]));
});
