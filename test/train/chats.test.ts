/** Training on chats: loss on the assistant's tokens, samples and checkpoints with the template. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openCheckpoint } from "../../lib/checkpoint/load.js";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import { makeBatch } from "../../lib/data/loader.js";
import { Mixture } from "../../lib/data/mixture.js";
import { endTokens } from "../../lib/generate/end-tokens.js";
import { batchTensors } from "../../lib/model/batch.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyModel } from "../support/tiny-run.js";

const tokenizer = new URL("../../assets/quickstart", import.meta.url).pathname;
const template =
  "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";

let folder: string;
let data: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-chats-"));
  data = join(folder, "data");
  const chats = Array.from({ length: 40 }, (_, n) => ({
    messages: [
      { role: "user", content: `Say ${n}.` },
      { role: "assistant", content: n % 2 ? "Yes." : `No, ${n} it is.` },
    ],
  }));
  await writeFile(join(folder, "c.jsonl"), chats.map((chat) => JSON.stringify(chat)).join("\n"));
  await writeFile(join(folder, "t.jinja"), template);
  await prepare({
    inputs: [{ path: join(folder, "c.jsonl"), kind: "chat" }],
    out: data,
    tokenizer,
    chatTemplate: join(folder, "t.jinja"),
    validationFraction: 0.2,
  });
});
afterAll(() => rm(folder, { recursive: true }));

const model = { ...tinyModel, contextLength: 64 };

test("a packed window has the loss of its chats, each in a row of its own", async () => {
  const sequenceLength = 64;
  const llama = await Llama.create(
    llamaConfig({ ...model, ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false }),
    { seed: 2 },
  );
  const mixture = await Mixture.open(data, { sequenceLength });
  const rows = await mixture.readRows(0, 2);
  const packed = makeBatch(rows, 2, sequenceLength, {}, (row) => mixture.marksAt(row));
  const together = await scope(() => llama.loss(batchTensors(packed, llama.device)).item());
  let sum = 0;
  let counted = 0;
  for (let row = 0; row < 2; row++) {
    const at = (t: number) => row * sequenceLength + t;
    for (let from = 0; from < sequenceLength; ) {
      let to = from + 1;
      while (to < sequenceLength && packed.firstKey?.[at(to)] === from) to++;
      const part = (ids: Int32Array) => ids.slice(at(from), at(to));
      const count = part(packed.targets).filter((id) => id !== -100).length;
      if (count > 0) {
        const of = (ids: Int32Array) => tensor(part(ids), { shape: [1, to - from], dtype: "i32" });
        const loss = await scope(() =>
          llama.loss({ inputs: of(packed.inputs), targets: of(packed.targets) }).item(),
        );
        sum += loss * count;
        counted += count;
      }
      from = to;
    }
  }
  expect(counted).toBeGreaterThan(10);
  expect(together).toBeCloseTo(sum / counted, 5);
  await mixture.close();
  llama.dispose();
});

test("samples answer through the template, and a checkpoint is a chat model's", async () => {
  const out = join(folder, "run");
  const config = tinyConfig(data, out, {
    model,
    precision: "fp32",
    steps: 6,
    sample: { every: 0, prompts: ["Say 7."], maxTokens: 5, temperature: 0 },
    checkpoint: { every: 3 },
  });
  const notices: string[] = [];
  const run = async (options: object = {}) => {
    const trainer = await Trainer.create(config, { ...options, onNotice: (n) => notices.push(n) });
    const losses: number[] = [];
    for await (const { loss } of trainer.run()) losses.push(loss);
    const { result } = trainer;
    trainer.dispose();
    return { losses, result };
  };
  const whole = await run();
  expect(whole.result.samples[0]?.prompt).toBe("Say 7.\n");
  expect(whole.result.validation?.bitsPerByte).toBeNull();
  const checkpoint = whole.result.checkpoint as string;
  await openCheckpoint(checkpoint);
  expect(await readFile(join(checkpoint, "chat_template.jinja"), "utf8")).toBe(template);
  expect(await endTokens(checkpoint)).toEqual([2]);
  const again = await run({ resume: join(out, "step-0000000003") });
  expect(again.losses).toEqual(whole.losses.slice(3));
  expect(notices.filter((notice) => notice.includes("chats are longer"))).toEqual([]);
});

test("chats that are longer than a window are told", async () => {
  const notices: string[] = [];
  const config = tinyConfig(data, join(folder, "short"), {
    model: { ...model, contextLength: 20 },
    steps: 3,
  });
  const trainer = await Trainer.create(config, { onNotice: (notice) => notices.push(notice) });
  for await (const _ of trainer.run());
  trainer.dispose();
  expect(notices.join("\n")).toMatch(/of 3\d chats are longer than a window of 20 tokens/);
});
