import type { Command, Option } from "commander";
import { print } from "./terminal.js";

const shells = ["bash", "zsh", "fish"] as const;
type Shell = (typeof shells)[number];

/** The words that may follow a command: its subcommands and its options. */
interface Words {
  /** The command's own words, such as `bench parity`; empty for the program itself. */
  path: string;
  description: string;
  words: string[];
}

export function addCompletion(program: Command): void {
  program
    .command("completion")
    .description("a script that completes commands and options in a shell")
    .argument("<shell>", `${shells.join(", ")}; e.g. source <(llamaforge completion bash)`)
    .action((shell: string, _options, command: Command) => {
      if (!shells.includes(shell as Shell)) {
        command.error(
          `error: there is no completion for '${shell}', only for ${shells.join(", ")}`,
        );
      }
      print(completionScript(shell as Shell, wordsOf(program, "")));
    });
}

function wordsOf(command: Command, path: string): Words[] {
  const subcommands = command.commands.map((each) => each.name());
  const flags = command.options
    .filter((option: Option) => !option.hidden)
    .map(({ long, short }) => long ?? short ?? "");
  const own = { path, description: command.description(), words: [...subcommands, ...flags] };
  const below = command.commands.flatMap((each) =>
    wordsOf(each, path === "" ? each.name() : `${path} ${each.name()}`),
  );
  return [own, ...below];
}

/**
 * A shell's script. Zsh runs the one for bash. The files that a command takes are completed as the
 * shell does by default.
 */
function completionScript(shell: Shell, all: readonly Words[]): string {
  return shell === "fish" ? fishScript(all) : bashScript(shell, all);
}

function bashScript(shell: Shell, all: readonly Words[]): string {
  const cases = all.map(({ path, words }) => `    "${path}") words="${words.join(" ")}" ;;`);
  const commands = all.filter(({ path }) => path !== "").map(({ path }) => `"${path}"`);
  const zsh = shell === "zsh" ? "autoload -Uz bashcompinit && bashcompinit\n" : "";
  return `${zsh}_llamaforge() {
  local current="\${COMP_WORDS[COMP_CWORD]}" path="" words="" next word
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    next="\${path:+$path }$word"
    case "$next" in
      ${commands.join("|")}) path="$next" ;;
    esac
  done
  case "$path" in
${cases.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _llamaforge llamaforge
`;
}

function fishScript(all: readonly Words[]): string {
  const quoted = (text: string) => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
  const lines = all.flatMap(({ path, description, words }) => {
    const parts = path.split(" ").filter(Boolean);
    const flags = words.filter((word) => word.startsWith("--"));
    const inside = parts.map((part) => `__fish_seen_subcommand_from ${part}`).join("; and ");
    const condition = inside === "" ? "__fish_use_subcommand" : inside;
    const name = parts.at(-1);
    const before = parts.slice(0, -1).map((part) => `__fish_seen_subcommand_from ${part}`);
    const place = before.length === 0 ? "__fish_use_subcommand" : before.join("; and ");
    return [
      ...(name === undefined
        ? []
        : [`complete -c llamaforge -n ${quoted(place)} -a ${name} -d ${quoted(description)}`]),
      ...flags.map((flag) => `complete -c llamaforge -n ${quoted(condition)} -l ${flag.slice(2)}`),
    ];
  });
  return `${lines.join("\n")}\n`;
}
