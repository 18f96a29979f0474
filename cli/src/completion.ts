/** Scripts by which a shell completes a line of ours. */

import { SUBCOMMANDS } from "./options.ts";

const NAME = "lock-cli";

/** The options of each command, one `case` each. */
function cases(indent: string): string {
  return Object.entries(SUBCOMMANDS).map(([name, { options }]) => {
    const words = Object.keys(options).map((one) => `--${one}`).join(" ");
    return `${indent}${name}) offer="${words}" ;;`;
  }).join("\n");
}

/** Those options that want a value, which nobody can know but these. */
function values(indent: string): string {
  const lines = new Map<string, string>();
  for (const { options } of Object.values(SUBCOMMANDS)) {
    for (const [name, { value, short, choices }] of Object.entries(options)) {
      if (value === undefined) continue;
      const pattern = short ? `--${name}|-${short}` : `--${name}`;
      lines.set(
        name,
        `${indent}${pattern}) ` +
          (value === "FILE"
            ? "files=1"
            : `offer="${choices?.join(" ") ?? ""}"`) +
          "; known=1 ;;",
      );
    }
  }
  return [...lines.values()].join("\n");
}

/**
 * What is common: sets `offer` and `files` for the word `cur` after `prev`, of
 * the command `name`. Both shells run it as it is.
 */
const CHOOSE = `
_lock_cli_choose() {
  local name="$1" prev="$2" cur="$3" known=
  offer= files=
  if [ -z "$name" ]; then
    offer="${Object.keys(SUBCOMMANDS).join(" ")} --help --version"
    return
  fi
  case "$prev" in
${values("    ")}
  esac
  [ -n "$known" ] && return
  case "$cur" in
    -*)
      case "$name" in
${cases("        ")}
      esac ;;
    *)
      case "$name" in
        show|free|run|once) offer="$(${NAME} ls -q 2>/dev/null)" ;;
        completion) offer="bash zsh" ;;
      esac ;;
  esac
}
`.trim();

const BASH = `${CHOOSE}
_lock_cli() {
  local cur prev name= i offer files
  # The whole word: bash takes a colon, of which keys are full, for its end.
  cur="\${COMP_LINE:0:COMP_POINT}"
  cur="\${cur##* }"
  prev="\${COMP_WORDS[COMP_CWORD-1]}"
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    # After -- comes a command line like any other.
    if [ "\${COMP_WORDS[i]}" = -- ]; then
      if declare -F _command_offset >/dev/null; then
        _command_offset $((i + 1))
      elif [ "$i" -eq $((COMP_CWORD - 1)) ]; then
        COMPREPLY=($(compgen -c -- "$cur"))
      else
        COMPREPLY=($(compgen -f -- "$cur"))
      fi
      return
    fi
  done
  [ "$COMP_CWORD" -gt 1 ] && name="\${COMP_WORDS[1]}"
  _lock_cli_choose "$name" "$prev" "$cur"
  if [ -n "$files" ]; then
    COMPREPLY=($(compgen -f -- "$cur"))
  else
    COMPREPLY=($(compgen -W "$offer" -- "$cur"))
    [[ $COMP_WORDBREAKS == *:* && $cur == *:* ]] &&
      COMPREPLY=("\${COMPREPLY[@]#"\${cur%"\${cur##*:}"}"}")
  fi
  return 0
}
complete -F _lock_cli ${NAME}
`;

const ZSH = `#compdef ${NAME}
${CHOOSE}
_lock_cli() {
  local name= offer files at
  at=\${words[(i)--]}
  if (( at < CURRENT )); then
    # After -- comes a command line like any other.
    words=(\${words[at+1,-1]})
    (( CURRENT -= at ))
    _normal
    return
  fi
  local cur="\${words[CURRENT]}" prev="\${words[CURRENT-1]}"
  (( CURRENT > 2 )) && name="\${words[2]}"
  _lock_cli_choose "$name" "$prev" "$cur"
  if [ -n "$files" ]; then _files; else compadd -- \${=offer}; fi
}
compdef _lock_cli ${NAME}
`;

/** The script for a shell; `undefined` for one that we don't know. */
export function completionFor(shell: string): string | undefined {
  return shell === "bash" ? BASH : shell === "zsh" ? ZSH : undefined;
}
