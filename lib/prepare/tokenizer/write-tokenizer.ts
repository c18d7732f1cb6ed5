import { join } from "node:path";
import { makeFolder } from "../../files/make-folder.js";
import { replaceFile } from "../../files/replace-file.js";
import { type SplitRuleName, splitRules } from "./split-rules.js";

/** A trained tokenizer. */
export interface TrainedVocabulary {
  type: "byte-level" | "byte-fallback";
  rule: SplitRuleName;
  bos: string | null;
  eos: string;
  /** The special tokens, which have the lowest ids. */
  special: readonly string[];
  /** All tokens by id. */
  tokens: readonly string[];
  merges: readonly (readonly [left: number, right: number])[];
}

/** Writes tokenizer.json and tokenizer_config.json, which are replaced if they exist. */
export async function writeTokenizer(folder: string, trained: TrainedVocabulary): Promise<void> {
  await makeFolder(folder);
  // tokenizer.json goes last: a folder without it holds no tokenizer.
  const config = `${JSON.stringify(configOf(trained), null, 2)}\n`;
  await replaceFile(join(folder, "tokenizer_config.json"), config);
  await replaceFile(join(folder, "tokenizer.json"), tokenizerJson(trained));
}

function configOf({ bos, eos, special }: TrainedVocabulary): object {
  const others = special.filter((token) => token !== bos && token !== eos);
  return {
    tokenizer_class: "PreTrainedTokenizerFast",
    ...(bos !== null && { bos_token: bos }),
    eos_token: eos,
    ...(others.length > 0 && { additional_special_tokens: others }),
    add_bos_token: false,
    add_eos_token: false,
    clean_up_tokenization_spaces: false,
  };
}

function preTokenizer({ type, rule }: TrainedVocabulary): object {
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true };
  // ByteLevel's own rule is GPT-2's.
  if (type === "byte-level" && rule === "gpt2") return { ...bytes, use_regex: true };
  const pattern = { Regex: splitRules[rule].written };
  const split = { type: "Split", pattern, behavior: "Isolated", invert: false };
  if (type === "byte-fallback") return split;
  return { type: "Sequence", pretokenizers: [split, { ...bytes, use_regex: false }] };
}

function decoder({ type }: TrainedVocabulary): object {
  return type === "byte-level"
    ? { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true }
    : { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Fuse" }] };
}

/**
 * The file, in the order of ids: an object of JavaScript would move tokens such as "7" to the front.
 */
function tokenizerJson(trained: TrainedVocabulary): string {
  const { type, special, tokens, merges } = trained;
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const frame = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({ id, content, ...flags, special: true })),
    normalizer: null,
    pre_tokenizer: preTokenizer(trained),
    post_processor: null,
    decoder: decoder(trained),
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: type === "byte-fallback",
      ignore_merges: false,
    },
  };
  const text = JSON.stringify(frame, null, 2);
  const vocabLines = tokens.map((token, id) => `      ${JSON.stringify(token)}: ${id}`);
  const mergeLines = merges.map((merge) => {
    const pair = merge.map((id) => JSON.stringify(tokens[id]));
    return `      [${pair.join(", ")}]`;
  });
  const end = "\n  }\n}";
  return (
    `${text.slice(0, -end.length)},\n` +
    `    "vocab": {\n${vocabLines.join(",\n")}\n    },\n` +
    `    "merges": [\n${mergeLines.join(",\n")}\n    ]${end}\n`
  );
}
