/** Where the lock lives: URLs, quorums, TLS, and what is said where it fails. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { connect as connectTcp } from "node:net";
import { createServer } from "node:tls";

import {
  freePort,
  type RedisServer,
  startRedis,
} from "../../tests/support/redis_server.ts";
import { startCluster } from "../../tests/support/redis_cluster.ts";
import { after, before } from "../../tests/support/test.ts";
import { certificateFor } from "./support/certificate.ts";
import type { Outcome } from "./support/caller.ts";
import { asked, lockCli, ran, scratchFile, testFew } from "./support/cli.ts";

const PASSWORD = "s3same/ @:öffne";
const QUOTED = encodeURIComponent(PASSWORD);
const SOCKET = scratchFile("redis.sock");

let open: RedisServer;
let closed: RedisServer;
before(async () => {
  open = await startRedis({ args: ["--unixsocket", SOCKET] });
  closed = await startRedis({ password: PASSWORD });
  await closed.command(
    ...["ACL", "SETUSER", "deployer", "on", `>${PASSWORD}`],
    ...["~*", "&*", "+@all", "-info", "-client"],
  );
  await closed.command(
    "ACL",
    "SETUSER",
    "guest",
    "on",
    ">guest",
    "~*",
    "+ping",
  );
});
after(async () => {
  await open.stop();
  await closed.stop();
});

/** Every command comes to a server by the same way. */
const at = (url: string, ...args: string[]) =>
  asked(["show", "key", ...args], { env: { REDIS_URL: url } });
const run = (url: string, ...args: string[]) =>
  ran(["run", "-n", "key", ...args, "--", "true"], { env: { REDIS_URL: url } });
const silent = { code: 0, stdout: "", stderr: "" };
/** What `at` comes to where nobody has it. */
const free = {
  code: 1,
  stdout: "key        key\nholder     nobody\nline       nobody\n",
  stderr: "",
};

/** What is said where the server can't be had. */
async function refusal(outcome: Promise<Outcome>): Promise<string> {
  const { code, stdout, stderr } = await outcome;
  assertEquals([code, stdout], [69, ""], stderr);
  assertNoSecret(stderr);
  assert(stderr.startsWith("lock-cli: ") && stderr.endsWith("\n"), stderr);
  assertEquals(stderr.split("\n").length, 2, stderr);
  return stderr.slice("lock-cli: ".length, -1);
}

function assertNoSecret(text: string): void {
  for (const secret of [PASSWORD, QUOTED, "s3same", "hunter2"]) {
    assert(!text.includes(secret), `it shows the password: ${text}`);
  }
}

