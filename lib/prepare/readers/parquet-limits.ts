import type { Compressors } from "hyparquet";

/** Largest decompressed page. Writers aim at 1 MB, but a page holds at least one value. */
const maxPageBytes = 2 ** 28;
/**
 * Largest sum of the pages read at once: 32 MB, or a whole row group where its pages cannot be told
 * apart.
 */
const maxPartBytes = 2 ** 31;

/**
 * Limits the size of decompressed pages. A page declares its size, and memory is allocated for it
 * before the first byte is read: a file of a few kilobytes could otherwise ask for any amount.
 */
export class PageLimits {
  #bytes = 0;

  /** Starts a new part of a row group. */
  reset(): void {
    this.#bytes = 0;
  }

  /** Wraps decompressors so that they refuse a page that is too long. */
  around(compressors: Compressors): Compressors {
    return Object.fromEntries(
      Object.entries(compressors).map(([codec, decompress]) => [
        codec,
        (input: Uint8Array, length: number): Uint8Array => {
          this.#check(length);
          return decompress(input, length);
        },
      ]),
    );
  }

  #check(length: number): void {
    this.#bytes += length;
    if (!(length >= 0 && length <= maxPageBytes)) {
      throw new Error(`a page of ${length} bytes, more than the limit of ${maxPageBytes}`);
    }
    if (this.#bytes > maxPartBytes) {
      throw new Error(
        `pages of more than ${maxPartBytes} bytes in one row group that cannot be read in parts`,
      );
    }
  }
}
