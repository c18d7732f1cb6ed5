import { isUtf8 } from "node:buffer";
import { DataError } from "../../core/errors.js";
import { optionValue } from "../../core/option-names.js";

/** Treatment of bytes that are not valid UTF-8: refuse the file, or replace them with U+FFFD. */
export type InvalidUtf8 = "error" | "replace";

/** Offset of the first invalid UTF-8 sequence, or -1 if all bytes are valid. */
export function invalidUtf8Offset(bytes: Uint8Array): number {
  if (isUtf8(bytes)) return -1;
  let at = 0;
  while (at < bytes.length) {
    const length = sequenceLength(bytes, at);
    if (length === 0) return at;
    at += length;
  }
  return bytes.length;
}

/** Length of the valid sequence at `at`, or 0 if there is none (Unicode 15, table 3-7). */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at] as number;
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  const second = bytes[at + 1] ?? 0;
  const low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  if (second < low || second > high) return 0;
  for (let i = 2; i < length; i++) {
    const next = bytes[at + i] ?? 0;
    if (next < 0x80 || next > 0xbf) return 0;
  }
  return length;
}

const decoders = {
  drop: new TextDecoder("utf-8"),
  keep: new TextDecoder("utf-8", { ignoreBOM: true }),
};

/**
 * Decodes bytes as UTF-8 text.
 * @param mark "drop" removes a byte order mark at the start, as files and lines need it; "keep"
 *   keeps it, as values do
 * @throws DataError naming the source and the byte offset, unless `invalid` is "replace"
 */
export function decodeUtf8(
  bytes: Uint8Array,
  source: string,
  invalid: InvalidUtf8,
  mark: keyof typeof decoders = "drop",
): string {
  if (invalid === "error") {
    const offset = invalidUtf8Offset(bytes);
    if (offset >= 0) {
      const byte = (bytes[offset] as number).toString(16).padStart(2, "0");
      throw new DataError(
        `[prepare] ${source}: invalid UTF-8 at byte ${offset} (0x${byte}); convert the file, leave it out, ` +
          `or pass ${optionValue("invalidUtf8", "replace")} to put U+FFFD in its place`,
      );
    }
  }
  return decoders[mark].decode(bytes);
}
