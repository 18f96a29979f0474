import { assertEquals } from "@std/assert";

import { test } from "../../tests/support/test.ts";
import { getLockToken } from "../mod.ts";

test("each lock has a token of its own, and the nameless one is root", () => {
  assertEquals(getLockToken(), getLockToken("root"));
  assertEquals(getLockToken("a") === getLockToken("b"), false);
});
