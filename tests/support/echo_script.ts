/** A script for the tests of `process.ts`: gives back what it is sent. */
import process from "node:process";

import { args, lines, say } from "./child.ts";

say({ type: "ready", pid: process.pid, args, word: process.env.WORD });
for await (const message of lines()) say({ type: "echo", message });
