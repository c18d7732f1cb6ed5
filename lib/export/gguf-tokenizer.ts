import { TokenizerError } from "../core/errors.js";
import type { Tokenizer } from "../data/tokenizer.js";
import {
  byteTokenName,
  components,
  type JsonObject,
  mergeParts,
  mergeResult,
  type TokenizerJson,
} from "../data/tokenizer-json.js";
import type { GgufValue } from "./gguf-file.js";

/** Kinds of tokens in a GGUF file. */
const kinds = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** What GGUF holds of a tokenizer. */
export interface GgufTokenizer {
  metadata: Map<string, GgufValue>;
  /** What llama.cpp does otherwise. */
  notes: string[];
}

const letters = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const rest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** llama.cpp's names of rules that split texts before the merges, by regular expression. */
const splits: Record<string, string> = {
  [`${letters}\\p{N}{1,3}${rest}`]: "llama-bpe",
  [`${letters}\\p{N}${rest}`]: "qwen2",
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+":
    "gpt-4o",
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+":
    "tekken",
};

/**
 * A tokenizer in llama.cpp's form: its merges by ranks for byte-level tokenizers (`gpt2`), scores of
 * tokens for those with spaces as `▁` (`llama`).
 * @param rows rows of the model's embedding; rows without a token get a placeholder
 * @param ends further tokens that end an answer
 * @throws TokenizerError for a tokenizer that llama.cpp has no form for
 */
export function ggufTokenizer(
  tokenizer: Tokenizer,
  rows: number,
  ends: readonly number[],
): GgufTokenizer {
  const bytes = tokenizer.contents()["tokenizer.json"] as Uint8Array;
  const json = JSON.parse(Buffer.from(bytes).toString("utf8")) as TokenizerJson;
  json.normalizer ??= null;
  json.pre_tokenizer ??= null;
  const metadata = new Map<string, GgufValue>();
  const set = (name: string, value: GgufValue) => metadata.set(`tokenizer.ggml.${name}`, value);
  const notes: string[] = [];
  const byteLevel = [...components(json.normalizer), ...components(json.pre_tokenizer)].some(
    ({ type }) => type === "ByteLevel",
  );
  if (byteLevel) {
    set("model", { type: "string", value: "gpt2" });
    set("pre", { type: "string", value: splitName(json, tokenizer.file) });
  } else {
    set("model", { type: "string", value: "llama" });
    set("pre", { type: "string", value: "default" });
    set("add_space_prefix", { type: "bool", value: spacePrefix(json, tokenizer.file) });
  }
  const { tokens, types } = tokensOf(tokenizer, json, rows, byteLevel);
  set("tokens", { type: "strings", value: tokens });
  if (byteLevel) {
    const merges = json.model.merges.map((merge) => (mergeParts(merge) as string[]).join(" "));
    set("merges", { type: "strings", value: merges });
  } else {
    const { scores, open } = scoresOf(json, tokens);
    set("scores", { type: "f32s", value: scores });
    if (open > 0) {
      notes.push(
        `llama.cpp may split some words into other tokens: it merges by the tokens' ranks alone, and ${open} pairs that ` +
          "make a token are no merges here",
      );
    }
  }
  set("token_type", { type: "i32s", value: types });
  set("eos_token_id", { type: "u32", value: tokenizer.eosId });
  const turn = ends.find((id) => id !== tokenizer.eosId);
  if (turn !== undefined) set("eot_token_id", { type: "u32", value: turn });
  if (tokenizer.bosId !== null) set("bos_token_id", { type: "u32", value: tokenizer.bosId });
  const unknown = json.model.unk_token ?? null;
  const unknownId = unknown === null ? -1 : tokens.indexOf(unknown);
  if (unknownId >= 0) set("unknown_token_id", { type: "u32", value: unknownId });
  set("add_bos_token", { type: "bool", value: tokenizer.addsBos });
  set("add_eos_token", { type: "bool", value: false });
  return { metadata, notes };
}

