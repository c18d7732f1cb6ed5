import { DataError } from "../core/errors.js";
import { pythonSpace } from "./python-text.js";

const flagNames: Readonly<Record<string, string>> = { i: "i", m: "m", s: "" };

/**
 * A pattern of Python's `re` as a global `RegExp` that matches alike: `.` stops only at "\n", `\s`
 * and `\w` know all of Unicode, `$` and `\Z` end the text, `(?P<name>…)` and flags at the start.
 * @throws DataError for a pattern that has no such form
 */
export function pythonRegExp(source: string): RegExp {
  const [, letters = ""] = /^\(\?([a-zA-Z]+)\)/.exec(source) ?? [];
  const unknown = [...letters].find((letter) => flagNames[letter] === undefined);
  const body = letters === "" ? source : source.slice(letters.length + 3);
  const flags = [...letters].map((letter) => flagNames[letter]).join("");
  const reason = unknown === undefined ? null : `flag ${unknown}`;
  try {
    if (reason !== null) throw new Error(`no such ${reason}`);
    return new RegExp(translated(body, letters.includes("s"), letters.includes("m")), `gu${flags}`);
  } catch (cause) {
    throw new DataError(
      `expected a pattern that JavaScript has too, got ${JSON.stringify(source)}: ${(cause as Error).message}`,
      { cause },
    );
  }
}

const classEscapes: Readonly<Record<string, string>> = {
  s: pythonSpace.slice(1, -1),
  w: "\\p{L}\\p{N}_",
  d: "\\p{Nd}",
};

function translated(source: string, dotAll: boolean, multiline: boolean): string {
  let inClass = false;
  return source.replace(/\\(.)|\(\?P([<=])|[[\].$]/gs, (match, escaped, group) => {
    if (escaped !== undefined) return translatedEscape(escaped, inClass);
    if (group === "<") return inClass ? match : "(?<";
    if (group === "=") throw new Error("no such group: (?P=");
    if (match === "[") {
      const opens = !inClass;
      inClass = true;
      return opens ? "[" : "\\[";
    }
    if (match === "]") {
      inClass = false;
      return "]";
    }
    if (inClass) return match;
    if (match === ".") return dotAll ? "[^]" : "[^\\n]";
    return multiline ? "(?=\\n|(?![^]))" : "(?=\\n?(?![^]))";
  });
}

function translatedEscape(escaped: string, inClass: boolean): string {
  const set = classEscapes[escaped.toLowerCase()];
  if (set !== undefined && escaped.toLowerCase() === escaped) return inClass ? set : `[${set}]`;
  if (set !== undefined && !inClass) return `[^${set}]`;
  if (escaped === "Z") return "(?![^])";
  if (escaped === "A") return "(?<![^])";
  if (escaped === "b") return inClass ? "\\b" : wordBorder;
  // A letter or digit keeps its meaning; any other character stands for itself.
  if (/[a-zA-Z0-9]/.test(escaped)) return `\\${escaped}`;
  return /[\^$\\.*+?()[\]{}|/-]/.test(escaped) && (inClass || escaped !== "-")
    ? `\\${escaped}`
    : escaped;
}

const word = "[\\p{L}\\p{N}_]";
const wordBorder = `(?:(?<=${word})(?!${word})|(?<!${word})(?=${word}))`;
