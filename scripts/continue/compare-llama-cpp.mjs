// Compares exported models with llama.cpp: ids of texts, and greedy continuations.
//
//   python3 scripts/continue/make_models.py MODELS TOKENIZERS
//   node scripts/continue/compare-llama-cpp.mjs MODELS PACKAGES [f32|f16|q8_0|q4_0|bf16]
//
// PACKAGES is a folder in which `npm install node-llama-cpp` has run; its binary for the CPU is used.
// Each folder of MODELS is exported as GGUF. In f32 llama.cpp has to choose the same tokens as
// LlamaForge; otherwise the number of equal tokens is only printed. The exit code is 1 if ids of a
// text differ, or tokens in f32.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { exportGguf, generateTokens, loadModel, Tokenizer } from "../../dist/index.js";

const [models, packages, type = "f32"] = process.argv.slice(2);
if (packages === undefined) throw new Error("usage: compare-llama-cpp.mjs MODELS PACKAGES [TYPE]");
const resolver = createRequire(pathToFileURL(join(resolve(packages), "package.json")));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(resolver.resolve("node-llama-cpp")));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });

const texts = [
  "The people of the United States",
  "  Spaces,\ttabs\n\n\nand   lines",
  "def add(a, b):\n    return a + b  # 12345 + 678",
  "Grüße aus Köln, naïve café — 日本語のテキスト и русский 😀👩‍👩‍👧",
  "don't WE'LL they're x=1;y=22;z=333 !!! ... ???",
];
const count = 48;
/** By default llama.cpp keeps keys and values as float16. */
const exact = { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" };

/** The first `count` likeliest tokens after a prompt, as llama.cpp chooses them. */
async function theirs(model, prompt) {
  const context = await model.createContext({
    contextSize: 256,
    batchSize: 256,
    threads: 2,
    ...exact,
  });
  const sequence = context.getSequence();
  const chosen = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    chosen.push(Number(token));
    if (chosen.length === count) break;
  }
  await context.dispose();
  return chosen;
}

async function ours(folder, prompt) {
  const model = await loadModel(folder);
  const chosen = [];
  for await (const token of generateTokens(model, prompt, { maxTokens: count, temperature: 0 })) {
    chosen.push(token);
  }
  model.dispose();
  return chosen;
}

let wrong = 0;
for (const name of readdirSync(models).sort()) {
  const folder = join(models, name);
  const scratch = mkdtempSync(join(tmpdir(), "llamaforge-gguf-"));
  try {
    const file = join(scratch, "model.gguf");
    await exportGguf(folder, file, { type, onNotice: (note) => console.log(`${name}: ${note}`) });
    const tokenizer = await Tokenizer.load(folder);
    const model = await llama.loadModel({ modelPath: file, useMmap: false });
    let equalTexts = 0;
    for (const text of texts) {
      const mine = [...(await tokenizer.encode(text))];
      const other = Array.from(model.tokenize(text, false), Number);
      if (JSON.stringify(mine) === JSON.stringify(other)) equalTexts++;
      else console.log(`${name}: ${JSON.stringify(text)}\n  ours   ${mine}\n  theirs ${other}`);
    }
    const prompt = [...(await tokenizer.encode(texts[2]))];
    const [mine, other] = [await ours(folder, prompt), await theirs(model, prompt)];
    const equal = mine.findIndex((id, index) => id !== other[index]);
    const same = equal < 0 ? count : equal;
    console.log(
      `${name.padEnd(12)} ${type}: ids of ${equalTexts} of ${texts.length} texts equal, first ${same} of ${count} greedy tokens equal`,
    );
    if (equalTexts < texts.length || (type === "f32" && same < count)) wrong++;
    await model.dispose();
  } finally {
    rmSync(scratch, { recursive: true });
  }
}
process.exit(wrong > 0 ? 1 : 0);
