/** Supervised fine-tuning on 300 made-up chats: the form of the answers appears for new questions. */
import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { loadConfig } from "../../lib/config/index.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Engine } from "../../lib/generate/engine.js";
import { Llama } from "../../lib/model/llama.js";
import { presets } from "../../lib/model/presets.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { Trainer } from "../../lib/train/trainer.js";
import { root } from "../cli/build.js";

const template =
  "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
const words = "peace roads union people court harvest press nation law river".split(" ");
const places = ["first", "second", "third"] as const;

let folder: string;
let base: string;
let data: string;
let chats: { messages: { role: string; content: string }[] }[];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-fine-tuned-"));
  [base, data] = [join(folder, "base"), join(folder, "data")];
  const file = join(folder, "chats.jsonl");
  execFileSync(process.execPath, [join(root, "scripts/continue/make-chats.mjs"), file, "300"]);
  chats = (await readFile(file, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const shape = { ...presets["smollm2-135m"], vocabSize: 4096, layers: 3, contextLength: 256 };
  const model = await Llama.create(
    { ...shape, hiddenSize: 96, intermediateSize: 256, heads: 3, kvHeads: 3, headSize: 32 },
    { seed: 7 },
  );
  await mkdir(base);
  await saveModel(join(base, "model"), model, {
    tokenizer: await Tokenizer.load(join(root, "assets/quickstart")),
  });
  model.dispose();
  base = join(base, "model");
  await writeFile(join(base, "chat_template.jinja"), template);
  await prepare({ inputs: [{ path: file, kind: "chat" }], out: data, tokenizer: base });
});
afterAll(() => rm(folder, { recursive: true }));

interface Question {
  place: string;
  text: string;
}

/** Share of questions whose answers have the form of the chats, name the place, and end. */
async function shareOfForm(model: string, questions: readonly Question[]): Promise<number> {
  const engine = await Engine.open(model);
  let formed = 0;
  for (const { place, text } of questions) {
    const prompt = await engine.encodeChat([{ role: "user", content: text }]);
    const options = { maxTokens: 24, temperature: 0 };
    const { text: answer, finishReason } = await engine.complete(prompt, options);
    const [, named, word] = /^The (\w+) word is (\w+)\.$/.exec(answer) ?? [];
    if (named === place && words.includes(word as string) && finishReason === "stop") formed++;
  }
  engine.dispose();
  return formed / questions.length;
}

test("answers to held-out questions have the form that the chats taught", async () => {
  const config = loadConfig("configs/sft.yaml", [
    "device=cpu",
    "precision=fp32",
    "steps=150",
    `out=${join(folder, "run")}`,
    `init.from=${base}`,
    `data.train={"${data}": 1}`,
    "data.sequenceLength=256",
    "batch.microBatch=4",
    "batch.accumulation=1",
    "optimizer.peakLr=3e-3",
    "optimizer.minLr=3e-4",
    "optimizer.warmupSteps=20",
    "checkpoint.every=0",
    "evaluate.every=50",
    "sample.every=0",
  ]);
  const trainer = await Trainer.create(config, { onNotice: () => {} });
  const losses: number[] = [];
  for await (const { loss } of trainer.run()) losses.push(loss);
  const { validation, checkpoint, samples } = trainer.result;
  trainer.dispose();
  expect(losses[0]).toBeGreaterThan(7);
  expect(validation?.loss).toBeLessThan(1.5);
  expect(samples).toHaveLength(2);

  const asked = new Set(chats.flatMap(({ messages }) => messages.map(({ content }) => content)));
  const questions = Array.from({ length: 40 }, (_, n) => {
    const list = [0, 1, 2].map((at) => words[(n * 3 + at * (n % 4) + at * at) % words.length]);
    const place = places[n % 3] as string;
    return { place, text: `Which word is ${place}: ${list.join(", ")}?` };
  }).filter(({ text }) => !asked.has(text));
  expect(questions.length).toBeGreaterThan(20);
  expect(await shareOfForm(base, questions)).toBe(0);
  expect(await shareOfForm(checkpoint as string, questions)).toBeGreaterThan(0.9);
}, 200_000);
