/** How this program ends, if not as its command does. */

/** Exit codes, those of sysexits.h where it has one for it. */
export const EXIT = {
  /** Nobody holds what was asked for. */
  notHeld: 1,
  /** It was called wrongly. */
  usage: 64,
  /** The server can't be asked. */
  unavailable: 69,
  /** Somebody else has it: try again later. */
  taken: 75,
  /** It was lost while the command ran. */
  lost: 76,
  /** The command can't be run, or is not there: as of a shell. */
  notExecutable: 126,
  notFound: 127,
  /** And so many more for a signal. */
  signalled: 128,
} as const;

/** The program is over: with that code, having said that. */
export class Failure extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** It was called wrongly. */
export function misused(message: string): never {
  throw new Failure(EXIT.usage, message);
}
