import { mkdir, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RunConfig, resolveConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { root } from "../cli/build.js";

/** Short, different documents of sentences that a tiny model can learn. */
function document(number: number): string {
  const subjects = [
    "The senate",
    "A farmer",
    "Our nation",
    "The court",
    "This union",
    "The people",
  ];
  const verbs = ["asks", "builds", "keeps", "remembers", "defends", "welcomes"];
  const objects = ["peace", "the railway", "its word", "good roads", "the harvest", "a free press"];
  const pick = (list: string[], salt: number) => list[(number * 7 + salt * 13) % list.length];
  const sentences = Array.from(
    { length: 12 + (number % 5) },
    (_, i) =>
      `${pick(subjects, i)} ${pick(verbs, i * i)} ${pick(objects, i + number)} in ${1790 + ((number * 3 + i) % 230)}.`,
  );
  return `${sentences.join(" ")}\n`;
}

/** A folder with a prepared data set of a few thousand tokens. */
export async function tinyData(): Promise<{ folder: string; data: string }> {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-test-"));
  const texts = join(folder, "texts");
  await mkdir(texts);
  for (let i = 0; i < 40; i++) await writeFile(join(texts, `${i}.txt`), document(i));
  const data = join(folder, "data");
  await prepare({
    inputs: [texts],
    out: data,
    tokenizer: join(root, "assets/quickstart"),
    validationFraction: 0.1,
  });
  return { folder, data };
}

/** A model that trains a step in milliseconds. */
export const tinyModel = {
  vocabSize: 4096,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  contextLength: 32,
} as const;

/** The configuration of a run that takes seconds. */
export function tinyConfig(data: string, out: string, overrides: object = {}): RunConfig {
  const config = resolveConfig({
    out,
    steps: 12,
    seed: 5,
    precision: "bf16",
    model: tinyModel,
    data: { train: { [data]: 1 } },
    batch: { microBatch: 4 },
    optimizer: { peakLr: 5e-3, warmupSteps: 2 },
    checkpoint: { every: 5 },
    evaluate: { every: 5, batches: 2 },
    ...overrides,
  });
  return decidePrecision(config, null);
}
