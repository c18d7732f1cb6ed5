/**
 * The only place where the command line writes, so that no untrusted text reaches a terminal
 * unescaped.
 */
import { visible } from "../core/visible.js";

/** Writes text for people. */
export function print(text: string): void {
  process.stdout.write(visible(text));
}

/** Writes a result that other programs may read: unchanged to them, made visible on a terminal. */
export function printResult(text: string): void {
  process.stdout.write(process.stdout.isTTY ? visible(text) : text);
}

/** Writes a message to stderr, apart from the result. */
export function printError(text: string): void {
  process.stderr.write(visible(text));
}

/** Lines of commands, each with a remark; the remarks begin in one column. */
export function withRemarks(
  lines: readonly (readonly [command: string, remark: string])[],
): string {
  const width = Math.max(...lines.map(([command]) => command.length));
  return lines.map(([command, remark]) => `${command.padEnd(width)}    # ${remark}\n`).join("");
}

const maxLines = 60;
const maxLineLength = 2000;

/**
 * Shortens a message for a terminal: its first lines, each up to a maximum length, and the amounts
 * left out.
 */
export function bounded(text: string): string {
  const lines = text.split("\n");
  const shown = lines.slice(0, maxLines).map((line) => {
    const left = line.length - maxLineLength;
    return left > 0 ? `${line.slice(0, maxLineLength)}... (${left} more characters)` : line;
  });
  if (lines.length > maxLines) shown.push(`... and ${lines.length - maxLines} more lines`);
  return shown.join("\n");
}

/** Escape codes of styles: bold cyan, bold, grey. */
const codes = { prompt: "1;36", strong: "1", faint: "90" } as const;

type Style = keyof typeof codes;

/**
 * Text for a terminal in a style; plain if the output is no terminal, or is told to have no colours.
 * @see https://no-color.org
 */
export function styled(text: string, style: Style): string {
  const { NO_COLOR, TERM } = process.env;
  const plain = !process.stdout.isTTY || (NO_COLOR ?? "") !== "" || TERM === "dumb";
  return plain ? visible(text) : `\x1b[${codes[style]}m${visible(text)}\x1b[0m`;
}

/** Writes text for people in a style. */
export function printStyled(text: string, style: Style): void {
  process.stdout.write(styled(text, style));
}
