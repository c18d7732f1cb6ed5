import type { Parameter } from "../nn/parameter.js";
import type { FileTensor, HuggingFaceFiles } from "./files.js";
import type { Llama } from "./llama.js";
import { toHuggingFace } from "./llama-hugging-face.js";

/**
 * A Llama's Hugging Face files. The files' q, k and v are rows of one packed weight of the model;
 * gate and up are rows of another.
 */
export function llamaFiles(model: Llama): HuggingFaceFiles {
  const isDerived = derivedTensors(model.config.layers);
  return {
    tensors: llamaTensors(model),
    config: (extras = {}) => toHuggingFace(model.config, extras),
    originalOf: (name) =>
      model.config.tieEmbeddings && name === "lm_head.weight" ? "model.embed_tokens.weight" : null,
    isDerived,
  };
}

/** All tensors of a model under their Hugging Face names, in the order of its files. */
function llamaTensors(model: Llama): FileTensor[] {
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, headSize, tieEmbeddings } =
    model.config;
  const parameters = model.namedParameters();
  const tensors: FileTensor[] = [];
  const add = (
    parameterName: string,
    parts: readonly (readonly [name: string, shape: readonly number[]])[],
  ): void => {
    const parameter = parameters.get(parameterName) as Parameter;
    let offset = 0;
    for (const [name, shape] of parts) {
      tensors.push({ name, shape, parameterName, parameter, offset });
      offset += shape.reduce((product, extent) => product * extent, 1);
    }
  };
  /** Layers of the files whose weights, and biases if there are any, are rows of one layer. */
  const addLinear = (
    layerName: string,
    inputs: number,
    parts: readonly (readonly [name: string, outputs: number])[],
  ): void => {
    add(
      `${layerName}.weight`,
      parts.map(([name, outputs]) => [`${name}.weight`, [outputs, inputs]]),
    );
    if (!parameters.has(`${layerName}.bias`)) return;
    add(
      `${layerName}.bias`,
      parts.map(([name, outputs]) => [`${name}.bias`, [outputs]]),
    );
  };
  add("embedding.weight", [
    ["model.embed_tokens.weight", parameters.get("embedding.weight")?.shape ?? []],
  ]);
  for (let layer = 0; layer < layers; layer++) {
    const ours = `blocks.${layer}`;
    const theirs = `model.layers.${layer}`;
    add(`${ours}.attentionNorm.weight`, [[`${theirs}.input_layernorm.weight`, [hiddenSize]]]);
    addLinear(`${ours}.attention.qkv`, hiddenSize, [
      [`${theirs}.self_attn.q_proj`, heads * headSize],
      [`${theirs}.self_attn.k_proj`, kvHeads * headSize],
      [`${theirs}.self_attn.v_proj`, kvHeads * headSize],
    ]);
    addLinear(`${ours}.attention.output`, heads * headSize, [
      [`${theirs}.self_attn.o_proj`, hiddenSize],
    ]);
    if (parameters.has(`${ours}.attention.queryNorm.weight`)) {
      add(`${ours}.attention.queryNorm.weight`, [
        [`${theirs}.self_attn.q_norm.weight`, [headSize]],
      ]);
      add(`${ours}.attention.keyNorm.weight`, [[`${theirs}.self_attn.k_norm.weight`, [headSize]]]);
    }
    add(`${ours}.feedForwardNorm.weight`, [
      [`${theirs}.post_attention_layernorm.weight`, [hiddenSize]],
    ]);
    addLinear(`${ours}.feedForward.gateUp`, hiddenSize, [
      [`${theirs}.mlp.gate_proj`, intermediateSize],
      [`${theirs}.mlp.up_proj`, intermediateSize],
    ]);
    addLinear(`${ours}.feedForward.down`, intermediateSize, [
      [`${theirs}.mlp.down_proj`, hiddenSize],
    ]);
  }
  add("norm.weight", [["model.norm.weight", [hiddenSize]]]);
  if (!tieEmbeddings)
    add("head.weight", [["lm_head.weight", parameters.get("head.weight")?.shape ?? []]]);
  return tensors;
}

/** Rotary buffers, of a block's attention or of the whole model. */
const rotaryBuffers = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];

/**
 * Tells whether a tensor is derived from the configuration: frequencies and tables of the rotary
 * embedding, and causal masks. Some exporters store these next to the weights. They are recognised
 * by their exact names, and a mask called `bias` also by its square shape, so that no weight is
 * ever skipped.
 * @param layers blocks of the model
 */
function derivedTensors(
  layers: number,
): (name: string, tensor: { readonly shape: readonly number[] }) => boolean {
  const names = new Set(["model.causal_mask"]);
  const masks = new Set<string>();
  const rotary = (owner: string): void => {
    for (const buffer of rotaryBuffers) names.add(`${owner}rotary_emb.${buffer}`);
  };
  rotary("");
  rotary("model.");
  for (let layer = 0; layer < layers; layer++) {
    for (const attention of ["self_attn", "attn"]) {
      const owner = `model.layers.${layer}.${attention}.`;
      rotary(owner);
      names.add(`${owner}masked_bias`);
      masks.add(`${owner}bias`);
    }
  }
  const isSquare = (shape: readonly number[]): boolean =>
    shape.length >= 2 && shape.at(-1) === shape.at(-2) && shape.slice(0, -2).every((n) => n === 1);
  return (name, { shape }) => names.has(name) || (masks.has(name) && isSquare(shape));
}
