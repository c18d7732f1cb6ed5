/**
 * Largest part of a text, in UTF-16 units. Longer text is cut into parts that are encoded side by
 * side: the time for text without a cut (a line of one character) grows faster than its length.
 */
export const maxPartLength = 2 ** 17;

/** Text handed to the package at once, in UTF-16 units. It bounds the memory of the results. */
const maxBatchLength = 2 ** 18;

export interface TextPart {
  text: string;
  /** Whether another part of its text precedes it. */
  continues: boolean;
}

/** Groups parts of one kind into batches of bounded total length; yields their indices. */
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

/**
 * `splitText` for text that comes in chunks. It cuts at the same places, and holds little more than
 * one part in memory.
 */
export async function* splitStream(
  chunks: AsyncIterable<string>,
  limit: number,
): AsyncGenerator<{ part: string; last: boolean }> {
  let pending = "";
  for await (const chunk of chunks) {
    pending += chunk;
    // Choosing a cut needs one unit beyond the limit.
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

/** The best place for a cut between `low` and `high`, both included. */
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
