import { join } from "node:path";
import { readJson } from "../checkpoint/durable.js";
import { readSafetensors, type StoredTensor } from "../checkpoint/safetensors.js";
import { noGrad } from "../core/autograd.js";
import { checkChoice, checkOptions, checkPath } from "../core/check-values.js";
import { tensor } from "../core/create.js";
import { cpu } from "../core/device.js";
import { CheckpointError, UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { scope } from "../core/scope.js";
import { adapterFiles, adapterName } from "../model/lora-config.js";
import { add, matmul, mul } from "../ops/index.js";
import { type ExportDtype, exportDtypes, writeFolder } from "./hugging-face.js";
import { readFloats, readFolderModel } from "./read-model.js";

/** Options of `mergeAdapter`. */
export interface MergeAdapterOptions {
  /** Folder of the model that the adapter belongs to. Default: the one that the adapter names. */
  base?: string;
  /** Type of the merged weights. Default: "bfloat16". */
  dtype?: ExportDtype;
}

/**
 * Adds a low-rank adapter to its model's weights, and writes the result as a Hugging Face folder:
 * W + alpha / rank · B · A. The tokenizer, the chat template and generation_config.json are those of
 * the adapter's folder, or else the model's.
 * @param adapter a folder of PEFT's: adapter_config.json and adapter_model.safetensors
 * @param out     the new folder
 * @throws CheckpointError for a folder that is damaged, or an adapter of another kind
 * @throws UsageError if the model is not known, or if the new folder is not empty
 */
export async function mergeAdapter(
  adapter: string,
  out: string,
  options: MergeAdapterOptions = {},
): Promise<void> {
  const op = "mergeAdapter";
  checkPath(op, "adapter", adapter);
  checkPath(op, "out", out);
  checkOptions(op, options, ["base", "dtype"]);
  const { dtype = "bfloat16" } = options;
  checkChoice(op, "dtype", dtype, exportDtypes);
  if (options.base !== undefined) checkPath(op, "base", options.base);
  const { scale, rank, base: named } = await readSettings(adapter);
  const base = options.base ?? named;
  if (base === null) {
    throw new UsageError(
      `[merge] ${adapter} names no model: give its folder as ${optionName("base")}`,
    );
  }
  const file = join(adapter, adapterFiles.weights);
  const { tensors: halves } = await readSafetensors(file, { followLinks: true });
  const model = await readFolderModel(base).catch((error: unknown) => {
    const given = options.base !== undefined || !(error instanceof CheckpointError);
    if (given) throw error;
    const other = `another folder is given as ${optionName("base")}`;
    throw new CheckpointError(`[merge] ${adapter} names its model, ${other}: ${error.message}`, {
      cause: error,
    });
  });
  const unused = new Set(halves.keys());
  const adapters = new Map<string, [down: StoredTensor, up: StoredTensor]>();
  for (const { name, shape } of model.tensors.values()) {
    const names = (["down", "up"] as const).map((part) =>
      adapterName(name.replace(/\.weight$/, ""), part),
    );
    const [down, up] = names.map((one) => halves.get(one));
    if (!down || !up) continue;
    for (const one of names) unused.delete(one);
    const [outputs, inputs] = shape;
    if (up.shape[0] !== outputs || down.shape[1] !== inputs || up.shape[1] !== down.shape[0]) {
      throw new CheckpointError(
        `[merge] ${file}: [${up.shape}] and [${down.shape}] do not fit ${name} [${shape}] of ${base}`,
      );
    }
    if (down.shape[0] !== rank) {
      throw new CheckpointError(
        `[merge] ${file}: the adapter of ${name} has rank ${down.shape[0]}, but r is ${rank} in ${adapterFiles.config}`,
      );
    }
    adapters.set(name, [down, up]);
  }
  const [stray] = unused;
  if (stray !== undefined || adapters.size === 0) {
    const what = stray === undefined ? "no adapter" : `${stray}, which belongs to no matrix`;
    throw new CheckpointError(`[merge] ${file} has ${what} of ${base}`);
  }
  await writeFolder(model, out, {
    dtype,
    companionsOf: [adapter, base],
    valuesOf: async (stored) => {
      const values = await readFloats(stored);
      const found = adapters.get(stored.name);
      if (!found) return values;
      const [down, up] = [await readFloats(found[0]), await readFloats(found[1])];
      const merged = await scope(() =>
        noGrad(() => {
          const of = (data: Float32Array, shape: readonly number[]) =>
            tensor(data, { shape, device: cpu });
          const product = matmul(of(up, found[1].shape), of(down, found[0].shape));
          return add(
            of(values, stored.shape),
            mul(product, scale),
          ).toArray() as Promise<Float32Array>;
        }),
      );
      if (merged.every(Number.isFinite)) return merged;
      throw new CheckpointError(
        `[merge] ${file}: with its adapter, ${stored.name} has numbers that are not finite`,
      );
    },
  });
}

/** Settings of an adapter's adapter_config.json. @throws CheckpointError for another kind of adapter */
async function readSettings(
  folder: string,
): Promise<{ scale: number; rank: number; base: string | null }> {
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
  return { scale: (alpha as number) / divisor, rank, base: base as string | null };
}
