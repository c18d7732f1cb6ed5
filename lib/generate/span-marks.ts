import { ArgumentError } from "../core/errors.js";

/** A chat as text, and the parts of it that the assistant wrote. */
export interface RenderedChat {
  text: string;
  /** Start and end of each part in UTF-16 units, in order. */
  spans: readonly (readonly [start: number, end: number])[];
}

/**
 * Unicode's noncharacters, which no text may hold, around the assistant's words, and between the
 * two texts of a pair. They mark the parts from the template on to the tokenizer.
 */
export const spanMarks = { open: "\uFDD0", close: "\uFDD1", between: "\uFDD2" } as const;
/** Finds a mark. */
export const anyMark = /[\uFDD0-\uFDD2]/;

/** A chat with its marks in the text. */
export function withSpanMarks({ text, spans }: RenderedChat): string {
  let marked = "";
  let at = 0;
  for (const [start, end] of spans) {
    marked += text.slice(at, start) + spanMarks.open + text.slice(start, end) + spanMarks.close;
    at = end;
  }
  return marked + text.slice(at);
}

/** Takes the marks out of a text. @throws ArgumentError unless each mark has its partner */
export function unmarked(marked: string): RenderedChat {
  let text = "";
  const spans: [number, number][] = [];
  let open: number | null = null;
  for (const piece of marked.split(/([\uFDD0\uFDD1])/)) {
    if (piece !== spanMarks.open && piece !== spanMarks.close) {
      text += piece;
      continue;
    }
    if ((piece === spanMarks.open) !== (open === null)) {
      throw new ArgumentError("[chat] the template's generation tags are not in pairs");
    }
    if (open === null) {
      open = text.length;
      continue;
    }
    if (text.length > open) spans.push([open, text.length]);
    open = null;
  }
  if (open !== null) {
    throw new ArgumentError("[chat] the template's generation tags are not in pairs");
  }
  return { text, spans };
}
