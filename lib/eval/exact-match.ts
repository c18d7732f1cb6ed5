import { pythonRegExp } from "./python-regexp.js";
import { withinTime } from "./time-limit.js";

/** Options of the metric `exact_match` of lm-evaluation-harness. */
export interface ExactMatchOptions {
  ignoreCase?: boolean;
  ignorePunctuation?: boolean;
  ignoreNumbers?: boolean;
  /** Patterns of Python's `re`. What matches is removed. */
  ignorePatterns?: readonly string[];
}

/** A function that tells whether an answer equals the reference: 1 or 0. */
export function exactMatch(
  options: ExactMatchOptions = {},
): (answer: string, reference: string) => number {
  const patterns = (options.ignorePatterns ?? []).map((source) => {
    const pattern = pythonRegExp(source);
    return (text: string) =>
      withinTime(`pattern ${JSON.stringify(source)}`, () => text.replace(pattern, ""));
  });
  const reduced = (text: string): string => {
    let kept = patterns.reduce((rest, remove) => remove(rest), text);
    if (options.ignoreCase) kept = kept.toLowerCase();
    if (options.ignorePunctuation) kept = kept.replace(/[!-/:-@[-`{-~]/g, "");
    if (options.ignoreNumbers) kept = kept.replace(/[0-9]/g, "");
    // NumPy's texts do not keep NUL characters at their end.
    return kept.replace(/\0+$/, "");
  };
  return (answer, reference) => Number(reduced(answer) === reduced(reference));
}
