/**
 * How errors name the options of a call. A library user knows them as fields of an object, a
 * command-line user as flags. The command line sets this once, and every message follows.
 */
let naming: (name: string) => string = (name) => name;

/** Name of an option in the form that the reader of the message would write. */
export function optionName(name: string): string {
  return naming(name);
}

/** An option with a value: `kind: "code"`, or `--kind code` on a command line. */
export function optionValue(name: string, value: string): string {
  const written = naming(name);
  return written.startsWith("--") ? `${written} ${value}` : `${written}: ${JSON.stringify(value)}`;
}

/**
 * Name of an option within others: `inputs[2].minBytes`. On a command line, one flag covers all
 * inputs: `--min-bytes`.
 */
export function optionPathName(path: readonly (string | number)[]): string {
  if (!namesAreFlags()) return pathName(path);
  return naming(String(path.findLast((key) => typeof key === "string")));
}

/** Makes messages name options as flags. Only the process of a command line calls it. */
export function nameOptionsAsFlags(): void {
  naming = nameOnCommandLine;
}

/** Whether `nameOptionsAsFlags` was called. */
export function namesAreFlags(): boolean {
  return naming === nameOnCommandLine;
}

/** Options that are arguments without a flag on a command line. */
const argumentNames: Readonly<Record<string, string>> = { inputs: "inputs", path: "inputs" };

function nameOnCommandLine(name: string): string {
  return argumentNames[name] ?? flagOf(name);
}

/** Options that collect several values, with the singular that their flag uses. */
const singular: Readonly<Record<string, string>> = {
  languages: "language",
  apiKeys: "apiKey",
  corsOrigins: "corsOrigin",
  specialTokens: "specialToken",
};

/** Path of an option as text: `data.train.data/text`, `sample.prompts[2]`. */
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
