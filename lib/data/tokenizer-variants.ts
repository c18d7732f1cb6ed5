import { randomUUID } from "node:crypto";
import {
  type AddedToken,
  type CheckedTokenizer,
  isObject,
  type JsonObject,
  mergeParts,
  mergeResult,
  type TokenizerJson,
} from "./tokenizer-json.js";

/** A variant of a tokenizer, by its treatment of the input. */
export interface Variant {
  /** Whether special tokens such as `</s>` in the text become their ids, or are ordinary text. */
  specialTokens: "text" | "recognize";
  /** Whether the text continues earlier text. If so, nothing is put in front of it. */
  continues: boolean;
}

/**
 * Writes the tokenizer.json of a variant. Truncation, padding and templates never apply.
 *
 * The `tokenizers` package has no switch that stops it from recognising special tokens, and
 * removing them from the file would shift the ids of the added tokens after them. They therefore
 * keep their ids and get a name that no text contains (128 random bits, new in every process).
 * Merges that would spell the old name are removed.
 */
export function variantJson(
  { json, tokens }: CheckedTokenizer,
  specialIds: ReadonlySet<number>,
  variant: Variant,
): string {
  // Only the changed parts are copied, because a large vocabulary takes some hundred megabytes.
  const copy: TokenizerJson = {
    ...json,
    model: { ...json.model },
    added_tokens: json.added_tokens.map((added) => ({ ...added })),
  };
  copy.truncation = null;
  copy.padding = null;
  copy.post_processor = null;
  if (variant.continues) {
    copy.normalizer = withoutPrefix(copy.normalizer);
    copy.pre_tokenizer = withoutPrefix(copy.pre_tokenizer);
  }
  if (variant.specialTokens === "text") {
    const secret = randomUUID();
    const renamed = new Map<string, string>();
    for (const id of specialIds) renamed.set(tokens[id] as string, `\u{10fffd}${secret}:${id}`);
    for (const added of copy.added_tokens) {
      added.content = renamed.get(added.content) ?? added.content;
    }
    const { model } = copy;
    model.vocab = Object.fromEntries(
      Object.entries(model.vocab).map(([token, id]) => [renamed.get(token) ?? token, id]),
    );
    model.merges = model.merges.filter((merge) => {
      const parts = mergeParts(merge) as [string, string];
      return ![...parts, mergeResult(model, parts)].some((token) => renamed.has(token));
    });
    if (typeof model.unk_token === "string") {
      model.unk_token = renamed.get(model.unk_token) ?? model.unk_token;
    }
  } else {
    // Tokens that only a companion file calls special are added here: the package recognises added
    // tokens alone.
    const added = new Set(copy.added_tokens.map(({ id }) => id));
    for (const id of specialIds) {
      if (!added.has(id)) copy.added_tokens.push(addedToken(id, tokens[id] as string));
    }
  }
  return JSON.stringify(copy);
}

function addedToken(id: number, content: string): AddedToken {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  return { id, content, ...flags, special: true };
}

/** A normalizer or pre-tokenizer without the step that puts a space in front of the text. */
function withoutPrefix(component: JsonObject | null): JsonObject | null {
  if (component === null || component.type === "Prepend") return null;
  for (const list of ["normalizers", "pretokenizers"]) {
    if (!Array.isArray(component[list])) continue;
    const inner = component[list].filter(isObject).map(withoutPrefix);
    return { ...component, [list]: inner.filter((part) => part !== null) };
  }
  if (component.type === "Metaspace") {
    const { add_prefix_space: _, ...rest } = component;
    return { ...rest, prepend_scheme: "never" };
  }
  return component.type === "ByteLevel" ? { ...component, add_prefix_space: false } : component;
}
