import { TokenizerError } from "../core/errors.js";
import {
  byteFallback,
  byteLevel,
  type DecoderStep,
  fuse,
  type MakeStep,
  metaspace,
  replace,
  strip,
  toBinary,
} from "./decoder-steps.js";
import { type CheckedTokenizer, components } from "./tokenizer-json.js";

const ascii = /^[^\x80-\xff]*$/;

/** How a tokenizer's ids become text: the text of each token, and the steps of its `decoder`. */
export interface Decoding {
  readonly tokens: readonly string[];
  /** Bytes of the tokens that have been decoded before, one character 0..255 each; else "". */
  readonly binary: string[];
  readonly steps: readonly MakeStep[];
  /** Added tokens that are not in the vocabulary. Only their own characters stand for them. */
  readonly literalIds: ReadonlySet<number>;
}

/**
 * Reads the `decoder` of a tokenizer.json. Its steps run here rather than in the package, for three
 * reasons: text can be shown as soon as it is final, a character that spans several tokens is held
 * back until it is whole, and one broken byte does not turn the valid characters next to it into
 * U+FFFD.
 * @throws TokenizerError for a decoder that the Llama family does not use
 */
export function readDecoder(checked: CheckedTokenizer, file: string): Decoding {
  const { json, tokens, addedIds } = checked;
  if (json.decoder === null) {
    throw new TokenizerError(
      `[tokenizer] ${file}: decoder: missing, so that ids cannot be turned into text`,
    );
  }
  const steps = components(json.decoder).map((step) => makeStep(step, file));
  const { vocab } = json.model;
  const literal = [...addedIds].filter((id) => !Object.hasOwn(vocab, tokens[id] as string));
  return { tokens, binary: tokens.map(() => ""), steps, literalIds: new Set(literal) };
}

function makeStep(step: Record<string, unknown>, file: string): MakeStep {
  const fail = (problem: string): never => {
    throw new TokenizerError(`[tokenizer] ${file}: decoder: ${problem}`);
  };
  const text = (value: unknown): value is string => typeof value === "string" && value !== "";
  const count = (value: unknown): value is number =>
    Number.isSafeInteger(value) && Number(value) >= 0;
  switch (step.type) {
    case "ByteFallback":
      return byteFallback;
    case "ByteLevel":
      return byteLevel;
    case "Fuse":
      return fuse;
    case "Replace": {
      const pattern = (step.pattern as { String?: unknown } | undefined)?.String;
      if (!text(pattern) || typeof step.content !== "string") {
        return fail("Replace: expected a pattern of type String and a content");
      }
      return replace(toBinary(pattern), toBinary(step.content));
    }
    case "Metaspace": {
      const { replacement = "\u2581" } = step;
      if (!text(replacement)) return fail("Metaspace: expected a character as replacement");
      const scheme = step.prepend_scheme ?? (step.add_prefix_space === false ? "never" : "always");
      return metaspace(toBinary(replacement), scheme !== "never");
    }
    case "Strip": {
      const { content, start, stop } = step;
      if (!text(content) || !count(start) || !count(stop)) {
        return fail("Strip: expected a character as content, and counts as start and stop");
      }
      return strip(toBinary(content), start, stop);
    }
    default:
      return fail(
        `expected ByteFallback, ByteLevel, Fuse, Metaspace, Replace or Strip, got ${String(step.type)}`,
      );
  }
}

/**
 * The bytes that a token adds within a text. They may be part of a character. A special token has
 * the bytes of its name.
 */
export function tokenBytes({ tokens, steps, literalIds }: Decoding, id: number): Uint8Array {
  let bytes = "";
  let next: DecoderStep["push"] = (part) => {
    bytes += part.bytes;
  };
  const made: DecoderStep[] = [];
  for (const make of steps.toReversed()) {
    const step = make(next);
    made.unshift(step);
    next = (part) => step.push(part);
  }
  const whole = { starts: true, ends: true };
  // A first piece may lose the space in front of it, so another one comes before the token.
  next({ ...whole, bytes: "x", literal: true });
  next({ ...whole, bytes: toBinary(tokens[id] as string), literal: literalIds.has(id) });
  for (const step of made) step.end();
  return Buffer.from(bytes.slice(1), "latin1");
}

/**
 * Decodes tokens as they arrive. `push` returns the text that has become final, which is "" while a
 * character is unfinished; `end` returns the rest. Joined, these are the text of all ids decoded at
 * once. Bytes that are not valid UTF-8 become U+FFFD.
 */
export class TextStream {
  readonly #decoding: Decoding;
  readonly #skip: ReadonlySet<number>;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Whether the bytes so far may end within a character, whose beginning `#utf8` holds. */
  #within = false;
  /** The first step of the chain. Each step feeds the next, and the last one feeds `#ready`. */
  readonly #steps: DecoderStep[] = [];
  readonly #first: DecoderStep["push"];
  #ready = "";

  constructor(decoding: Decoding, skip: ReadonlySet<number>) {
    this.#decoding = decoding;
    this.#skip = skip;
    let next: DecoderStep["push"] = ({ bytes }) => {
      this.#ready += bytes;
    };
    for (const make of decoding.steps.toReversed()) {
      const step = make(next);
      this.#steps.unshift(step);
      next = (part) => step.push(part);
    }
    this.#first = next;
  }

  /** @throws TokenizerError for an id outside the vocabulary */
  push(id: number): string {
    this.#add(id);
    return this.#take(true);
  }

  /** @throws TokenizerError for an id outside the vocabulary */
  pushAll(ids: Iterable<number>): string {
    for (const id of ids) this.#add(id);
    return this.#take(true);
  }

  #add(id: number): void {
    const { tokens, binary, literalIds } = this.#decoding;
    const token = tokens[id];
    if (token === undefined) {
      throw new TokenizerError(
        `[tokenizer] expected an id in 0..${tokens.length - 1}, got ${String(id)}`,
      );
    }
    if (this.#skip.has(id)) return;
    binary[id] ||= toBinary(token);
    this.#first({ bytes: binary[id], starts: true, ends: true, literal: literalIds.has(id) });
  }

  /** The text that is left when no more tokens come. */
  end(): string {
    for (const step of this.#steps) step.end();
    return this.#take(false);
  }

  #take(stream: boolean): string {
    const ready = this.#ready;
    if (ready === "" && stream) return "";
    this.#ready = "";
    // Most tokens are ASCII, and then the bytes are the text.
    if (!this.#within && ascii.test(ready)) return ready;
    this.#within = ready.charCodeAt(ready.length - 1) >= 0x80;
    return this.#utf8.decode(Buffer.from(ready, "latin1"), { stream });
  }
}
