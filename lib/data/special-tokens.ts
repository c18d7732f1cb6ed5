import { TokenizerError } from "../core/errors.js";
import type { TokenizerFiles } from "./tokenizer-files.js";
import { type CheckedTokenizer, mergeParts, mergeResult } from "./tokenizer-json.js";

/** Tokens that are not text. The characters of a document never become one, and none is shown. */
export interface SpecialTokens {
  readonly eosId: number;
  readonly bosId: number | null;
  readonly ids: ReadonlySet<number>;
}

/** Usual names of the token that ends a document, for tokenizers that do not name theirs. */
const usualEosTokens = ["</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<eos>"];
const usualBosTokens = ["<s>", "<|begin_of_text|>", "<bos>"];

/** Fields in the files next to a tokenizer.json that name one special token each. */
const fields = ["bos", "eos", "unk", "pad", "sep", "cls", "mask"].map((name) => `${name}_token`);
/** Fields in these files that name several special tokens, as a list or an object. */
const listFields = ["additional_special_tokens", "extra_special_tokens"];

/**
 * Finds the special tokens: those with the flag `special`, those that a file next to the
 * tokenizer.json calls special, and the two that begin and end a document.
 * @throws TokenizerError if no token ends a document
 */
export function findSpecialTokens(checked: CheckedTokenizer, files: TokenizerFiles): SpecialTokens {
  const { json, tokens, byteIds, addedIds } = checked;
  const { file, companions } = files;
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  // In Qwen's vocabulary `<s>` is a word that merges make, as it stands in web pages.
  let merged: Set<string> | null = null;
  const isText = (token: string): boolean => {
    if (addedIds.has(idOf.get(token) as number)) return false;
    merged ??= new Set(
      json.model.merges.map((merge) =>
        mergeResult(json.model, mergeParts(merge) as [string, string]),
      ),
    );
    return merged.has(token);
  };
  const named = (field: string, usual: readonly string[]): number | null => {
    for (const { name: companion, contents } of companions) {
      const name = contentOf(contents[field]);
      if (name === undefined || name === null) continue;
      const id = typeof name === "string" ? idOf.get(name) : undefined;
      if (id !== undefined && !byteIds.has(id)) return id;
      const problem =
        id === undefined ? `is no token of ${file}` : "stands for a byte, which all text may have";
      throw new TokenizerError(
        `[tokenizer] ${companion}: ${field}: ${JSON.stringify(name)} ${problem}`,
      );
    }
    const name = usual.find((token) => idOf.has(token) && !isText(token));
    return name === undefined ? null : (idOf.get(name) as number);
  };
  const eosId = named("eos_token", usualEosTokens);
  if (eosId === null) {
    throw new TokenizerError(
      `[tokenizer] ${file}: no end-of-text token: none of ${usualEosTokens.join(" ")} is in it; ` +
        `name it as "eos_token" in tokenizer_config.json beside it`,
    );
  }
  // `"bos_token": null` says that there is none, as in Qwen's files.
  const hasNoBos = companions.some(({ contents }) => contents.bos_token === null);
  const bosId = named("bos_token", hasNoBos ? [] : usualBosTokens);
  const ids = new Set(json.added_tokens.filter(({ special }) => special === true).map((t) => t.id));
  for (const name of companions.flatMap(({ contents }) => namesIn(contents))) {
    const id = typeof name === "string" ? idOf.get(name) : undefined;
    if (id !== undefined) ids.add(id);
  }
  ids.add(eosId);
  if (bosId !== null) ids.add(bosId);
  for (const id of byteIds) ids.delete(id);
  return { eosId, bosId, ids };
}

/** A token is given as its text, or as an object that contains the text. */
function contentOf(entry: unknown): unknown {
  return typeof entry === "object" && entry !== null
    ? (entry as { content?: unknown }).content
    : entry;
}

/** Special tokens named in such a file. */
function namesIn(contents: Record<string, unknown>): unknown[] {
  const entries = (value: unknown): unknown[] =>
    typeof value === "object" && value !== null ? Object.values(value) : [];
  const flagged = entries(contents.added_tokens_decoder).filter(
    (entry) => (entry as { special?: unknown } | null)?.special === true,
  );
  return [
    ...fields.map((field) => contents[field]),
    ...listFields.flatMap((field) => entries(contents[field])),
    ...flagged,
  ].map(contentOf);
}
