// Loss and gradients of a PEFT adapter, for compare_lora.py: node lora-gradients.mjs BASE ADAPTER IO OUT

import { loadWeights } from "../../dist/checkpoint/model.js";
import {
  empty,
  LoraModel,
  loadModel,
  loraTargets,
  readSafetensors,
  writeSafetensors,
} from "../../dist/index.js";

const [base, adapter, io, out] = process.argv.slice(2);
const { readFileSync } = await import("node:fs");
const settings = JSON.parse(readFileSync(`${adapter}/adapter_config.json`, "utf8"));
const model = LoraModel.create(await loadModel(base), {
  rank: settings.r,
  alpha: settings.lora_alpha,
  targets: loraTargets.filter((name) => settings.target_modules.includes(name)),
});
await loadWeights(model, await readSafetensors(`${adapter}/adapter_model.safetensors`), adapter);
const { tensors } = await readSafetensors(io);
const read = async (name) => {
  const stored = tensors.get(name);
  const ids = empty(stored.shape, { dtype: "i32" });
  stored.readInto(ids.native);
  return ids;
};
const loss = model.loss({ inputs: await read("inputs"), targets: await read("targets") });
loss.backward();
const list = [{ name: "loss", shape: [1], values: Float32Array.of(await loss.item()) }];
// A parameter holds the halves of several adapters, one behind the other.
for (const { name, shape, parameter, offset } of model.files.tensors) {
  const size = shape.reduce((product, extent) => product * extent, 1);
  const gradient = await parameter.tensor.grad.toArray();
  list.push({ name, shape, values: gradient.subarray(offset, offset + size) });
}
const frozen = model.headWeight.tensor.grad !== null;
if (frozen) throw new Error("the frozen head has a gradient");
await writeSafetensors(
  out,
  list.map(({ name, shape, values }) => ({
    name,
    dtype: "F32",
    shape,
    bytes: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
  })),
);
