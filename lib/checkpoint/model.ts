/** Reads and writes models in Hugging Face folders, and the weights of a training checkpoint. */
import { mkdir, readdir, rename } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import {
  argumentError,
  checkChoice,
  checkInteger,
  checkOptions,
  checkPath,
} from "../core/check.js";
import type { Device } from "../core/device.js";
import { CheckpointError, UsageError } from "../core/errors.js";
import { synchronize } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { untracked } from "../core/tensor.js";
import { later, turn } from "../core/turn.js";
import { Tokenizer } from "../data/tokenizer.js";
import { makeFolder } from "../files/make-folder.js";
import { makeOwnFolder, refuseForeign, removeOwnFolder } from "../files/own-folder.js";
import { createModel } from "../model/architectures.js";
import type { HuggingFaceExtras } from "../model/files.js";
import { LanguageModel } from "../model/language-model.js";
import { adapterAlone, adapterFiles } from "../model/lora-config.js";
import { shapeFromHuggingFace } from "../model/shapes.js";
import { readJson, toJson, writeFileDurably } from "./durable.js";
import { HostCopies } from "./host-copies.js";
import { modelTensors } from "./model-tensors.js";
import type { TensorValues } from "./native-io.js";
import type { StoredTensors, TensorSource } from "./safetensors.js";
import { readWeights, writeWeights } from "./weights.js";

export const configFile = "config.json";

const configBytesLimit = 16 * 1024 * 1024;

/** Where and in which number format a model is loaded. */
export interface LoadModelOptions {
  device?: Device;
  /** Dtype of weights and activations. Default: "f32". */
  dtype?: "f32" | "bf16";
  /**
   * Whether the model will be trained, which keeps an f32 master copy of bf16 weights.
   * Default: false.
   */
  training?: boolean;
}

/**
 * Loads a model from a Hugging Face folder: `config.json` and `model.safetensors`, or shards with
 * their index. Each file may be a symbolic link, as in hub caches.
 * @throws CheckpointError naming the missing, damaged or unsupported part
 */
