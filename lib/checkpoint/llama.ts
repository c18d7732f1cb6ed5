/** Llama models in Hugging Face folders, and the tensors of a training checkpoint. */
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device.js";
import { CheckpointError, UsageError } from "../errors.js";
import { fromHuggingFace, type HuggingFaceExtras, toHuggingFace } from "../model/config.js";
import { huggingFaceTensors } from "../model/hf.js";
import { Llama } from "../model/llama.js";
import { native } from "../native.js";
import type { AdamW } from "../optim/adamw.js";
import { scope } from "../scope.js";
import { synchronize, type Tensor } from "../tensor.js";
import { readJson, toJson, writeFileDurably } from "./durable.js";
import { matchTensors } from "./load.js";
import type { FileDtype } from "./native-io.js";
import type { StoredTensors, TensorSource } from "./safetensors.js";
import { readWeights, writeWeights } from "./weights.js";

export const configFile = "config.json";
export const optimizerFile = "optimizer-state.safetensors";

const configBytesLimit = 16 * 1024 * 1024;
const readableDtypes: readonly FileDtype[] = ["F32", "BF16", "F16", "F64"];

export interface LoadLlamaOptions {
  device?: Device;
  /** Of weights and activations ("f32"). */
  dtype?: "f32" | "bf16";
  /** Whether it will be trained: keeps an f32 master beside bf16 weights (false). */
  training?: boolean;
}

/**
 * A model from a Hugging Face folder: `config.json` and `model.safetensors`, or shards with their index. Links in the last
 * part of a path are followed, as hub caches are made of them.
 * @throws CheckpointError naming what is missing, damaged, or not a Llama that this library computes
 */
export async function loadLlama(folder: string, options: LoadLlamaOptions = {}): Promise<Llama> {
  const { device, dtype = "f32", training = false } = options;
  const source = join(folder, configFile);
  const config = fromHuggingFace(await readJson(source, configBytesLimit), source);
  const weights = await readWeights(folder, { followLinks: true });
  const model = await Llama.create(config, { ...(device && { device }), dtype, training });
  try {
    await loadWeights(model, weights, folder);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

/** Reads a model's weights from tensors with Hugging Face names. Nothing is read unless all fit. */
export async function loadWeights(
  model: Llama,
  stored: StoredTensors,
  source: string,
): Promise<void> {
  const wanted = huggingFaceTensors(model);
  const present = withoutTiedHead(model, stored);
  matchTensors(
    source,
    present,
    wanted.map(({ name, shape }) => ({ name, shape, dtypes: readableDtypes })),
  );
  scope(() => {
    for (const { name, shape, parameter, offset } of wanted) {
      present.tensors.get(name)?.readInto(parameter.master.view(shape, offset).native);
    }
    for (const parameter of model.parameters()) {
      if (parameter.master !== parameter.tensor) {
        native.cast(parameter.master.native, parameter.tensor.native);
      }
    }
  });
  await synchronize(model.device);
}

/** Some writers store a tied head beside the embedding; it is the same matrix, so it is passed over. */
function withoutTiedHead(model: Llama, stored: StoredTensors): StoredTensors {
  if (!model.config.tieEmbeddings) return stored;
  const tensors = new Map([...stored.tensors].filter(([name]) => name !== "lm_head.weight"));
  return { ...stored, tensors };
}

/**
 * Writes a model as a Hugging Face folder that transformers opens as it is. Weights are stored in the model's dtype.
 * The folder appears whole or not at all.
 * @throws UsageError if the folder exists
 */
export async function saveLlama(
  folder: string,
  model: Llama,
  options: HuggingFaceExtras & { shardBytes?: number } = {},
): Promise<void> {
  const temporary = `${folder}.tmp`;
  try {
    await mkdir(temporary, { recursive: true });
    const { shardBytes, ...extras } = options;
    const config = huggingFaceConfig(model, extras);
    await writeFileDurably(join(temporary, configFile), config);
    await writeWeights(temporary, await weightSources(model), shardBytes ? { shardBytes } : {});
    await rename(temporary, folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    if (["ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "")) {
      throw new UsageError(
        `[saveLlama] ${folder} exists already: choose another folder or remove it`,
      );
    }
    throw error;
  }
}

/** The text of a model's `config.json`. */
export function huggingFaceConfig(model: Llama, extras: HuggingFaceExtras = {}): string {
  const dtype = model.store.dtype === "bf16" ? "bfloat16" : "float32";
  return toJson(configFile, toHuggingFace(model.config, { dtype, ...extras }));
}

async function hostCopy(
  name: string,
  tensor: Tensor,
  shape: readonly number[],
): Promise<TensorSource> {
  const dtype = tensor.dtype === "bf16" ? "BF16" : "F32";
  const bytes = new Uint8Array(await tensor.toBytes());
  return { name, dtype, shape, bytes: () => bytes };
}

/** A copy on the host of all weights as they are at this point of the stream, under Hugging Face names. */
export async function weightSources(model: Llama): Promise<TensorSource[]> {
  const copies = scope(() =>
    huggingFaceTensors(model).map(({ name, shape, parameter, offset }) =>
      hostCopy(name, parameter.tensor.view(shape, offset), shape),
    ),
  );
  return await Promise.all(copies);
}

/** A copy on the host of what the optimizer needs to go on with equal bits: moments, master weights, the guard's state. */
export async function optimizerSources(optimizer: AdamW): Promise<TensorSource[]> {
  const copies = scope(() => {
    const sources = [hostCopy("guard.state", optimizer.guardState, optimizer.guardState.shape)];
    for (const { name, m, v } of optimizer.moments()) {
      sources.push(hostCopy(`${name}.m`, m, m.shape), hostCopy(`${name}.v`, v, v.shape));
    }
    for (const { name, parameter } of optimizer.store.entries()) {
      if (parameter.master === parameter.tensor) continue;
      sources.push(hostCopy(`${name}.master`, parameter.master, parameter.shape));
    }
    return sources;
  });
  return await Promise.all(copies);
}

/**
 * Reads the optimizer's state back.
 * @throws CheckpointError if it is from another model, precision or guard window
 */
export async function loadOptimizer(
  optimizer: AdamW,
  stored: StoredTensors,
  source: string,
): Promise<void> {
  scope(() => {
    const targets = new Map<string, Tensor>([["guard.state", optimizer.guardState]]);
    for (const { name, m, v } of optimizer.moments()) {
      targets.set(`${name}.m`, m);
      targets.set(`${name}.v`, v);
    }
    for (const { name, parameter } of optimizer.store.entries()) {
      if (parameter.master !== parameter.tensor) targets.set(`${name}.master`, parameter.master);
    }
    const expected = [...targets].map(([name, { shape }]) => ({
      name,
      shape,
      dtypes: ["F32" as const],
    }));
    matchTensors(source, stored, expected);
    for (const [name, target] of targets) stored.tensors.get(name)?.readInto(target.native);
    for (const { parameter } of optimizer.store.entries()) {
      if (parameter.master !== parameter.tensor)
        native.cast(parameter.master.native, parameter.tensor.native);
    }
  });
  try {
    await synchronize(optimizer.store.device);
  } catch (cause) {
    throw new CheckpointError(
      `${source}: the optimizer's state could not be read: ${(cause as Error).message}`,
      { cause },
    );
  }
}
