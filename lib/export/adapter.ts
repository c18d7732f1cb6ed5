/** A PEFT adapter's folder: its settings, and the halves of the adapter of each matrix. */
import { createHash } from "node:crypto";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { readJson } from "../checkpoint/durable.js";
import { readSafetensors, type StoredTensor } from "../checkpoint/safetensors.js";
import { CheckpointError } from "../core/errors.js";
import { adapterFiles, adapterName } from "../model/lora-config.js";
import { type FolderModel, readFloats } from "./read-model.js";

/** Adapters of matrices by the names of these, and an identity of all their numbers. */
export interface Adapters {
  readonly halves: ReadonlyMap<string, readonly [down: StoredTensor, up: StoredTensor]>;
  readonly sha256: string;
}

/**
 * Opens an adapter's weights, and finds the matrix of each.
 * @param folder of the adapter
 * @param model  whose matrices they belong to
 * @param base   names the model in errors
 * @throws CheckpointError naming a tensor that does not belong to the model, or a matrix without one
 */
export async function readAdapters(
  folder: string,
  { rank, everywhere }: AdapterSettings,
  model: FolderModel,
  base: string,
): Promise<Adapters> {
  const file = join(folder, adapterFiles.weights);
  await refusePickled(folder, file);
  const { tensors } = await readSafetensors(file, { followLinks: true });
  const fail = (problem: string): never => {
    throw new CheckpointError(`[merge] ${file}${problem}`);
  };
  const unused = new Set(tensors.keys());
  const halves = new Map<string, [down: StoredTensor, up: StoredTensor]>();
  const bare: string[] = [];
  for (const { name, shape } of model.tensors.values()) {
    const matrix = name.replace(/\.weight$/, "");
    const names = (["down", "up"] as const).map((part) => adapterName(matrix, part));
    const [down, up] = names.map((one) => tensors.get(one));
    if (!down && !up) {
      const isTarget = (target: string) => matrix === target || matrix.endsWith(`.${target}`);
      if (shape.length === 2 && everywhere?.some(isTarget)) bare.push(matrix);
      continue;
    }
    if (!down || !up) {
      const [there, missing] = down ? names : [names[1], names[0]];
      return fail(` has ${there}, but no ${missing}: an adapter is both`);
    }
    for (const one of names) unused.delete(one);
    const [outputs, inputs] = shape;
    if (up.shape[0] !== outputs || down.shape[1] !== inputs || up.shape[1] !== down.shape[0]) {
      fail(`: [${up.shape}] and [${down.shape}] do not fit ${name} [${shape}] of ${base}`);
    }
    if (down.shape[0] !== rank) {
      fail(
        `: the adapter of ${name} has rank ${down.shape[0]}, but r is ${rank} in ${adapterFiles.config}`,
      );
    }
    halves.set(name, [down, up]);
  }
  for (const name of unused) if (await isCopyOfBase(name, tensors, model)) unused.delete(name);
  const [stray] = unused;
  if (stray !== undefined) {
    const embedding = /\.lora_embedding_[AB]$/.test(stray);
    fail(
      embedding
        ? ` has ${stray}: adapters of an embedding cannot be merged here, only those of matrices`
        : ` has ${stray}, which belongs to no matrix of ${base}`,
    );
  }
  if (halves.size === 0) fail(` has no adapter of ${base}`);
  const [first] = bare;
  if (first !== undefined) {
    fail(
      ` has no adapter of ${first}, but target_modules of ${adapterFiles.config} names it: is ${base} another model than the adapter's?`,
    );
  }
  return { halves, sha256: await hashOf(tensors) };
}

/** Whether a tensor is the model's own matrix, which PEFT saves beside adapters of the head. */
async function isCopyOfBase(
  name: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  model: FolderModel,
): Promise<boolean> {
  const [, matrix] = /^base_model\.model\.(.+)\.base_layer\.weight$/.exec(name) ?? [];
  const copy = tensors.get(name);
  const own = model.tensors.get(`${matrix}.weight`);
  if (!copy || !own || copy.shape.join() !== own.shape.join()) return false;
  const [one, other] = [await readFloats(copy), await readFloats(own)];
  return one.every((value, index) => value === other[index]);
}

/** @throws CheckpointError for an adapter whose only weights are a pickle */
async function refusePickled(folder: string, file: string): Promise<void> {
  const isThere = (path: string) =>
    access(path).then(
      () => true,
      () => false,
    );
  const pickle = join(folder, "adapter_model.bin");
  if ((await isThere(file)) || !(await isThere(pickle))) return;
  throw new CheckpointError(
    `[merge] ${folder} has its weights in adapter_model.bin alone, a Python pickle: expected ${adapterFiles.weights}. ` +
      'Convert it: python3 -c "import sys, torch; from safetensors.torch import save_file; ' +
      `save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" ${pickle} ${file}`,
  );
}

/** An identity of tensors, whatever file they stand in. */
async function hashOf(tensors: ReadonlyMap<string, StoredTensor>): Promise<string> {
  const hash = createHash("sha256");
  for (const [name, tensor] of [...tensors].sort(([a], [b]) => (a < b ? -1 : 1))) {
    hash.update(`${name} ${tensor.dtype} ${tensor.shape}\n`).update(await tensor.readBytes());
  }
  return hash.digest("hex");
}

/** The settings of an adapter's adapter_config.json. */
interface AdapterSettings {
  /** Factor of the adapters' product. */
  scale: number;
  rank: number;
  /** The model that the adapter names. */
  base: string | null;
  /** Names of matrices, or their ends, that have an adapter in every layer; null if not known. */
  everywhere: readonly string[] | null;
}

/** Reads adapter_config.json. @throws CheckpointError for another kind of adapter */
export async function readSettings(folder: string): Promise<AdapterSettings> {
  const path = join(folder, adapterFiles.config);
  const config = (await readJson(path, 2 ** 20, { followLinks: true })) as Record<string, unknown>;
  const fail = (field: string, expected: string): never => {
    const got = JSON.stringify(config[field]) ?? "none";
    throw new CheckpointError(`[merge] ${path}: ${field}: expected ${expected}, got ${got}`);
  };
  const { peft_type, r, lora_alpha: alpha, base_model_name_or_path: base = null } = config;
  if (peft_type !== "LORA") fail("peft_type", '"LORA"');
  if (!Number.isInteger(r) || (r as number) < 1) fail("r", "a whole number from 1 on");
  if (typeof alpha !== "number") fail("lora_alpha", "a number");
  if (base !== null && typeof base !== "string")
    fail("base_model_name_or_path", "a folder or null");
  const isEmpty = (value: unknown) =>
    value === undefined || value === null || Object.keys(value as object).length === 0;
  for (const field of ["use_dora", "fan_in_fan_out", "lora_bias"]) {
    if (config[field]) fail(field, "false");
  }
  for (const field of ["rank_pattern", "alpha_pattern", "modules_to_save"]) {
    if (!isEmpty(config[field])) fail(field, "nothing");
  }
  if ((config.bias ?? "none") !== "none") fail("bias", '"none"');
  const rank = r as number;
  const divisor = config.use_rslora ? Math.sqrt(rank) : rank;
  const { target_modules: targets } = config;
  const some = ["layers_to_transform", "exclude_modules"].some((field) => !isEmpty(config[field]));
  const everywhere = Array.isArray(targets) && !some ? targets.map(String) : null;
  return { scale: (alpha as number) / divisor, rank, base: base as string | null, everywhere };
}