testFew([
  ["a server that is not there is named, with the reason", async () => {
    const port = await freePort();
    assertEquals(
      await refusal(at(`redis://:${QUOTED}@127.0.0.1:${port}`)),
      `cannot reach the server at 127.0.0.1:${port}: ` +
        "connection refused (ECONNREFUSED)",
    );
    assertEquals(
      await refusal(at("unix:///no/such.sock")),
      "cannot reach the server at /no/such.sock: " +
        "there is no such socket (ENOENT)",
    );
    await refusal(run(`redis://127.0.0.1:${port}`));
  }],

  ["a server that says nothing is given up on", async () => {
    await using frozen = await startRedis();
    frozen.freeze();
    assertEquals(
      await refusal(run(frozen.url)),
      `cannot reach the server at 127.0.0.1:${frozen.port}: no answer`,
    );
    frozen.thaw();
  }],

  [
    "user and password are taken from the URL, and shown nowhere",
    async () => {
      const { port } = closed;
      const where = `127.0.0.1:${port}`;
      assertEquals(await at(`redis://:${QUOTED}@${where}`), free);
      assertEquals(await run(`redis://deployer:${QUOTED}@${where}`), silent);
      assertEquals(
        await refusal(at(`redis://${where}`)),
        `cannot reach the server at ${where}: it wants a password (NOAUTH)`,
      );
      for (
        const login of [":hunter2", "deployer:hunter2", "nobody:hunter2"]
      ) {
        assertEquals(
          await refusal(at(`redis://${login}@${where}`)),
          `cannot reach the server at ${where}: ` +
            "it refuses this user and password (WRONGPASS)",
        );
      }
      assertEquals(
        await refusal(run(`redis://guest:guest@${where}`)),
        `the server at ${where} can't be asked: ` +
          "this user may not do that (NOPERM)",
      );
      // One too many is no fault.
      assertEquals(await at(`redis://:hunter2@127.0.0.1:${open.port}`), free);
    },
  ],

  [
    "a password on the command line is gone from the list of processes",
    async () => {
      const url = `redis://:${QUOTED}@127.0.0.1:${closed.port}`;
      const args = ["run", "titled", "--redis", url, "--", "sh", "-c"];
      await using cli = lockCli(
        [...args, "echo up; cat; ps -p $PPID -o args="],
        {
          isOpen: true,
        },
      );
      await cli.says(/up/);
      const list = execFileSync("ps", [
        "-ww",
        "-o",
        "args=",
        "-p",
        `${cli.pid}`,
      ]);
      assertStringIncludes(`${list}`, "lock-cli");
      assertNoSecret(`${list}`);
      assertNoSecret(readFileSync(`/proc/${cli.pid}/cmdline`, "utf8"));
      cli.kill("SIGTERM");
      await cli.exited;
      const env = { LOCK_REDIS: url };
      const named = [
        "run",
        "titled",
        "--redis",
        "env:LOCK_REDIS",
        "--",
        "true",
      ];
      assertEquals(await ran(named, { env }), silent);
    },
  ],

  ["database and Unix socket are taken from the URL", async () => {
    const shell = ["sh", "-c", "echo up; cat"];
    const args = ["run", "three", "--", ...shell];
    for (
      const REDIS_URL of [
        `redis://127.0.0.1:${open.port}/3`,
        `unix://${SOCKET}?db=3`,
      ]
    ) {
      await using cli = lockCli(args, { env: { REDIS_URL }, isOpen: true });
      await cli.says(/up/);
      assertEquals(await open.command("EXISTS", "three"), 0);
      const ls = (url: string) => asked(["ls", "-q", "three", "--redis", url]);
      assertEquals((await ls(`unix://${SOCKET}?db=3`)).stdout, "three\n");
      assertEquals((await ls(SOCKET)).stdout, "");
      cli.kill("SIGTERM");
      await cli.exited;
    }
    const none = `redis://127.0.0.1:${open.port}/99`;
    assertEquals(
      await refusal(at(none)),
      `cannot reach the server at 127.0.0.1:${open.port}: ` +
        "it has no such database",
    );
  }],

  ["what is no URL is refused without being shown", async () => {
    for (
      const url of [
        "hunter2",
        "localhost:6379",
        "http://:hunter2@localhost",
        "redis://:hunter2@",
        "redis://:hunter2@localhost/x",
        "redis://:%zz-hunter2@localhost",
        "redis://:hunter2@localhost:99999",
        "redis://hunter2?x@localhost",
        "redis://hunter2#x@localhost",
      ]
    ) {
      const { code, stderr } = await at(url);
      assertEquals(code, 64, url);
      assertStringIncludes(
        stderr,
        "REDIS_URL is no URL of a Redis server: " +
          "redis://user:password@host:6379/0, rediss:// for TLS, ",
      );
      assertNoSecret(stderr);
      const given = await asked(["ls", "--redis", url]);
      assertEquals(given.code, 64);
      assertNoSecret(given.stderr);
    }
    const missing = await asked(["ls", "--redis", "env:NO_SUCH_VARIABLE"]);
    assertEquals(missing.code, 64);
    const url = "redis://:hunter2 hun/ter2@localhost";
    for (
      const args of [
        ["show", "x", url],
        ["show", `--${url}`],
        ["ls", "--cacert", url],
        ["watch", "--every", url],
        [url],
      ]
    ) {
      const misplaced = await asked(args);
      assertEquals(misplaced.code, 64, misplaced.stderr);
      assertNoSecret(misplaced.stderr);
      assert(!misplaced.stderr.includes("hun/ter2"), misplaced.stderr);
    }
  }],

  ["rediss:// speaks TLS, with whom --cacert trusts", async () => {
    const { key, cert } = certificateFor("localhost");
    const cacert = scratchFile("ca.pem");
    writeFileSync(cacert, cert);
    const proxy = createServer({ key, cert }, (socket) => {
      const inner = connectTcp(open.port, "127.0.0.1");
      socket.on("error", () => inner.destroy());
      inner.on("error", () => socket.destroy());
      socket.pipe(inner).pipe(socket);
    });
    proxy.on("tlsClientError", () => {});
    await new Promise<void>((done) => proxy.listen(0, "localhost", done));
    try {
      const { port } = proxy.address() as { port: number };
      const url = `rediss://localhost:${port}`;
      assertEquals(await at(url, "--cacert", cacert), free);
      assertEquals(
        await refusal(at(url)),
        `cannot reach the server at localhost:${port}: ` +
          "its certificate is not trusted (see --cacert)",
      );
      const { code } = await at(url, "--cacert", "/no/such.pem");
      assertEquals(code, 64);
    } finally {
      proxy.close();
    }
  }],

  ["a node of a Cluster says so, unless the key is its own", async () => {
    await using cluster = await startCluster();
    const home = await Promise.all(
      cluster.masters.map(({ command }) =>
        command("GET", "key").then(() => true, () => false)
      ),
    );
    assertEquals(home.filter(Boolean).length, 1);
    for (const [i, url] of cluster.urls.entries()) {
      if (home[i]) assertEquals(await at(url), free);
      else {
        const where = `127.0.0.1:${cluster.masters[i].port}`;
        const what = "a node of a Cluster, which this program doesn't speak";
        const told = await refusal(at(url));
        assertStringIncludes(told, where);
        assertStringIncludes(told, what);
      }
    }
  }],

  ["three servers make a quorum, of which one may be away", async () => {
    const servers = await Promise.all([1, 2, 3].map(() => startRedis()));
    try {
      const urls = servers.map(({ url }) => url);
      const flags = urls.flatMap((url) => ["--redis", url]);
      const shell = ["sh", "-c", "echo up $LOCK_FENCING_TOKEN; cat"];
      const args = ["run", "q", ...flags, "--label", "web-1", "--", ...shell];
      for (const dead of [false, true]) {
        if (dead) await servers[2].kill();
        await using cli = lockCli(args, { isOpen: true });
        await cli.says(/up \d+/);
        const env = { REDIS_URL: urls.join(" ") };
        const { code, stderr } = await asked(
          ["run", "-n", "q", "--", "true"],
          {
            env,
          },
        );
        assertEquals(code, 75, stderr);
        assertStringIncludes(stderr, "held by web-1 for ");
        const shown = await asked(["show", "q", ...flags, "--json"]);
        assertEquals(JSON.parse(shown.stdout).label, "web-1", shown.stderr);
        cli.kill("SIGTERM");
        assertEquals(await cli.exited, 143, cli.stderr);
        assertEquals(await servers[0].command("EXISTS", "q"), 0);
      }
      await servers[1].kill();
      const { code, stderr } = await asked(args);
      assertEquals(code, 69);
      assertStringIncludes(
        stderr,
        "cannot reach a majority of the servers: ",
      );
      assertStringIncludes(
        stderr,
        `127.0.0.1:${servers[1].port}: connection`,
      );
      const two = await asked(["ls", "--redis", urls[0], "--redis", urls[1]]);
      assertEquals(two.code, 64);
      assertStringIncludes(two.stderr, "two servers are no quorum");
    } finally {
      await Promise.all(servers.map((server) => server.stop()));
    }
  }],

  ["who gives up while a server says nothing is let go", async () => {
    await using own = await startRedis();
    const env = { REDIS_URL: own.url };
    await own.command("SET", "seen", "another", "PX", 60_000);
    const often = ["watch", "*", "--all", "--every", "100ms"];
    await using watching = lockCli(often, { env });
    await watching.says(/seen/);
    own.freeze();
    await using connecting = lockCli(["run", "key", "--", "true"], { env });
    await new Promise((done) => setTimeout(done, 2_000));
    connecting.kill("SIGINT");
    watching.kill("SIGINT");
    assertEquals(await connecting.exited, 130, connecting.stderr);
    assertEquals(await watching.exited, 0, watching.stderr);
    own.thaw();
  }],

  ["patience ends though the server is gone", async () => {
    await using own = await startRedis();
    await own.command("SET", "gone", "another", "PX", 60_000);
    const options = { env: { REDIS_URL: own.url } };
    const wait = (time: string) =>
      lockCli(["run", "-v", "--wait", time, "gone", "--", "true"], options);
    await using brief = wait("3s");
    await using long = wait("1h");
    await brief.says(/waiting for "gone"/);
    await long.says(/waiting for "gone"/);
    await own.kill();
    assert([69, 75].includes(await brief.exited), brief.stderr);
    long.kill("SIGTERM");
    assertEquals(await long.exited, 143, long.stderr);
  }],
]);
