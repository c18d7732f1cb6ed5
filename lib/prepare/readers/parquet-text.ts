import type { ReaderOptions } from "./input.js";
import { decodeUtf8, invalidUtf8Offset } from "./utf8.js";

/**
 * A value that is not valid UTF-8. Its rows are not known when it is decoded, because a dictionary
 * holds it once for all of them.
 */
class InvalidText {
  constructor(readonly bytes: Uint8Array) {}
}

/**
 * Decodes the text of a parquet file like that of other files, and finds the rows with invalid
 * UTF-8.
 */
export class ParquetText {
  /**
   * Parsers for hyparquet, whose own decoder replaces anything invalid with U+FFFD and drops a
   * leading U+FEFF.
   */
  readonly parsers = {
    stringFromBytes: (bytes?: Uint8Array): unknown => bytes && this.#text(bytes, "keep"),
    jsonFromBytes: (bytes?: Uint8Array): unknown => {
      const text = bytes && this.#text(bytes, "drop");
      return typeof text === "string" ? JSON.parse(text) : text;
    },
  };
  readonly #invalidUtf8: ReaderOptions["invalidUtf8"];
  #metInvalid = false;

  constructor({ invalidUtf8 }: ReaderOptions) {
    this.#invalidUtf8 = invalidUtf8;
  }

  /**
   * Checks the values of a row.
   * @param where name of the row for the error message
   * @throws DataError for a value that is not valid UTF-8
   */
  check(row: unknown, where: string): void {
    if (!this.#metInvalid) return;
    const invalid = firstInvalid(row);
    if (invalid !== null) decodeUtf8(invalid.bytes, where, "error");
  }

  #text(bytes: Uint8Array, mark: "keep" | "drop"): string | InvalidText {
    if (this.#invalidUtf8 === "replace" || invalidUtf8Offset(bytes) < 0) {
      return decodeUtf8(bytes, "", "replace", mark);
    }
    this.#metInvalid = true;
    return new InvalidText(bytes);
  }
}

function firstInvalid(value: unknown): InvalidText | null {
  if (value instanceof InvalidText) return value;
  if (typeof value !== "object" || value === null) return null;
  for (const inner of Object.values(value)) {
    const found = firstInvalid(inner);
    if (found !== null) return found;
  }
  return null;
}
