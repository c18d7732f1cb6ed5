import { byteLevelAlphabet } from "./tokenizer-json.js";

// The decoders of a tokenizer.json as steps that text flows through, so that each part of it appears as soon as it is final.
// What the `tokenizers` package does to a list of strings, these do to the same strings one after the other.
//
// Text is held as bytes, one character 0..255 each ("binary"): a byte-fallback token may be a third of a character.

/** Part of a piece of text. A piece is what the package has as one string of its list: a token, or several that were joined. */
export interface Part {
  readonly bytes: string;
  /** Whether the piece begins here. */
  readonly starts: boolean;
  /** Whether the piece ends here. */
  readonly ends: boolean;
  /** Whether these are the characters of an added token that no ByteLevel alphabet spells. */
  readonly literal?: boolean;
}

export type Sink = (part: Part) => void;

/** One decoder, which passes on what it makes of its parts. */
export interface DecoderStep {
  push(part: Part): void;
  /** No part follows. */
  end(): void;
}

export type MakeStep = (emit: Sink) => DecoderStep;

/** UTF-8 with a character for each byte. */
export function toBinary(text: string): string {
  return Buffer.from(text, "utf8").toString("latin1");
}

/** `Fuse`: all pieces become one. */
export function fuse(emit: Sink): DecoderStep {
  let starts = true;
  return {
    push({ bytes }) {
      emit({ bytes, starts, ends: false });
      starts = false;
    },
    end: () => emit({ bytes: "", starts, ends: true }),
  };
}

/** The package reads what stands in for the digits as Rust reads a number: `+3` is one. */
const byteName = /^<0x([0-9a-f]{2}|\+[0-9a-f])>$/i;

/** `ByteFallback`: tokens such as `<0x0A>` become bytes; those in a row are one piece. */
export function byteFallback(emit: Sink): DecoderStep {
  let name = "";
  let inRow = false;
  const endRow = (): void => {
    if (inRow) emit({ bytes: "", starts: false, ends: true });
    inRow = false;
  };
  const take = (piece: string): void => {
    const digits = byteName.exec(piece)?.[1];
    if (digits !== undefined) {
      const bytes = String.fromCharCode(Number.parseInt(digits, 16));
      emit({ bytes, starts: !inRow, ends: false });
      inRow = true;
      return;
    }
    endRow();
    emit({ bytes: piece, starts: true, ends: true });
  };
  return {
    push({ bytes, ends }) {
      name += bytes;
      if (!ends) return;
      take(name);
      name = "";
    },
    end: endRow,
  };
}

const byteOfCharacter = new Map(byteLevelAlphabet.map((character, byte) => [character, byte]));

/** `ByteLevel`: each character stands for a byte; a token with any other character is text. All becomes one piece. */
export function byteLevel(emit: Sink): DecoderStep {
  let piece = "";
  const joined = fuse(emit);
  const bytesOf = (text: string): string => {
    let bytes = "";
    for (const character of Buffer.from(text, "latin1").toString("utf8")) {
      const byte = byteOfCharacter.get(character);
      if (byte === undefined) return text;
      bytes += String.fromCharCode(byte);
    }
    return bytes;
  };
  return {
    push(part) {
      piece += part.bytes;
      if (!part.ends) return;
      joined.push({ ...part, bytes: part.literal ? piece : bytesOf(piece) });
      piece = "";
    },
    end: () => joined.end(),
  };
}

/** The longest end of `text` with which a match of `pattern` may begin. */
function unfinishedMatch(text: string, pattern: string): number {
  for (let length = Math.min(text.length, pattern.length - 1); length > 0; length--) {
    if (text.endsWith(pattern.slice(0, length))) return length;
  }
  return 0;
}

/** `Replace` of a text (not a regular expression), within a piece; the first piece of all may get another content. */
export function replace(pattern: string, content: string, contentInFirst = content): MakeStep {
  return (emit) => {
    let pending = "";
    let starts = true;
    let first = true;
    return {
      push(part) {
        pending += part.bytes;
        starts ||= part.starts;
        let bytes = "";
        let at = 0;
        for (let match = pending.indexOf(pattern); match >= 0; ) {
          bytes += pending.slice(at, match) + (first ? contentInFirst : content);
          at = match + pattern.length;
          match = pending.indexOf(pattern, at);
        }
        const held = part.ends ? 0 : unfinishedMatch(pending.slice(at), pattern);
        bytes += pending.slice(at, pending.length - held);
        pending = pending.slice(pending.length - held);
        emit({ bytes, starts, ends: part.ends });
        starts = false;
        if (part.ends) first = false;
      },
      end() {},
    };
  };
}

/** `Metaspace`: what stands for a space becomes one; in the first piece, where the encoder had put it, nothing. */
export function metaspace(replacement: string, prepended: boolean): MakeStep {
  return replace(replacement, " ", prepended ? "" : " ");
}

/** `Strip`: at most `start` characters `content` go from the beginning of each piece, `stop` from its end. */
export function strip(content: string, start: number, stop: number): MakeStep {
  return (emit) => {
    let pending = "";
    let starts = true;
    let left = start;
    return {
      push(part) {
        if (part.starts) left = start;
        starts ||= part.starts;
        pending += part.bytes;
        for (; left > 0 && pending.startsWith(content); left--) {
          pending = pending.slice(content.length);
        }
        const undecided = left > 0 && !part.ends && content.startsWith(pending);
        if (!undecided) left = 0;
        let shown = undecided ? 0 : pending.length;
        if (stop > 0 && !part.ends) shown -= unfinishedMatch(pending.slice(0, shown), content);
        // What may have to go, as the piece may end here.
        for (let i = 0; i < stop && shown > 0 && pending.endsWith(content, shown); i++) {
          shown -= content.length;
        }
        const bytes = pending.slice(0, shown);
        pending = part.ends ? "" : pending.slice(shown);
        emit({ bytes, starts, ends: part.ends });
        starts = false;
      },
      end() {},
    };
  };
}
