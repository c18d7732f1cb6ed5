/** A text in which some parts count, such as the assistant's words in a chat. */
export interface SpannedText {
  text: string;
  /** Start and end of each part in UTF-16 units, in order, without overlaps. */
  spans: readonly (readonly [start: number, end: number])[];
}

/** The ids of such a text, and for each id 1 if it holds a character of a part, else 0. */
export interface SpannedIds {
  ids: Int32Array;
  counted: Uint8Array;
}

/** Spans in characters (code points), in which the tokenizers package counts. */
export function inCharacters({ text, spans }: SpannedText): (readonly [number, number])[] {
  let unit = 0;
  let character = 0;
  const upTo = (end: number): number => {
    while (unit < end) {
      unit += (text.codePointAt(unit) as number) > 0xffff ? 2 : 1;
      character++;
    }
    return character;
  };
  return spans.map(([start, end]) => [upTo(start), upTo(end)] as const);
}

/**
 * For each token, 1 if its characters overlap a span.
 * @param offsets start and end of each token in characters, with starts in order
 */
export function overlapping(
  offsets: readonly (readonly number[])[],
  spans: readonly (readonly [number, number])[],
): Uint8Array {
  const counted = new Uint8Array(offsets.length);
  let place = 0;
  for (const [index, [start = 0, end = 0]] of offsets.entries()) {
    while (place < spans.length && (spans[place] as readonly [number, number])[1] <= start) place++;
    const span = spans[place];
    if (span !== undefined && end > span[0] && end > start) counted[index] = 1;
  }
  return counted;
}
