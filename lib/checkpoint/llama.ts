/** Llama models in Hugging Face folders, and the tensors of a training checkpoint. */
import { readdir, rename, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { Device } from "../device.js";
import { CheckpointError, UsageError } from "../errors.js";
import { makeFolder } from "../make-folder.js";
import { fromHuggingFace, type HuggingFaceExtras, toHuggingFace } from "../model/config.js";
import { huggingFaceTensors } from "../model/hf.js";
import { Llama } from "../model/llama.js";
import { overlap } from "../nn/group.js";
import type { AdamW } from "../optim/adamw.js";
import { synchronize } from "../runtime.js";
import { scope } from "../scope.js";
import { type Tensor, untracked } from "../tensor.js";
import { readJson, toJson, writeFileDurably } from "./durable.js";
import { HostCopies } from "./host-copies.js";
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
  const { store } = model;
  scope(() => {
    for (const { name, shape, parameter, offset } of wanted) {
      const place = store.placeOf(parameter);
      const start = place.offset + offset;
      const size = shape.reduce((product, extent) => product * extent, 1);
      if (place.group.slot && !overlap({ offset: start, size }, place.group.owned)) continue;
      const values = untracked(shape, "f32", store.device, "loadWeights");
      present.tensors.get(name)?.readInto(values.native);
      place.group.write(start, values);
      values.dispose();
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
 * The folder appears whole or not at all. Where several processes train together, all of them call it and one writes.
 * @throws UsageError if there is something in the folder
 */
export async function saveLlama(
  folder: string,
  model: Llama,
  options: HuggingFaceExtras & { shardBytes?: number } = {},
): Promise<void> {
  // All processes that share the weights take part in gathering them, whatever the one that writes them meets then.
  const weights = await weightSources(model);
  if (!(model.store.parallel?.writes ?? true)) return;
  const target = resolve(folder);
  const exists = () =>
    new UsageError(`[saveLlama] ${folder} exists already: choose another folder or remove it`);
  if (await isThere(target)) throw exists();
  const temporary = `${target}.tmp`;
  try {
    // What a killed call left.
    await rm(temporary, { recursive: true, force: true });
    await makeFolder(temporary);
    const { shardBytes, ...extras } = options;
    const config = huggingFaceConfig(model, extras);
    await writeFileDurably(join(temporary, configFile), config);
    await writeWeights(temporary, weights, shardBytes ? { shardBytes } : {});
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    if (["ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "")) {
      throw exists();
    }
    throw error;
  }
}

/** Whether there is something of this name; an empty folder is as good as nothing. */
async function isThere(path: string): Promise<boolean> {
  return await readdir(path).then(
    (names) => names.length > 0,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
}

/** The text of a model's `config.json`. */
export function huggingFaceConfig(model: Llama, extras: HuggingFaceExtras = {}): string {
  const dtype = model.store.dtype === "bf16" ? "bfloat16" : "float32";
  return toJson(configFile, toHuggingFace(model.config, { dtype, ...extras }));
}

/**
 * A copy on the host of all weights as they are at this point of the stream, under Hugging Face names. Where several
 * processes train together, each of them calls it, and the one that writes checkpoints gets the copy: the others get none.
 * @param copies whose memory is used again
 */
export async function weightSources(
  model: Llama,
  copies = new HostCopies(),
): Promise<TensorSource[]> {
  const { store } = model;
  const writes = store.parallel?.writes ?? true;
  const sources = new Map<string, Promise<TensorSource>>();
  const wanted = huggingFaceTensors(model);
  for (const group of store.groups) {
    scope(() => {
      if (!group.slot) store.parallel?.needed(group, false);
      const weights = group.slot ? store.whole(group, group.ownedWeights) : group.weights;
      for (const { name, shape, parameter, offset } of writes ? wanted : []) {
        const place = group.entries.find((entry) => entry.parameter === parameter);
        if (!place) continue;
        sources.set(name, copies.copy(name, weights.view(shape, place.offset + offset), shape));
      }
    });
  }
  return await Promise.all(
    wanted.flatMap(({ name }) => (sources.get(name) as Promise<TensorSource>) ?? []),
  );
}

/**
 * A copy on the host of what the optimizer needs to go on with equal bits: moments, master weights, the guard's state; whole
 * and by name, however many processes share it. For several of them as in `weightSources`.
 */
export async function optimizerSources(
  optimizer: AdamW,
  copies = new HostCopies(),
): Promise<TensorSource[]> {
  const { store, guardState } = optimizer;
  const writes = store.parallel?.writes ?? true;
  const moments: Promise<TensorSource>[] = [];
  const masters: Promise<TensorSource>[] = [];
  for (const group of store.groups) {
    scope(() => {
      const { m, v } = optimizer.moments(group);
      const [wholeM, wholeV] = [store.whole(group, m), store.whole(group, v)];
      const master = group.master && store.whole(group, group.master);
      if (!writes) return;
      const copy = (name: string, buffer: Tensor, shape: readonly number[], offset: number) =>
        copies.copy(name, buffer.view(shape, offset), shape);
      for (const { name, parameter, offset } of group.entries) {
        const { shape } = parameter;
        moments.push(copy(`${name}.m`, wholeM, shape, offset));
        moments.push(copy(`${name}.v`, wholeV, shape, offset));
        if (master) masters.push(copy(`${name}.master`, master, shape, offset));
      }
    });
  }
  if (!writes) return [];
  const guard = scope(() => copies.copy("guard.state", guardState, guardState.shape));
  return await Promise.all([guard, ...moments, ...masters]);
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
  const { guardState, store } = optimizer;
  const targets = optimizerTargets(optimizer);
  matchTensors(source, stored, [
    { name: "guard.state", shape: guardState.shape, dtypes: ["F32"] },
    ...targets.map(({ name, shape }) => ({ name, shape, dtypes: ["F32" as const] })),
  ]);
  stored.tensors.get("guard.state")?.readInto(guardState.native);
  for (const { name, shape, size, group, offset, buffer } of targets) {
    if (!overlap({ offset, size }, group.owned)) continue;
    const values = untracked(shape, "f32", store.device, "loadOptimizer");
    stored.tensors.get(name)?.readInto(values.native);
    if (buffer) group.writeOwned(buffer, offset, values);
    else group.write(offset, values);
    values.dispose();
  }
  try {
    await synchronize(optimizer.store.device);
  } catch (cause) {
    throw new CheckpointError(
      `${source}: the optimizer's state could not be read: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** Each tensor of the optimizer's file and where it goes; no buffer: into master and weights. */
function optimizerTargets(optimizer: AdamW) {
  return optimizer.store.groups.flatMap((group) => {
    const { m, v } = optimizer.moments(group);
    return group.entries.flatMap(({ name, parameter, offset }) => {
      const place = { shape: parameter.shape, size: parameter.size, group, offset };
      return [
        { name: `${name}.m`, buffer: m, ...place },
        { name: `${name}.v`, buffer: v, ...place },
        ...(group.master ? [{ name: `${name}.master`, buffer: null, ...place }] : []),
      ];
    });
  });
}
