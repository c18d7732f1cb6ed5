/**
 * Longer text is cut into parts of at most this many UTF-16 units, encoded side by side: the time for one piece of text
 * without a cut (a line of one character) grows faster than its length.
 */
export const maxPartLength = 2 ** 17;

/** Text given to the package at once: bounds the memory of its results. */
const maxBatchLength = 2 ** 18;

export interface TextPart {
  text: string;
  /** Whether it is not the first part of its text. */
  continues: boolean;
}

/** Places of parts of one kind, bounded in total length. */
export function* batches(parts: readonly TextPart[]): Generator<number[]> {
  for (const continues of [false, true]) {
    let batch: number[] = [];
    let length = 0;
    for (const [place, part] of parts.entries()) {
      if (part.continues !== continues) continue;
      if (batch.length > 0 && length + part.text.length > maxBatchLength) {
        yield batch;
        batch = [];
        length = 0;
      }
      batch.push(place);
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

/** `splitText` for text that comes in chunks, cut at the same places; holds little more than one part. */
export async function* splitStream(
  chunks: AsyncIterable<string>,
  limit: number,
): AsyncGenerator<{ part: string; last: boolean }> {
  let pending = "";
  for await (const chunk of chunks) {
    pending += chunk;
    // A cut looks one unit beyond the limit.
    let start = 0;
    while (pending.length - start > limit + 1) {
      const end = cutBefore(pending, start + Math.ceil(limit / 2), start + limit);
      yield { part: pending.slice(start, end), last: false };
      start = end;
    }
    pending = pending.slice(start);
  }
  const rest = splitText(pending, limit);
  for (const [place, part] of rest.entries()) yield { part, last: place === rest.length - 1 };
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