export async function loadModel(
  folder: string,
  options: LoadModelOptions = {},
): Promise<LanguageModel> {
  checkPath("loadModel", "folder", folder);
  checkOptions("loadModel", options, ["device", "dtype", "training"]);
  const { device, dtype = "f32", training = false } = options;
  const source = join(folder, configFile);
  await refuseAdapter(folder);
  const config = shapeFromHuggingFace(
    await readJson(source, configBytesLimit, { followLinks: true }),
    source,
  );
  const weights = await readWeights(folder, { followLinks: true });
  const model = await createModel(config, { ...(device && { device }), dtype, training });
  try {
    await loadWeights(model, weights, folder, { foreign: true, values: "any" });
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

/**
 * Refuses a folder of adapters where a model is needed.
 * @throws CheckpointError for a folder that holds an adapter without its model
 */
export async function refuseAdapter(folder: string): Promise<void> {
  const names = await readdir(folder).catch((): string[] => []);
  if (names.includes(configFile) || !names.includes(adapterFiles.config)) return;
  throw new CheckpointError(adapterAlone(folder));
}

export interface LoadWeightsOptions {
  /**
   * Whether another program may have written the tensors. Buffers that follow from the shape are
   * then skipped. Default: false.
   */
  foreign?: boolean;
  /** Values that a weight may have. Default: "finite". */
  values?: TensorValues;
}

/**
 * Reads a model's weights from tensors with Hugging Face names. If any tensor does not fit, nothing
 * is read.
 * @throws CheckpointError naming tensors that are missing, unexpected or of another shape; for a
 *   value that no weight may have, naming file, tensor and element
 */
export async function loadWeights(
  model: LanguageModel,
  stored: StoredTensors,
  source: string,
  { foreign = false, values: allowed = "finite" }: LoadWeightsOptions = {},
): Promise<void> {
  const wanted = model.files.tensors;
  const present = await modelTensors(model, stored, source, foreign);
  const { store } = model;
  scope(() => {
    for (const { name, shape, parameter, offset } of wanted) {
      const place = store.placeOf(parameter);
      const start = place.offset + offset;
      const size = shape.reduce((product, extent) => product * extent, 1);
      if (!store.holds(place.group, start, size)) continue;
      const values = untracked(shape, "f32", store.device, "loadWeights");
      present.get(name)?.readInto(values.native, allowed);
      place.group.write(start, values);
      values.dispose();
    }
  });
  await synchronize(model.device);
}

export interface SaveModelOptions extends HuggingFaceExtras {
  /**
   * Tokenizer that the model was trained with. Its files are written next to the weights, and its
   * ids for the start and end of a text into `config.json`. null writes none. If omitted, none is
   * written and `onNotice` reports what will be missing.
   */
  tokenizer?: Tokenizer | null;
  /** Maximum size of a weight file in bytes; a larger tensor gets its own file. Default: 5e9. */
  shardBytes?: number;
  /** Called with notes for the user that are not errors. Default: prints to the console. */
  onNotice?: (message: string) => void;
}

/**
 * Writes a model as a Hugging Face folder that transformers can open directly. Weights are stored
 * in the model's dtype. The folder appears as a whole or not at all. When several processes train
 * together, all of them must call it, and one of them writes.
 * @throws UsageError if the folder is not empty
 * @throws ArgumentError for invalid options
 * @throws TokenizerError if the tokenizer has more ids than the model has rows
 */
export async function saveModel(
  folder: string,
  model: LanguageModel,
  options: SaveModelOptions = {},
): Promise<void> {
  checkSaveOptions(folder, model, options);
  // All processes that share the weights must take part in gathering them, even if the writing
  // process fails later.
  const weights = await weightSources(model);
  if (!(model.store.parallel?.writes ?? true)) return;
  const target = resolve(folder);
  const exists = () =>
    new UsageError(`[saveModel] ${folder} exists already: choose another folder or remove it`);
  if (await isThere(target)) throw exists();
  const temporary = `${target}.tmp`;
  const written = join(temporary, "model");
  await refuseForeign(temporary, "[saveModel]");
  try {
    // Files left by a killed call.
    await removeOwnFolder(temporary, "[saveModel]");
    await makeFolder(dirname(target));
    await makeOwnFolder(temporary, "[saveModel]");
    await mkdir(written);
    const { shardBytes, tokenizer, onNotice = console.warn, ...given } = options;
    const extras = tokenizer
      ? { bosTokenId: tokenizer.bosId, eosTokenId: tokenizer.eosId, ...given }
      : given;
    const config = huggingFaceConfig(model, extras);
    await writeFileDurably(join(written, configFile), config);
    for (const [name, bytes] of Object.entries(tokenizer?.contents() ?? {})) {
      await writeFileDurably(join(written, name), bytes);
    }
    await writeWeights(written, weights, shardBytes ? { shardBytes } : {});
    await rename(written, target);
    await removeOwnFolder(temporary, "[saveModel]");
    if (tokenizer === undefined) onNotice(withoutTokenizer(folder, given));
  } catch (error) {
    await removeOwnFolder(temporary, "[saveModel]").catch(() => {});
    if (["ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "")) {
      throw exists();
    }
    throw error;
  }
}

function checkSaveOptions(folder: string, model: LanguageModel, options: SaveModelOptions): void {
  const op = "saveModel";
  if (typeof folder !== "string" || folder === "") {
    throw argumentError(op, "the path of a folder", "folder", folder);
  }
  if (!(model instanceof LanguageModel))
    throw argumentError(op, "a language model", "model", model);
  const names = ["bosTokenId", "eosTokenId", "dtype", "tokenizer", "shardBytes", "onNotice"];
  checkOptions(op, options, names);
  const { tokenizer, shardBytes, onNotice } = options;
  if (tokenizer !== undefined && tokenizer !== null) {
    if (!(tokenizer instanceof Tokenizer)) {
      throw argumentError(op, "a Tokenizer (Tokenizer.load gives one)", "tokenizer", tokenizer);
    }
    tokenizer.assertFits({ vocabSize: model.config.vocabSize });
  }
  if (options.dtype !== undefined) checkChoice(op, "dtype", options.dtype, ["float32", "bfloat16"]);
  for (const name of ["bosTokenId", "eosTokenId"] as const) {
    const id = options[name] ?? null;
    if (id !== null) checkInteger(op, name, id, { min: 0, max: model.config.vocabSize - 1 });
  }
  if (shardBytes !== undefined) checkInteger(op, "shardBytes", shardBytes, { min: 1 });
  if (onNotice !== undefined && typeof onNotice !== "function") {
    throw argumentError(op, "a function", "onNotice", onNotice);
  }
}

function withoutTokenizer(folder: string, { eosTokenId }: HuggingFaceExtras): string {
  const ids = eosTokenId == null ? ", and config.json does not name the end of a text" : "";
  return (
    `[saveModel] ${folder} has no tokenizer.json: the model there turns no text into ids and back${ids}. ` +
    "Give the tokenizer as an option, or tokenizer: null if none is wanted"
  );
}

/** Whether something of this name exists. An empty folder does not count. */
async function isThere(path: string): Promise<boolean> {
  return await readdir(path).then(
    (names) => names.length > 0,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
}

/** The text of a model's `config.json`. */
export function huggingFaceConfig(model: LanguageModel, extras: HuggingFaceExtras = {}): string {
  const dtype = model.store.dtype === "bf16" ? "bfloat16" : "float32";
  return toJson(configFile, model.files.config({ dtype, ...extras }));
}

/**
 * Copies all weights to the host under their Hugging Face names. The event loop gets turns during
 * the copy, so the weights must not change before it is complete. When several processes train
 * together, all of them must call it. Only the process that writes checkpoints gets the copy.
 * @param copies memory from an earlier call, to be reused
 */
export async function weightSources(
  model: LanguageModel,
  copies = new HostCopies(),
): Promise<TensorSource[]> {
  const { store } = model;
  const writes = store.parallel?.writes ?? true;
  const sources = new Map<string, Promise<TensorSource>>();
  const wanted = model.files.tensors;
  for (const group of store.groups) {
    scope(() => {
      const weights = store.wholeWeights(group);
      for (const { name, shape, parameter, offset } of writes ? wanted : []) {
        const place = group.entries.find((entry) => entry.parameter === parameter);
        if (!place) continue;
        const values = weights.view(shape, place.offset + offset);
        sources.set(name, later(copies.copy(name, values, shape)));
      }
    });
    // The system may take a long time to hand out this much memory.
    await turn();
  }
  return await Promise.all(
    wanted.flatMap(({ name }) => (sources.get(name) as Promise<TensorSource>) ?? []),
  );
}
