import { normalize, sep } from "node:path";
import { ArgumentError } from "../core/errors.js";

/** Whether a path is a pattern rather than a plain name. */
export function isGlob(path: string): boolean {
  return /[*?[{]/.test(path);
}

/** The leading folders of a pattern, up to the first part that is not a plain name. */
export function globRoot(pattern: string): string {
  const parts = pattern.split(sep);
  const first = parts.findIndex(isGlob);
  const root = parts.slice(0, first).join(sep);
  return root === "" ? (pattern.startsWith(sep) ? sep : ".") : root;
}

/**
 * Converts a pattern to a regular expression for paths. A pattern may contain `*` and `?` within a
 * name, `**` across folders, `[a-z]` and `{one,two}`.
 * @throws ArgumentError for a bracket or brace that is not closed
 */
export function globExpression(pattern: string): RegExp {
  const path = normalize(pattern);
  let source = "";
  let braces = 0;
  for (let at = 0; at < path.length; at++) {
    const character = path[at] as string;
    if (path.startsWith("**/", at)) {
      source += "(?:[^/]*/)*";
      at += 2;
    } else if (path.startsWith("**", at)) {
      source += ".*";
      at += 1;
    } else if (character === "*") source += "[^/]*";
    else if (character === "?") source += "[^/]";
    else if (character === "[") {
      const end = path.indexOf("]", at + 2);
      if (end < 0) throw new ArgumentError(`[prepare] ${pattern}: [ without ]`);
      const inner = path
        .slice(at + 1, end)
        .replace(/^!/, "^")
        .replaceAll("\\", "\\\\");
      source += `[${inner}]`;
      at = end;
    } else if (character === "{") {
      braces++;
      source += "(?:";
    } else if (character === "}" && braces > 0) {
      braces--;
      source += ")";
    } else if (character === "," && braces > 0) source += "|";
    else source += character.replace(/[\\^$.|+()[\]{}]/g, "\\$&");
  }
  if (braces > 0) throw new ArgumentError(`[prepare] ${pattern}: { without }`);
  return new RegExp(`^${source}$`, "u");
}
