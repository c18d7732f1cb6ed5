import { pythonRegExp } from "./python-regexp.js";

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
  const patterns = (options.ignorePatterns ?? []).map(pythonRegExp);
  const reduced = (text: string): string => {
    let kept = patterns.reduce((rest, pattern) => rest.replace(pattern, ""), text);
    if (options.ignoreCase) kept = kept.toLowerCase();
    if (options.ignorePunctuation) kept = kept.replace(/[!-/:-@[-`{-~]/g, "");
    if (options.ignoreNumbers) kept = kept.replace(/[0-9]/g, "");
    // NumPy's texts do not keep NUL characters at their end.
    return kept.replace(/\0+$/, "");
  };
  return (answer, reference) => Number(reduced(answer) === reduced(reference));
}
