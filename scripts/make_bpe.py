"""Writes test/data/fixtures/bpe.json: texts, and the tokens and merges that Python's `tokenizers` learns from them.

    python3 scripts/make_bpe.py && npm run format          (pip install tokenizers)

The texts are written by a generator of their own, so that the file stays as it is on any machine.
"""
import json, pathlib, random

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

root = pathlib.Path(__file__).resolve().parent.parent
sentences = [
    "The people of the United States, in order to form a more perfect union, don't wait; THEY'LL act.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.", "我能吞下玻璃而不伤身体。", "私はガラスを食べられます。",
    "나는 유리를 먹을 수 있어요.", "أنا قادر على أكل الزجاج و هذا لا يؤلمني.", "मैं काँच खा सकता हूँ।", "ฉันกินกระจกได้",
    "for (let i = 0; i < 1024; i++) {\n\tsum += values[i] * 3.14159;\n}\n\n", "def add(a, b):\n    return a + b  # 12345\n",
    "😀👩‍👩‍👧 naïve café — “quotes” … ½ ſo 'ſ", "aaaa aaaaaaa abababab ababa", "\r\n  \t \u0085\u00a0\u2003\ufeff x",
]
rules = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
ascii = ["\t", "\n"] + [chr(code) for code in range(0x20, 0x7F)]
byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]


def documents():
    random.seed(7)
    syllables = ["a", "ab", "ba", "ka", "mi", "to", "ра", "ти", "は", "玻"]
    words = ["".join(random.choice(syllables) for _ in range(random.randint(1, 6))) for _ in range(300)]
    made = []
    for _ in range(60):
        parts = [random.choice(sentences)]
        parts += [words[int(random.paretovariate(0.7)) % len(words)] for _ in range(random.randint(5, 80))]
        made.append(random.choice([" ", "\n", "  "]).join(parts))
    return made


def train(texts, type, rule, vocabSize, minFrequency=2, maxTokenLength=None, characterCoverage=None):
    split = pre_tokenizers.Split(Regex(rules[rule]), "isolated")
    special = ["<s>", "</s>"]
    alphabet = []
    if type == "byte-level":
        splitter = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        special += byte_tokens
        alphabet = ascii
        kept = set(characters(texts, characterCoverage or 0.9995)) | set(ascii)
        rare = sorted(set("".join(texts)) - kept)
        dropped = [pre_tokenizers.Split(Regex("[" + "".join(f"\\x{{{ord(one):x}}}" for one in rare) + "]"), "removed")] if rare else []
        splitter = pre_tokenizers.Sequence([split, *dropped])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    # Hugging Face's trainer makes tokens that are shorter than max_token_length.
    longest = {} if maxTokenLength is None else {"max_token_length": maxTokenLength + 1}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabSize, min_frequency=minFrequency, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False, **longest))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {"tokens": tokens, "merges": model["merges"]}


def characters(texts, coverage):
    """The most frequent characters that make up a share of the text, as SentencePiece's character coverage does."""
    counts = {}
    for character in "".join(texts):
        counts[character] = counts.get(character, 0) + 1
    total, covered, kept = sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if covered >= coverage * total:
            break
        kept.append(character)
        covered += count
    return kept


cases = [
    {"type": "byte-level", "rule": "llama3", "vocabSize": 700},
    {"type": "byte-level", "rule": "qwen2", "vocabSize": 2000, "minFrequency": 5},
    {"type": "byte-level", "rule": "gpt2", "vocabSize": 600, "maxTokenLength": 4},
    {"type": "byte-fallback", "rule": "llama3", "vocabSize": 900, "characterCoverage": 1},
    {"type": "byte-fallback", "rule": "gpt2", "vocabSize": 800, "characterCoverage": 0.97},
    {"type": "byte-fallback", "rule": "qwen2", "vocabSize": 5000, "minFrequency": 1, "maxTokenLength": 6},
]
texts = documents()
golden = {"tokenizers": tokenizers.__version__, "texts": texts,
          "cases": [{"options": case, **train(texts, **case)} for case in cases]}
(root / "test/data/fixtures/bpe.json").write_text(json.dumps(golden, ensure_ascii=True, indent=1) + "\n")
for case in golden["cases"]:
    print(case["options"], len(case["tokens"]), "tokens,", len(case["merges"]), "merges")
