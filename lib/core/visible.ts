/** Makes untrusted text safe for a terminal: file names, parser messages, a model's output. */

/**
 * Characters that could steer a terminal or disguise the text. Joiners stay, because emoji and many
 * scripts need them.
 */
const controls = new RegExp(
  `[${[
    "\\u0000-\\u0008\\u000b-\\u001f", // C0 controls except newline and tab
    "\\u007f-\\u009f", // DEL and C1 controls
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u206f", // marks of writing direction
    "\\u2028\\u2029", // separators of lines and paragraphs
    "\\ufeff", // byte order mark
    "\\ufff9-\\ufffb", // annotations between lines
    "\\u{e0000}-\\u{e007f}", // tags
  ].join("")}]`,
  "gu",
);

/** Replaces every such character with an escape: `\x1b`, `\u202e`. */
export function visible(text: string): string {
  return text.replace(controls, (character) => {
    const code = (character.codePointAt(0) as number).toString(16);
    if (code.length <= 2) return `\\x${code.padStart(2, "0")}`;
    return code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\u{${code}}`;
  });
}

/** Replaces line breaks with escapes too, for text that must stay on one line. */
export function visibleLine(text: string): string {
  return visible(text).replaceAll("\n", "\\n").replaceAll("\t", "\\t");
}
