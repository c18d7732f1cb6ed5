/**
 * Losses, figures and gradients of preferences that TRL's DPOTrainer computed:
 * `python3 scripts/continue/compare_dpo.py --write test/train/fixtures/dpo` made the files.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { loadModel, loadWeights } from "../../lib/checkpoint/model.js";
import { readSafetensors } from "../../lib/checkpoint/safetensors.js";
import { scope } from "../../lib/core/scope.js";
import { empty } from "../../lib/core/tensor.js";
import { maskBits } from "../../lib/data/dataset-file.js";
import { makeBatch } from "../../lib/data/loader.js";
import { batchTensors, type HostBatch } from "../../lib/model/batch.js";
import type { LanguageModel } from "../../lib/model/language-model.js";
import { LoraModel } from "../../lib/model/lora.js";
import { type LoraTarget, loraTargets } from "../../lib/model/lora-config.js";
import type { PreferenceConfig } from "../../lib/model/preference-config.js";
import { PreferenceObjective } from "../../lib/train/preference-objective.js";

const fixtures = new URL("fixtures/dpo/", import.meta.url).pathname;
const readJson = <T>(...names: string[]) =>
  JSON.parse(readFileSync(join(fixtures, ...names), "utf8")) as T;

interface Pair {
  prompt: number[];
  chosen: number[];
  rejected: number[];
}

/** Windows of two pairs each, one behind the other, and padding. */
function batchOf(pairs: readonly Pair[]): HostBatch {
  const lengths = pairs.map((p) => 2 * p.prompt.length + p.chosen.length + p.rejected.length);
  const rows = Math.ceil(pairs.length / 2);
  const size = 2 * Math.max(...lengths);
  const ids = new Int32Array(rows * size);
  const mask = new Uint8Array(rows * size);
  const starts = Int32Array.from(ids, (_, i) => i % size);
  for (let row = 0; row < rows; row++) {
    let at = 0;
    for (const { prompt, chosen, rejected } of pairs.slice(2 * row, 2 * row + 2)) {
      for (const [side, answer] of [chosen, rejected].entries()) {
        const from = row * size + at;
        const half = [...prompt, ...answer];
        ids.set(half, from);
        starts.fill(at, from, from + half.length);
        const bits = side * maskBits.rejected;
        mask.fill(bits, from, from + prompt.length);
        mask.fill(bits | maskBits.counted, from + prompt.length, from + half.length);
        at += half.length;
      }
    }
  }
  const chats = { rows: Array(rows).fill(true), pairs: true, mask, starts };
  const none = { startId: null, endId: null };
  return makeBatch({ ids, chats }, rows, size - 1, {}, () => none);
}

async function modelsOf(name: string): Promise<[LanguageModel, LanguageModel | null]> {
  if (name === "policy") {
    const of = (part: string) => join(fixtures, name, part);
    return [await loadModel(of("policy"), { training: true }), await loadModel(of("reference"))];
  }
  const settings = readJson<{ r: number; lora_alpha: number; target_modules: LoraTarget[] }>(
    name,
    "adapter/adapter_config.json",
  );
  const model = LoraModel.create(await loadModel(join(fixtures, name, "base")), {
    rank: settings.r,
    alpha: settings.lora_alpha,
    targets: loraTargets.filter((target) => settings.target_modules.includes(target)),
  });
  const file = join(fixtures, name, "adapter/adapter_model.safetensors");
  await loadWeights(model, await readSafetensors(file), file);
  return [model, null];
}

describe.each([
  ["policy", "a policy beside another reference"],
  ["adapter", "a PEFT adapter on a frozen model"],
])("TRL's case %s: %s", (name) => {
  const { losses } = readJson<{ losses: PreferenceConfig[] }>(name, "case.json");
  test.each(losses.map((config, number) => [config, number] as const))(
    "%j has TRL's loss, figures and gradients",
    async (config, number) => {
      const host = batchOf(readJson(name, "pairs.json"));
      expect(host.pairs).toBe(6);
      const [model, reference] = await modelsOf(name);
      const objective = new PreferenceObjective(config, reference);
      const file = join(fixtures, name, `trl-${number}.safetensors`);
      const { tensors } = await readSafetensors(file);
      await scope(async () => {
        const expected = async (key: string) => {
          const stored = tensors.get(key);
          if (!stored) throw new Error(`${file} has no ${key}`);
          const values = empty([stored.shape.reduce((a, b) => a * b, 1)], {
            dtype: "f32",
            device: model.device,
          });
          stored.readInto(values.native);
          return await values.toArray();
        };
        const { loss, figures } = objective.measure(model, batchTensors(host, model.device), host);
        loss.backward();
        const near = async (found: ArrayLike<number>, key: string, limit: number) => {
          const wanted = await expected(key);
          expect(found.length).toBe(wanted.length);
          for (const [i, value] of wanted.entries()) {
            expect(Math.abs((found[i] as number) - value), `${key}[${i}]`).toBeLessThan(limit);
          }
        };
        await near([await loss.item()], "loss", 1e-5);
        await near((await figures?.toArray()) ?? [], "figures", 1e-5);
        let compared = 2;
        for (const { name: key, shape, parameter, offset } of model.files.tensors) {
          const wanted = await expected(key);
          const length = shape.reduce((a, b) => a * b, 1);
          const whole = (await parameter.tensor.grad?.toArray()) as Float32Array;
          const found = whole.subarray(offset, offset + length);
          const norm = Math.hypot(...wanted);
          const error = Math.hypot(...wanted.map((value, i) => value - (found[i] as number)));
          expect(error, key).toBeLessThanOrEqual(1e-5 * norm);
          expect(norm, key).toBeGreaterThan(0);
          compared++;
        }
        expect(compared).toBe(tensors.size);
      });
      objective.dispose();
      model.dispose();
    },
  );
});
