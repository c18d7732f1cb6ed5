import { TokenizerError } from "../core/errors.js";

export type JsonObject = Record<string, unknown>;

/**
 * The parts of a Hugging Face tokenizer.json that this library reads. All others are passed on
 * unchanged.
 */
export interface TokenizerJson extends JsonObject {
  added_tokens: AddedToken[];
  normalizer: JsonObject | null;
  pre_tokenizer: JsonObject | null;
  decoder: JsonObject | null;
  model: BpeModel;
}

export interface AddedToken extends JsonObject {
  id: number;
  content: string;
  special: boolean;
}

export interface BpeModel extends JsonObject {
  vocab: Record<string, number>;
  merges: (string | [string, string])[];
  unk_token?: string | null;
  byte_fallback?: boolean;
  continuing_subword_prefix?: string | null;
}

/**
 * A parsed tokenizer.json with a table of its ids: `tokens[id]` is the text of every id, and "" for
 * an id without a token.
 */
export interface CheckedTokenizer {
  readonly json: TokenizerJson;
  readonly tokens: readonly string[];
  /** Ids below the largest that have no token, as between GPT-4o's words and its special tokens. */
  readonly gaps: ReadonlySet<number>;
  readonly addedIds: ReadonlySet<number>;
  /** Tokens that stand for single bytes. All text needs them, whatever flags they have. */
  readonly byteIds: ReadonlySet<number>;
}

/** Name of a byte's token in a byte-fallback vocabulary, such as `<0x0A>`. */
export function byteTokenName(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

/** The character for each byte in a ByteLevel vocabulary (GPT-2's table). */
export const byteLevelAlphabet: readonly string[] = (() => {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(printable(byte) ? byte : 256 + moved++),
  );
})();

/** Whether a JSON value is an object and not a list. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value < 2 ** 31;
}

/** A component in a list, or the components inside it if it is a Sequence. */
export function components(component: JsonObject | null): JsonObject[] {
  if (component === null) return [];
  const inner = component.normalizers ?? component.pretokenizers ?? component.decoders;
  return Array.isArray(inner) ? inner.filter(isObject).flatMap(components) : [component];
}

/**
 * Parses and checks a tokenizer.json: a byte-complete BPE with ids 0..n-1.
 * @throws TokenizerError naming the file and the field
 */
export function parseTokenizerJson(text: string, file: string): CheckedTokenizer {
  const fail = (field: string, problem: string): never => {
    throw new TokenizerError(`[tokenizer] ${file}: ${field}: ${problem}`);
  };
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new TokenizerError(`[tokenizer] ${file}: not JSON: ${(cause as Error).message}`, {
      cause,
    });
  }
  if (!isObject(json)) return fail("(file)", "expected a JSON object");
  const { model } = json;
  if (!isObject(model)) return fail("model", "expected an object");
  if (model.type !== undefined && model.type !== "BPE") {
    fail("model.type", `expected "BPE" (the Llama family's), got ${JSON.stringify(model.type)}`);
  }
  if (!isObject(model.vocab)) return fail("model.vocab", "expected an object of token: id");
  if (!Array.isArray(model.merges)) return fail("model.merges", "expected a list");
  for (const field of ["normalizer", "pre_tokenizer", "decoder"]) {
    json[field] ??= null;
    if (json[field] !== null && !isObject(json[field])) fail(field, "expected an object or null");
  }
  json.added_tokens ??= [];

  const checked = json as TokenizerJson;
  const addedIds = new Set<number>();
  const byId = new Map<number, string>();
  const take = (token: string, id: unknown, field: string): void => {
    if (!isId(id)) {
      fail(`${field}[${JSON.stringify(token)}]`, `expected an id in 0..2^31-1, got ${String(id)}`);
    }
    const known = byId.get(id as number);
    if (known !== undefined && known !== token) {
      fail(
        field,
        `duplicate id ${id as number}: ${JSON.stringify(known)} and ${JSON.stringify(token)}`,
      );
    }
    byId.set(id as number, token);
  };
  for (const [token, id] of Object.entries(model.vocab)) take(token, id, "model.vocab");
  if (!Array.isArray(json.added_tokens)) return fail("added_tokens", "expected a list");
  for (const [index, added] of json.added_tokens.entries()) {
    const field = `added_tokens[${index}]`;
    if (!isObject(added) || typeof added.content !== "string" || added.content === "") {
      return fail(field, "expected an object with a content");
    }
    const inVocab = Object.hasOwn(model.vocab, added.content)
      ? model.vocab[added.content]
      : undefined;
    if (inVocab !== undefined && inVocab !== added.id) {
      fail(
        field,
        `${JSON.stringify(added.content)} is ${inVocab} in model.vocab, ${added.id} here`,
      );
    }
    take(added.content, added.id, field);
    addedIds.add(added.id as number);
  }
  if (byId.size === 0) fail("model.vocab", "no tokens");
  const { tokens, gaps } = tableOf(byId, fail);
  checkMerges(checked.model, fail);
  const byteIds = findBytes(checked, fail);
  return { json: checked, tokens, gaps, addedIds, byteIds };
}

