/** Reads the reason of a crash from the standard error of the process. */

/** Characters of the end that are kept. */
const tail = 2 ** 14;

export function keepTail(said: string): string {
  return said.slice(-tail);
}

/**
 * The reason why a process ended. The `tokenizers` package panics with its reason on a line of its own, and Node
 * with a line that begins with FATAL ERROR.
 */
export function crashOf(said: string): string {
  const reason =
    /panicked at [^\n]*\n([^\n]+)/.exec(said)?.[1] ?? /FATAL ERROR: [^\n]+/.exec(said)?.[0];
  if (reason === undefined) return "a process that does ends itself";
  return /retry-limit|backtrack/.test(reason)
    ? `a regular expression of tokenizer.json backtracks too long on it (${reason})`
    : reason;
}
