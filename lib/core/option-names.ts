/**
 * How errors name the options of a call. A library user knows them as fields of an object, a
 * command-line user as flags. The command line sets this once, and every message follows.
 */
let naming: (name: string) => string = (name) => name;

/** Name of an option, in the form that the message's reader writes it. */
export function optionName(name: string): string {
  return naming(name);
}

/** An option with a value: `kind: "code"`, or `--kind code` on a command line. */
export function optionValue(name: string, value: string): string {
  const written = naming(name);
  return written.startsWith("--") ? `${written} ${value}` : `${written}: ${JSON.stringify(value)}`;
}

/** Makes messages name options as flags. Only a command line's process calls it. */
export function nameOptionsAsFlags(): void {
  naming = flagOf;
}

/** Whether `nameOptionsAsFlags` was called. */
export function namesAreFlags(): boolean {
  return naming === flagOf;
}

/** Options that collect several values, with the singular that their flag uses. */
const singular: Readonly<Record<string, string>> = { languages: "language" };

/** Flag of an option: `shardTokens` becomes `--shard-tokens`. */
export function flagOf(name: string): string {
  const word = singular[name] ?? name;
  return `--${word.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
