import { join } from "node:path";
import { readJson } from "../checkpoint/durable.js";
import { refuseAdapter } from "../checkpoint/model.js";
import { modelTensors } from "../checkpoint/model-tensors.js";
import type { StoredTensor } from "../checkpoint/safetensors.js";
import { readWeights } from "../checkpoint/weights.js";
import { CheckpointError } from "../core/errors.js";
import { describeModel } from "../model/architectures.js";
import { type ArchitectureConfig, shapeFromHuggingFace } from "../model/shapes.js";

/** A Hugging Face folder, whose weights are read when they are written. */
export interface FolderModel {
  config: ArchitectureConfig;
  /** The contents of config.json. */
  json: Record<string, unknown>;
  /** Identities of the adapters that were added to the weights. */
  merged: readonly string[];
  /** The weights that the configuration needs, by their names. */
  tensors: ReadonlyMap<string, StoredTensor>;
}

/** Key of the identities of merged adapters in the metadata of weight files. */
export const mergedKey = "merged_adapters";

const configBytesLimit = 16 * 1024 * 1024;

/**
 * Opens a Hugging Face folder. Its tensors fit its configuration, so that no file is made that other
 * programs refuse or read wrongly.
 * @throws CheckpointError naming the part that is missing, damaged or superfluous
 */
export async function readFolderModel(folder: string): Promise<FolderModel> {
  await refuseAdapter(folder);
  const source = join(folder, "config.json");
  const json = await readJson(source, configBytesLimit, { followLinks: true });
  const config = shapeFromHuggingFace(json, source);
  const stored = await readWeights(folder, { followLinks: true });
  const tensors = await modelTensors(describeModel(config), stored, folder, true);
  const merged = stored.metadata.get(mergedKey)?.split(" ") ?? [];
  return { config, json: json as Record<string, unknown>, merged, tensors };
}

/** A tensor's numbers as float32. @throws CheckpointError for numbers of another kind */
export async function readFloats(tensor: StoredTensor): Promise<Float32Array> {
  const bytes = await tensor.readBytes();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = tensor.shape.reduce((product, extent) => product * extent, 1);
  const values = new Float32Array(count);
  const read = readers[tensor.dtype];
  if (read === undefined) {
    throw new CheckpointError(
      `[export] ${tensor.path}: ${tensor.name} is ${tensor.dtype}: expected ${Object.keys(readers).join(", ")}`,
    );
  }
  for (let i = 0; i < count; i++) values[i] = read(view, i);
  return values;
}

const bits = new DataView(new ArrayBuffer(4));

const readers: Partial<Record<string, (view: DataView, index: number) => number>> = {
  F32: (view, index) => view.getFloat32(index * 4, true),
  F64: (view, index) => view.getFloat64(index * 8, true),
  BF16: (view, index) => {
    bits.setUint32(0, view.getUint16(index * 2, true) << 16);
    return bits.getFloat32(0);
  },
  F16: (view, index) => fromF16(view.getUint16(index * 2, true)),
};

/** The number that a float16's bits stand for. */
export function fromF16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** From here on, a number becomes infinity as float16. */
const beyondFloat16 = 65_520;

/** @throws CheckpointError for a finite number that float16 cannot hold */
export function refuseBeyondFloat16({ path, name }: StoredTensor, values: Float32Array): void {
  const large = values.find((x) => Math.abs(x) >= beyondFloat16 && Number.isFinite(x));
  if (large === undefined) return;
  throw new CheckpointError(
    `[export] ${path}: ${name} has the number ${large}, which float16 cannot hold: choose another type`,
  );
}