type Fail = (field: string, problem: string) => never;

/**
 * Ids without a token that a vocabulary may have. A model has a row for each, so that more of them
 * are a mistake.
 */
const mostGaps = 4096;

/** The texts of all ids up to the largest. */
function tableOf(
  byId: ReadonlyMap<number, string>,
  fail: Fail,
): { tokens: string[]; gaps: Set<number> } {
  const largest = [...byId.keys()].reduce((most, id) => Math.max(most, id), 0);
  const missing = largest + 1 - byId.size;
  if (missing > mostGaps) {
    fail("model.vocab", `${missing} ids below ${largest} have no token; at most ${mostGaps} may`);
  }
  const gaps = new Set<number>();
  const tokens = Array.from({ length: largest + 1 }, (_, id) => {
    const token = byId.get(id);
    if (token === undefined) gaps.add(id);
    return token ?? "";
  });
  return { tokens, gaps };
}

/** The two parts of a merge in either notation; null if it is malformed. */
export function mergeParts(merge: unknown): [string, string] | null {
  const parts = typeof merge === "string" ? merge.split(" ") : merge;
  if (!Array.isArray(parts) || parts.length !== 2) return null;
  return parts.every((part) => typeof part === "string" && part !== "")
    ? (parts as [string, string])
    : null;
}

/** Text of the token that a merge makes. */
export function mergeResult(model: BpeModel, [left, right]: [string, string]): string {
  const prefix = model.continuing_subword_prefix ?? "";
  return left + (right.startsWith(prefix) ? right.slice(prefix.length) : right);
}

function checkMerges(model: BpeModel, fail: Fail): void {
  // The tokenizers library removes this many bytes from each merge's second token without a check,
  // and a shorter token ends the process.
  const prefix = model.continuing_subword_prefix ?? "";
  if (typeof prefix !== "string") {
    fail("model.continuing_subword_prefix", `expected text or null, got ${JSON.stringify(prefix)}`);
  }
  for (const [index, merge] of model.merges.entries()) {
    const parts = mergeParts(merge);
    if (parts === null) {
      fail(`model.merges[${index}]`, `expected two tokens, got ${JSON.stringify(merge)}`);
    }
    if (!(parts as [string, string])[1].startsWith(prefix)) {
      fail(
        `model.merges[${index}]`,
        `its second token does not begin with model.continuing_subword_prefix ${JSON.stringify(prefix)}`,
      );
    }
    for (const token of [
      ...(parts as [string, string]),
      mergeResult(model, parts as [string, string]),
    ]) {
      if (!Object.hasOwn(model.vocab, token)) {
        fail(`model.merges[${index}]`, `${JSON.stringify(token)} is not in model.vocab`);
      }
    }
  }
}

/**
 * Finds the ids of the 256 bytes. Every byte must have a token, or some text could not be encoded
 * and would silently become <unk>. A control character's own token counts as well: Gemma has no
 * other one for the tab.
 */
function findBytes({ model, pre_tokenizer, normalizer }: TokenizerJson, fail: Fail): Set<number> {
  const byteLevel = [...components(normalizer), ...components(pre_tokenizer)].some(
    (component) => component.type === "ByteLevel",
  );
  if (!byteLevel && model.byte_fallback !== true) {
    fail(
      "model.byte_fallback",
      "expected true (or a ByteLevel pre_tokenizer): text must not be lost",
    );
  }
  const ids = new Set<number>();
  for (let byte = 0; byte < 256; byte++) {
    const name = byteLevel ? (byteLevelAlphabet[byte] as string) : byteTokenName(byte);
    const character = String.fromCharCode(byte);
    if (Object.hasOwn(model.vocab, name)) ids.add(model.vocab[name] as number);
    else if (byteLevel || byte >= 0x20 || !Object.hasOwn(model.vocab, character)) {
      fail("model.vocab", `no token for byte ${byte}: ${JSON.stringify(name)} is missing`);
    } else ids.add(model.vocab[character] as number);
  }
  return ids;
}
