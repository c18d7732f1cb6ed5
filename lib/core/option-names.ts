/**
 * How errors name the options of a call. A caller of the library knows them as fields of an object, a user of the command line
 * as flags: the command line says so once, and every message follows.
 */
let naming: (name: string) => string = (name) => name;

/** The name of an option, as whoever reads the message writes it. */
export function optionName(name: string): string {
  return naming(name);
}

/** An option with a value: `kind: "code"`, or `--kind code` on a command line. */
export function optionValue(name: string, value: string): string {
  const written = naming(name);
  return written.startsWith("--") ? `${written} ${value}` : `${written}: ${JSON.stringify(value)}`;
}

/**
 * The name of an option within others: `inputs[2].minBytes`. A command line has one flag for all inputs: `--min-bytes`.
 */
export function optionPathName(path: readonly (string | number)[]): string {
  if (!namesAreFlags()) return pathName(path);
  return naming(String(path.findLast((key) => typeof key === "string")));
}

/** Lets messages name options as flags. For the process of a command line alone. */
export function nameOptionsAsFlags(): void {
  naming = nameOnCommandLine;
}

/** Whether `nameOptionsAsFlags` was called. */
export function namesAreFlags(): boolean {
  return naming === nameOnCommandLine;
}

/** Options that a command line has as arguments, without a flag. */
const argumentNames: Readonly<Record<string, string>> = { inputs: "inputs", path: "inputs" };

function nameOnCommandLine(name: string): string {
  return argumentNames[name] ?? flagOf(name);
}

/** Options that collect several values have the name of one of them as their flag. */
const singular: Readonly<Record<string, string>> = { languages: "language" };

/** `data.train.data/text`, `sample.prompts[2]`. */
export function pathName(path: readonly (string | number)[]): string {
  return path
    .map((key, i) => (typeof key === "number" ? `[${key}]` : i === 0 ? key : `.${key}`))
    .join("");
}

/** The flag of an option: `shardTokens` is `--shard-tokens`. */
export function flagOf(name: string): string {
  const word = singular[name] ?? name;
  return `--${word.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
