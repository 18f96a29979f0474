/** What tests have left on a server. */

/**
 * One command, however many fences there are by then: after hundreds of tests
 * to ask for each of them would be most of what the suite does. A fence, and
 * who was seen in a line, may stay for a day, and no longer.
 */
const COUNT = `
local left = 0
for _, key in ipairs(redis.call("KEYS", "*")) do
  local ms = redis.call("PTTL", key)
  local mayStay = key:match(":fence$") or key:match(":seen$")
  if not mayStay or ms < 0 or ms > 86400000 then left = left + 1 end
end
return left`;

/** How many keys are left there that should not be. */
export async function keysLeft(
  server: { command(...args: (string | number)[]): Promise<unknown> },
): Promise<number> {
  // Each of a Cluster's masters counts its own.
  const counts = [await server.command("EVAL", COUNT, 0)].flat();
  return counts.reduce<number>((sum, count) => sum + Number(count), 0);
}
