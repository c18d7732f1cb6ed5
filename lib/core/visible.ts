/** Text of strangers on a terminal: file names, messages of parsers, what a model has written. */

/**
 * Controls that could steer a terminal or show another text than there is: C0 but newline and tab, DEL, C1, marks of writing
 * direction, separators of lines and paragraphs, the byte order mark, and tag characters. Joiners stay, as emoji and many
 * scripts need them.
 */
const controls =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/** Writes every such character of a text as an escape: `\x1b`, `\u202e`. */
export function visible(text: string): string {
  return text.replace(controls, (character) => {
    const code = (character.codePointAt(0) as number).toString(16);
    if (code.length <= 2) return `\\x${code.padStart(2, "0")}`;
    return code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\u{${code}}`;
  });
}

/** Writes line breaks as escapes too, for text that must stay on one line. */
export function visibleLine(text: string): string {
  return visible(text).replaceAll("\n", "\\n").replaceAll("\t", "\\t");
}
