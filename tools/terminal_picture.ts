/**
 * Draws docs/cli.svg: a session at a real terminal, with a server and holders
 * of its own, as it was the moment this ran.
 *
 *     deno run -A tools/terminal_picture.ts
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

import { lockCli, ROOT, START } from "../cli/tests/support/cli.ts";
import { openTerminal, word } from "../cli/tests/support/terminal.ts";
import { startRedis } from "../tests/support/redis_server.ts";

const COLUMNS = 107;
const ROWS = 24;
const LINE = 19;
const LETTER = 8.43;
const EDGE = 16;

const folder = mkdtempSync(join(tmpdir(), "lock-picture-"));
const server = await startRedis();
const env = { REDIS_URL: server.url };
const rest = (ms: number) => new Promise((done) => setTimeout(done, ms));
let lines: string[];
try {
  const rc = join(folder, "rc");
  const program = [process.execPath, ...START].map(word).join(" ");
  writeFileSync(
    rc,
    `PS1='$ '\nlock-cli() { ${program} "$@"; }\nbind 'set enable-bracketed-paste off'\n`,
  );
  const hold = async (key: string, label: string, then: string) => {
    const shell = `echo up; ${then}`;
    const args = ["run", "-v", key, "--label", label, "--", "sh", "-c", shell];
    const cli = lockCli(args, { env, isOpen: true });
    await cli.says(/up|waiting/);
    return cli;
  };
  await using _ = await hold("deploy", "ci@web-3 pid 4711: deploy.sh", "cat");
  await using _1 = await hold("report", "ci@web-1 pid 812: report.py", "cat");
  await using _2 = await hold("deploy", "ci@web-2 pid 2290: deploy.sh", "cat");
  await using terminal = openTerminal(`exec bash --rcfile ${rc} -i`, {
    env,
    columns: COLUMNS,
    rows: ROWS,
  });
  await terminal.shows(/^\$$/);
  await rest(3_000);
  const say = async (command: string, shows: RegExp) => {
    terminal.type(`${command}\n`);
    await terminal.shows(shows);
  };
  await say("lock-cli ls", /report .*\n\$$/);
  await say("lock-cli show deploy", / {2}1 .*\n\$$/);
  await say(
    "lock-cli run --no-wait deploy -- ./deploy.sh; echo $?",
    /^75\n\$$/m,
  );
  await say("lock-cli run deploy -- ./deploy.sh", /place 2 · waiting 2s$/);
  lines = terminal.lines;
} finally {
  await server.stop();
  rmSync(folder, { recursive: true, force: true });
}

const width = Math.round(COLUMNS * LETTER + 2 * EDGE);
const height = lines.length * LINE + 2 * EDGE + 18;
const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const rows = lines.map((line, i) => {
  const y = EDGE + 18 + (i + 1) * LINE - 5;
  const kind = line.startsWith("$") ? ` class="typed"` : "";
  return `<text x="${EDGE}" y="${y}"${kind}>${escape(line)}</text>`;
});
const dots = ["#ff5f57", "#febc2e", "#28c840"].map((fill, i) =>
  `<circle cx="${EDGE + 6 + i * 20}" cy="${EDGE}" r="6" fill="${fill}"/>`
);
const svg =
  `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
<title>A terminal: who holds what, one lock with its line, a refusal, and waiting</title>
<style>
  text {
    font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    fill: #d6deeb;
    white-space: pre;
  }
  .typed { fill: #9ece6a; font-weight: 600; }
</style>
<rect width="100%" height="100%" rx="10" fill="#1a1b26"/>
${dots.join("\n")}
${rows.join("\n")}
</svg>
`;
writeFileSync(join(ROOT, "docs", "cli.svg"), svg);
console.log(lines.join("\n"));
process.exit(0);
