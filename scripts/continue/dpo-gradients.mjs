// Losses, figures and gradients of preferences, for compare_dpo.py: node dpo-gradients.mjs FOLDER
//
// FOLDER holds policy/ and reference/, or base/ and adapter/; pairs.json with the ids of prompts and
// answers; and losses.json with settings of losses. Writes ours-N.safetensors for each of them.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadWeights } from "../../dist/checkpoint/model.js";
import { makeBatch } from "../../dist/data/loader.js";
import {
  batchTensors,
  LoraModel,
  loadModel,
  loraTargets,
  PreferenceObjective,
  readSafetensors,
  scope,
  writeSafetensors,
} from "../../dist/index.js";

const [folder] = process.argv.slice(2);
const readJson = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));

/** Windows of one pair each, as a data set of preferences gives them. */
function windowsOf(pairs) {
  const halves = pairs.map(({ prompt, chosen, rejected }) =>
    [chosen, rejected].map((answer) => ({ ids: [...prompt, ...answer], from: prompt.length })),
  );
  const size = Math.max(...halves.map(([a, b]) => a.ids.length + b.ids.length));
  const ids = new Int32Array(pairs.length * size);
  const mask = new Uint8Array(ids.length);
  const starts = Int32Array.from(ids, (_, at) => at % size);
  for (const [row, pair] of halves.entries()) {
    let at = 0;
    for (const [side, half] of pair.entries()) {
      const place = row * size + at;
      ids.set(half.ids, place);
      starts.fill(at, place, place + half.ids.length);
      for (const i of half.ids.keys()) mask[place + i] = (i >= half.from ? 1 : 0) + 2 * side;
      at += half.ids.length;
    }
  }
  const rows = pairs.map(() => true);
  return { windows: { ids, chats: { rows, pairs: true, mask, starts } }, size };
}

const pairs = readJson("pairs.json");
const { windows, size } = windowsOf(pairs);
const host = makeBatch(windows, pairs.length, size - 1, {}, () => ({ startId: null, endId: null }));
const settings = readJson("case.json");
for (const [number, config] of settings.losses.entries()) {
  let model;
  let reference = null;
  if (settings.adapter) {
    const adapter = readJson("adapter/adapter_config.json");
    model = LoraModel.create(await loadModel(join(folder, "base")), {
      rank: adapter.r,
      alpha: adapter.lora_alpha,
      targets: loraTargets.filter((name) => adapter.target_modules.includes(name)),
    });
    const file = join(folder, "adapter/adapter_model.safetensors");
    await loadWeights(model, await readSafetensors(file), file);
  } else {
    model = await loadModel(join(folder, "policy"), { training: true });
    reference = await loadModel(join(folder, "reference"));
  }
  const objective = new PreferenceObjective(config, reference);
  const list = await scope(async () => {
    const { loss, figures } = objective.measure(model, batchTensors(host, model.device), host);
    loss.backward();
    const found = [
      { name: "loss", shape: [1], values: Float32Array.of(await loss.item()) },
      { name: "figures", shape: [figures.size], values: await figures.toArray() },
    ];
    for (const { name, shape, parameter, offset } of model.files.tensors) {
      const gradient = await parameter.tensor.grad.toArray();
      const length = shape.reduce((product, one) => product * one, 1);
      found.push({ name, shape, values: gradient.slice(offset, offset + length) });
    }
    return found;
  });
  await writeSafetensors(
    join(folder, `ours-${number}.safetensors`),
    list.map(({ name, shape, values }) => ({
      name,
      dtype: "F32",
      shape,
      bytes: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    })),
  );
  objective.dispose();
  model.dispose();
}
