/**
 * Longer text is cut into parts of at most this many UTF-16 units, encoded side by side: the time for one piece of text
 * without a cut (a line of one character) grows faster than its length.
 */
export const maxPartLength = 2 ** 17;

/** Text given to the package at once: bounds the memory of its results. */
const maxBatchLength = 2 ** 22;

export interface Part {
  text: string;
  /** Which text it is a part of. */
  index: number;
  /** Whether it is not the first part of its text. */
  continues: boolean;
}

/** Runs of parts of one kind, bounded in total length. */
export function* batches(parts: readonly Part[]): Generator<Part[]> {
  for (const continues of [false, true]) {
    let batch: Part[] = [];
    let length = 0;
    for (const part of parts) {
      if (part.continues !== continues) continue;
      if (batch.length > 0 && length + part.text.length > maxBatchLength) {
        yield batch;
        batch = [];
        length = 0;
      }
      batch.push(part);
      length += part.text.length;
    }
    if (batch.length > 0) yield batch;
  }
}

/** Cuts a text into parts of at most `limit` units; see `encodeBatch` for where. */
export function splitText(text: string, limit: number): string[] {
  const parts: string[] = [];
  let start = 0;
  while (text.length - start > limit) {
    const end = cutBefore(text, start + Math.ceil(limit / 2), start + limit);
    parts.push(text.slice(start, end));
    start = end;
  }
  parts.push(text.slice(start));
  return parts;
}

const isSpace = (character: string | undefined): boolean => /\s/.test(character ?? "");

/** The best place for a cut in low..high. */
function cutBefore(text: string, low: number, high: number): number {
  for (let at = high; at > low; at--) {
    if (text[at - 1] === "\n" && !isSpace(text[at])) return at;
  }
  for (let at = high; at > low; at--) {
    if (text[at] === " " && !isSpace(text[at - 1]) && !isSpace(text[at + 1])) return at;
  }
  const code = text.charCodeAt(high);
  return code >= 0xdc00 && code <= 0xdfff ? high - 1 : high;
}
