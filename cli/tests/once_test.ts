/** `once`: of several hosts a few seconds apart one does it. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { existsSync, readFileSync } from "node:fs";

import {
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import { after, before } from "../../tests/support/test.ts";
import { lockCli, ran, scratchFile, testFew } from "./support/cli.ts";

let server: RedisServer;
let env: { REDIS_URL: string };
before(async () => {
  server = await startRedis();
  env = { REDIS_URL: server.url };
});
after(() => server.stop());

const once = (...args: (string | number)[]) => ran(["once", ...args], { env });
const left = async (key: string) => Number(await server.command("PTTL", key));

testFew([
  ["of two hosts one runs it, and the other says nothing", async () => {
    const book = scratchFile("once");
    const args = [
      "job",
      "--keep",
      "1h",
      "--",
      "sh",
      "-c",
      `echo x >> ${book}`,
    ];
    const begunAt = Date.now();
    const both = await Promise.all([once(...args), once(...args)]);
    both.push(await once(...args));
    const silent = { code: 0, stdout: "", stderr: "" };
    assertEquals(both, [silent, silent, silent]);
    assertEquals(readFileSync(book, "utf8"), "x\n");
    // From the start, not from the end; and nobody is left to renew it.
    const leftMs = await left("job");
    const mostMs = 3_600_000;
    assert(leftMs <= mostMs, `${leftMs} ms`);
    assert(leftMs > mostMs - (Date.now() - begunAt) - 1_000, `${leftMs} ms`);
  }],

  ["who was not first can be told, in words or by an exit code", async () => {
    const keep = ["--keep", "1m", "--label", "web-1"];
    assertEquals((await once("tell", ...keep, "--", "true")).code, 0);
    const { code, stderr } = await once(
      ...["tell", ...keep, "-v", "-E", 75, "--", "true"],
    );
    assertEquals(code, 75);
    assertMatch(stderr, /^lock-cli: "tell" is taken: held by web-1 for /);
    const json = await once("tell", ...keep, "--json", "--", "true");
    const told = JSON.parse(json.stderr);
    assertEquals([told.event, told.label], ["taken", "web-1"]);
  }],

  ["it is let go when its time is over, and no sooner", async () => {
    const begunAt = performance.now();
    await once("short", "--keep", "2s", "--", "true");
    const args = ["run", "--wait", "15s", "short", "--", "true"];
    const { code } = await ran(args, { env });
    assertEquals(code, 0);
    const tookMs = performance.now() - begunAt;
    assert(tookMs > 1_900, `after ${tookMs} ms`);
  }],

  [
    "a command that takes longer than that is renewed, and frees it",
    async () => {
      const shell = "sleep 3; echo $LOCK_KEY";
      const keep = ["--keep", "200ms", "--ttl", "2s"];
      const first = lockCli(
        ["once", "long", ...keep, "--", "sh", "-c", shell],
        {
          env,
        },
      );
      await new Promise((done) => setTimeout(done, 1_000));
      assertEquals(await first.exited, 0, first.stderr);
      assertEquals(first.stdout, "long\n");
      assertEquals(await server.command("EXISTS", "long"), 0);
    },
  ],

  [
    "a command that fails frees it, so that another host may try",
    async () => {
      const { code } = await once("fail", "--keep", "1h", "--", "false");
      assertEquals(code, 1);
      assertEquals(await server.command("EXISTS", "fail"), 0);
      const book = scratchFile("retried");
      await once("fail", "--keep", "1h", "--", "touch", book);
      assert(existsSync(book));
      assert(await left("fail") > 3_500_000);
    },
  ],

  ["--keep-failed keeps it all the same", async () => {
    const args = ["broken", "--keep", "1h", "--keep-failed"];
    assertEquals((await once(...args, "--", "false")).code, 1);
    assert(await left("broken") > 3_500_000);
  }],

  [
    "the deadline is when the lease ends, not what is kept after it",
    async () => {
      const shell = "echo $LOCK_DEADLINE_MS";
      const times = ["--keep", "1h", "--ttl", "5s"];
      const { stdout } = await once(
        "until",
        ...times,
        "--",
        "sh",
        "-c",
        shell,
      );
      const leftMs = Number(stdout) - Date.now();
      assert(leftMs <= 5_000, `${leftMs} ms`);
    },
  ],

  ["what can't be kept is not kept in silence", async () => {
    await using own = await startRedis();
    const keep = ["--keep", "1h", "--ttl", "20s", "--grace", "1s"];
    const cli = lockCli(
      ["once", "away", ...keep, "--", "sh", "-c", "echo up; read x"],
      { env: { REDIS_URL: own.url }, isOpen: true },
    );
    await cli.says(/up\n/);
    own.freeze();
    cli.write("\n");
    assertEquals(await cli.exited, 76, cli.stderr);
    const text =
      'lock-cli: "away" could not be kept: the server can\'t be asked';
    assertEquals(cli.stderr, `${text}\n`);
    own.thaw();
  }],

  ["nor where the command was to go on without the lock", async () => {
    const keep = ["--keep", "1h", "--on-lost", "ignore"];
    const shell = ["sh", "-c", "echo up; read x; exit $x"];
    const start = async (key: string, url: string, ...more: string[]) => {
      const cli = lockCli(["once", key, ...keep, ...more, "--", ...shell], {
        env: { REDIS_URL: url },
        isOpen: true,
      });
      await cli.says(/up\n/);
      return cli;
    };
    const asks = "could not be kept: the server can't be asked";
    await using own = await startRedis();
    const away = await start("away", own.url);
    await own.kill();
    away.write("0\n");
    assertEquals(await away.exited, 76, away.stderr);
    assertEquals(away.stderr, `lock-cli: "away" ${asks}\n`);
    const freed = await start("freed", server.url, "--ttl", "10m");
    await server.command("DEL", "freed");
    freed.write("0\n");
    assertEquals(await freed.exited, 76, freed.stderr);
    const lost = "was lost (deleted) before the command had ended";
    assertEquals(freed.stderr, `lock-cli: "freed" ${lost}\n`);
    // One that failed had nothing to keep: its own code says more.
    const failed = await start("failed", server.url, "--ttl", "10m");
    await server.command("DEL", "failed");
    failed.write("5\n");
    assertEquals(await failed.exited, 5, failed.stderr);
    assertEquals(failed.stderr, `lock-cli: "failed" ${lost}\n`);
    // What was said as it happened is not said again.
    const told = await start("told", server.url, "--ttl", "900ms");
    await server.command("DEL", "told");
    await told.says(/the command goes on\n/);
    told.write("0\n");
    assertEquals(await told.exited, 76, told.stderr);
    assertEquals(told.stderr.split("\n").length, 2, told.stderr);
  }],

  ["once wants to know for how long", async () => {
    const { code, stderr } = await once("job", "--", "true");
    assertEquals(code, 64);
    assertMatch(stderr, /^lock-cli: once wants --keep: .*\n$/);
  }],
]);
