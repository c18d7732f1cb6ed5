import { TokenizerError } from "../errors.js";
import {
  byteLevelAlphabet,
  byteTokenName,
  type CheckedTokenizer,
  components,
} from "./tokenizer-json.js";

/** How ids become text: the bytes of each, and how many leading spaces the tokenizer had put in front. */
export interface TokenBytes {
  readonly bytes: readonly Uint8Array[];
  readonly leadingSpaces: number;
}

const utf8 = new TextEncoder();

/**
 * The bytes of every token, by the `decoder` of the tokenizer.json. Decoding by bytes rather than through the package
 * makes each token's contribution known by itself: a character that spans several tokens can be held back until it
 * is whole, and one broken byte does not turn the valid characters beside it into U+FFFD.
 * @throws TokenizerError for a decoder that the Llama family does not use
 */
export function tokenBytes(checked: CheckedTokenizer, file: string): TokenBytes {
  const { json, tokens, addedIds } = checked;
  const fail = (problem: string): never => {
    throw new TokenizerError(`[tokenizer] ${file}: decoder: ${problem}`);
  };
  if (json.decoder === null) fail("missing, so that ids cannot be turned into text");
  let byteFallback = false;
  let byteLevel = false;
  let leadingSpaces = 0;
  const replacements: [string, string][] = [];
  for (const step of components(json.decoder)) {
    if (step.type === "ByteFallback") byteFallback = true;
    else if (step.type === "ByteLevel") byteLevel = true;
    else if (step.type === "Replace") {
      const pattern = (step.pattern as { String?: unknown } | undefined)?.String;
      if (typeof pattern !== "string" || pattern === "" || typeof step.content !== "string") {
        fail("Replace: expected a pattern of type String and a content");
      }
      replacements.push([pattern as string, step.content as string]);
    } else if (step.type === "Metaspace") {
      replacements.push([String(step.replacement ?? "▁"), " "]);
      const scheme = step.prepend_scheme ?? (step.add_prefix_space === false ? "never" : "always");
      if (scheme !== "never") leadingSpaces = 1;
    } else if (step.type === "Strip") {
      if (step.content !== " " || step.stop !== 0) fail("Strip: expected spaces at the start only");
      leadingSpaces = Number(step.start);
    } else if (step.type !== "Fuse") {
      fail(`expected ByteFallback, ByteLevel, Fuse, Metaspace, Replace or Strip, got ${step.type}`);
    }
  }

  const byteOf = new Map<string, number>();
  for (let byte = 0; byte < 256; byte++) {
    if (byteLevel) byteOf.set(byteLevelAlphabet[byte] as string, byte);
    else if (byteFallback) byteOf.set(byteTokenName(byte), byte);
  }
  const bytes = tokens.map((token, id) => {
    if (addedIds.has(id)) return utf8.encode(token);
    if (byteLevel) {
      const characters = Array.from(token, (character) => byteOf.get(character));
      return characters.includes(undefined)
        ? utf8.encode(token)
        : Uint8Array.from(characters as number[]);
    }
    const byte = byteOf.get(token);
    if (byte !== undefined) return Uint8Array.of(byte);
    const text = replacements.reduce((part, [from, to]) => part.replaceAll(from, () => to), token);
    return utf8.encode(text);
  });
  return { bytes, leadingSpaces };
}

/**
 * Text as its tokens arrive. `push` returns what the tokens complete, which is "" while a character is unfinished;
 * `end` returns what is left. Bytes that are no UTF-8 become U+FFFD.
 */
export class TextStream {
  readonly #table: TokenBytes;
  readonly #skip: ReadonlySet<number>;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #spacesToDrop: number;

  constructor(table: TokenBytes, skip: ReadonlySet<number>) {
    this.#table = table;
    this.#skip = skip;
    this.#spacesToDrop = table.leadingSpaces;
  }

  push(id: number): string {
    return this.pushAll([id]);
  }

  /** @throws TokenizerError for an id outside the vocabulary */
  pushAll(ids: Iterable<number>): string {
    const chunks: Uint8Array[] = [];
    for (const id of ids) {
      const bytes = this.#table.bytes[id];
      if (bytes === undefined) {
        throw new TokenizerError(
          `[tokenizer] expected an id in 0..${this.#table.bytes.length - 1}, got ${String(id)}`,
        );
      }
      if (!this.#skip.has(id)) chunks.push(this.#withoutPrefix(bytes));
    }
    return this.#decoder.decode(Buffer.concat(chunks), { stream: true });
  }

  end(): string {
    return this.#decoder.decode();
  }

  /** Drops the spaces that the tokenizer puts in front of every text. */
  #withoutPrefix(bytes: Uint8Array): Uint8Array {
    let start = 0;
    while (this.#spacesToDrop > 0 && start < bytes.length) {
      const isSpace = bytes[start] === 0x20;
      this.#spacesToDrop = isSpace ? this.#spacesToDrop - 1 : 0;
      if (isSpace) start++;
    }
    return bytes.subarray(start);
  }
}
