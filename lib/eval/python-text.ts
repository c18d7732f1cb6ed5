/**
 * Methods of Python's `str` where JavaScript's differ. Prompts of the published tasks depend on
 * them.
 */

/** Characters for which `str.isspace` and `\s` of Python's `re` hold, as a class for `RegExp`. */
export const pythonSpace =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";

const spaces = new RegExp(`${pythonSpace}+`, "g");
const leading = new RegExp(`^${pythonSpace}+`);
const isSpace = new RegExp(`^${pythonSpace}$`);

/** `text.lstrip()` */
export function stripStart(text: string): string {
  return text.replace(leading, "");
}

/** `text.rstrip()` */
export function stripEnd(text: string): string {
  let end = text.length;
  while (end > 0 && isSpace.test(text[end - 1] as string)) end--;
  return text.slice(0, end);
}

/** `text.strip()` */
export function strip(text: string): string {
  return stripEnd(stripStart(text));
}

/** `len(re.split(r"\s+", text))`, the number of words of lm-evaluation-harness. */
export function countWords(text: string): number {
  return text.split(spaces).length;
}

/** `text.capitalize()`: the first character in title case, all others in lower case. */
export function capitalize(text: string): string {
  const [first = ""] = text;
  // The whole text is lowered, because a final sigma depends on the characters before it.
  return titleCase(first) + text.toLowerCase().slice(first.toLowerCase().length);
}

const digraphs: Readonly<Record<string, string>> = { Ǆ: "ǅ", Ǉ: "ǈ", Ǌ: "ǋ", Ǳ: "ǲ" };

/** Title case of a character, which JavaScript does not know. */
function titleCase(char: string): string {
  // Georgian has capitals, but does not begin sentences with them.
  if (/[\u10d0-\u10ff]/.test(char)) return char;
  const upper = char.toUpperCase();
  const digraph = digraphs[upper];
  if (digraph !== undefined) return digraph;
  if (char === "\u0149") return upper;
  // A Greek letter keeps its iota subscript.
  const parts = char.normalize("NFD");
  if (parts.includes("\u0345")) {
    return `${parts.replace("\u0345", "").toUpperCase()}\u0345`.normalize("NFC");
  }
  const [start = "", ...rest] = upper;
  return start + rest.join("").toLowerCase();
}
