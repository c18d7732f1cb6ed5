import { byteLevelAlphabet } from "./tokenizer-json.js";

// The decoders of a tokenizer.json as steps that text flows through, so that every part of the text
// appears as soon as it is final. The `tokenizers` package applies a decoder to a list of strings;
// these steps apply it to the same strings one after the other.
//
// Text is held as bytes, one character 0..255 each ("binary"), because a byte-fallback token may be
// a third of a character.

/**
 * Part of a piece of text. A piece corresponds to one string of the package's list: a token, or
 * several joined tokens.
 */
export interface Part {
  readonly bytes: string;
  /** Whether the piece begins with this part. */
  readonly starts: boolean;
  /** Whether the piece ends with this part. */
  readonly ends: boolean;
  /** Whether the part is an added token that contains characters outside the ByteLevel alphabet. */
  readonly literal?: boolean;
}

export type Sink = (part: Part) => void;

/** One decoder. It passes its output on to the next step. */
export interface DecoderStep {
  push(part: Part): void;
  /** Ends the input. */
  end(): void;
}

export type MakeStep = (emit: Sink) => DecoderStep;

/** Encodes text as UTF-8, with one character per byte. */
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

/** The package parses the hexadecimal digits as Rust parses a number, so `+3` is valid. */
const byteName = /^<0x([0-9a-f]{2}|\+[0-9a-f])>$/i;

/** `ByteFallback`: tokens such as `<0x0A>` become bytes; consecutive ones form one piece. */
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

/**
 * `ByteLevel`: each character stands for a byte, but a token with a character outside the alphabet
 * is plain text. All pieces become one.
 */
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

/** Length of the longest suffix of `text` with which a match of `pattern` may begin. */
function unfinishedMatch(text: string, pattern: string): number {
  for (let length = Math.min(text.length, pattern.length - 1); length > 0; length--) {
    if (text.endsWith(pattern.slice(0, length))) return length;
  }
  return 0;
}

/**
 * `Replace` with a text pattern (not a regular expression), within a piece. The first piece of all
 * may get another replacement.
 */
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

/**
 * `Metaspace`: the space marker becomes a space. At the start of the first piece, where the encoder
 * had put it, it is dropped.
 */
export function metaspace(replacement: string, prepended: boolean): MakeStep {
  return replace(replacement, " ", prepended ? "" : " ");
}

/**
 * `Strip`: removes up to `start` characters `content` from the beginning of each piece and up to
 * `stop` from its end.
 */
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
        // Trailing `content` is held back, because the piece may end here.
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
