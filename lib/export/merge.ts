import { noGrad } from "../core/autograd.js";
import { checkChoice, checkOptions, checkPath } from "../core/check-values.js";
import { tensor } from "../core/create.js";
import { cpu } from "../core/device.js";
import { CheckpointError, UsageError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { scope } from "../core/scope.js";
import { add, matmul, mul } from "../ops/index.js";
import { readAdapters, readSettings } from "./adapter.js";
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
  const settings = await readSettings(adapter);
  const base = options.base ?? settings.base;
  if (base === null) {
    throw new UsageError(
      `[merge] ${adapter} names no model: give its folder as ${optionName("base")}`,
    );
  }
  const model = await readFolderModel(base).catch((error: unknown) => {
    const given = options.base !== undefined || !(error instanceof CheckpointError);
    if (given) throw error;
    const other = `another folder is given as ${optionName("base")}`;
    throw new CheckpointError(`[merge] ${adapter} names its model, ${other}: ${error.message}`, {
      cause: error,
    });
  });
  const { halves, sha256 } = await readAdapters(adapter, settings, model, base);
  if (model.merged.includes(sha256)) {
    throw new UsageError(
      `[merge] ${base} holds this adapter already: give the model without it as ${optionName("base")}`,
    );
  }
  const withIt = { ...model, merged: [...model.merged, sha256] };
  await writeFolder(withIt, out, {
    dtype,
    companionsOf: [adapter, base],
    valuesOf: async (stored) => {
      const values = await readFloats(stored);
      const found = halves.get(stored.name);
      if (!found) return values;
      const [down, up] = [await readFloats(found[0]), await readFloats(found[1])];
      const merged = await scope(() =>
        noGrad(() => {
          const of = (data: Float32Array, shape: readonly number[]) =>
            tensor(data, { shape, device: cpu });
          const product = matmul(of(up, found[1].shape), of(down, found[0].shape));
          return add(
            of(values, stored.shape),
            mul(product, settings.scale),
          ).toArray() as Promise<Float32Array>;
        }),
      );
      if (merged.every(Number.isFinite)) return merged;
      throw new CheckpointError(
        `[merge] ${adapter}: with its adapter, ${stored.name} has numbers that are not finite`,
      );
    },
  });
}