/** The texts and kinds of all rows of the embedding. */
function tokensOf(
  tokenizer: Tokenizer,
  json: TokenizerJson,
  rows: number,
  byteLevel: boolean,
): { tokens: string[]; types: number[] } {
  const added = new Set(json.added_tokens.map(({ id }) => id));
  const known = new Set([...Object.values(json.model.vocab), ...added]);
  const byteNames = new Set(
    byteLevel ? [] : Array.from({ length: 256 }, (_, byte) => byteTokenName(byte)),
  );
  const tokens: string[] = [];
  const types: number[] = [];
  for (let id = 0; id < rows; id++) {
    const token = known.has(id) ? tokenizer.token(id) : `[PAD${id}]`;
    tokens.push(token);
    types.push(
      !known.has(id)
        ? kinds.unused
        : byteNames.has(token)
          ? kinds.byte
          : token === json.model.unk_token
            ? kinds.unknown
            : tokenizer.isSpecial(id)
              ? kinds.control
              : added.has(id)
                ? kinds.userDefined
                : kinds.normal,
    );
  }
  return { tokens, types };
}

/** llama.cpp's name of the rule by which a byte-level tokenizer splits texts. */
function splitName({ pre_tokenizer }: TokenizerJson, file: string): string {
  const parts = components(pre_tokenizer);
  const [first, second] = parts;
  if (first?.type === "Split" && second?.type === "ByteLevel" && parts.length === 2) {
    const pattern = (first.pattern as { Regex?: unknown } | undefined)?.Regex;
    const name = typeof pattern === "string" ? splits[pattern] : undefined;
    if (name !== undefined) return name;
  }
  if (first?.type === "ByteLevel" && first.use_regex !== false && parts.length === 1)
    return "gpt-2";
  const digits = first?.type === "Digits" && first.individual_digits === true;
  if (digits && second?.type === "ByteLevel" && parts.length === 2) return "smollm";
  const deepseek = ["Split", "Split", "Split", "ByteLevel"];
  if (JSON.stringify(parts.map(({ type }) => type)) === JSON.stringify(deepseek)) {
    const pattern = (first?.pattern as { Regex?: unknown } | undefined)?.Regex;
    if (pattern === "\\p{N}{1,3}") return "deepseek-v3";
  }
  throw unfit(file, `it splits texts by a rule of its own: ${JSON.stringify(pre_tokenizer)}`);
}

/** Whether a tokenizer with `▁` for spaces puts one in front of a text. */
function spacePrefix({ normalizer, pre_tokenizer }: TokenizerJson, file: string): boolean {
  const parts = components(normalizer);
  const splitters = components(pre_tokenizer);
  const replaces = (part: JsonObject) =>
    part.type === "Replace" &&
    part.content === "▁" &&
    (part.pattern as { String?: unknown } | undefined)?.String === " ";
  const metaspace = splitters.find(({ type }) => type === "Metaspace");
  const others = splitters.filter(({ type }) => type !== "Metaspace");
  // Gemma's split after spaces changes no merge: its tokens hold no space within.
  const harmless = others.every(
    ({ type, behavior }) => type === "Split" && behavior === "MergedWithPrevious",
  );
  if (!(parts.some(replaces) || metaspace) || !harmless) {
    throw unfit(
      file,
      "its tokens hold spaces as they are, with a rule of its own that splits texts",
    );
  }
  if (metaspace)
    return metaspace.prepend_scheme !== "never" && metaspace.add_prefix_space !== false;
  return parts.some(({ type, prepend }) => type === "Prepend" && prepend === "▁");
}

/**
 * Scores by which llama.cpp merges: the earlier a token's first merge, the higher. `open` counts the
 * pairs that make a token but are no merges.
 */
function scoresOf(
  { model }: TokenizerJson,
  tokens: readonly string[],
): { scores: number[]; open: number } {
  const ranks = new Map<string, number>();
  const pairs = new Set<string>();
  for (const [rank, merge] of model.merges.entries()) {
    const parts = mergeParts(merge) as [string, string];
    const made = mergeResult(model, parts);
    if (!ranks.has(made)) ranks.set(made, rank);
    pairs.add(parts.join("\0"));
  }
  let open = 0;
  for (const token of ranks.keys()) {
    for (let at = 1; at < token.length; at++) {
      const [left, right] = [token.slice(0, at), token.slice(at)];
      if (!Object.hasOwn(model.vocab, left) || !Object.hasOwn(model.vocab, right)) continue;
      if (!pairs.has(`${left}\0${right}`)) open++;
    }
  }
  const scores = tokens.map((token) => {
    const rank = ranks.get(token);
    return rank === undefined ? 0 : -(rank + 1);
  });
  return { scores, open };
}

function unfit(file: string, problem: string): TokenizerError {
  return new TokenizerError(
    `[export] ${file}: llama.cpp has no tokenizer of this kind: ${problem}. The model alone is written with ` +
      "tokenizer: false (--no-tokenizer)",
  );
}
