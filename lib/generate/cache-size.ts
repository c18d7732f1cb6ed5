import { checkArray, checkTensor } from "../core/check.js";
import type { Device } from "../core/device.js";
import { OutOfMemoryError } from "../core/errors.js";
import { usableMemory } from "../core/machine-limits.js";
import { addon } from "../core/native.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { LanguageModel } from "../model/language-model.js";

/** Part of the free memory that an engine's cache takes by itself. */
const share = { cpu: 0.25, cuda: 0.8 };

/**
 * The pages that a model makes. They belong to the current scope.
 * @throws ArgumentError for a model of one's own that makes something else
 */
export function createPages(model: LanguageModel, count: number, size: number): readonly Tensor[] {
  const layers: unknown = model.createPages(count, size);
  const name = `the result of ${model.constructor.name}.createPages`;
  checkArray("createPages", name, layers, "an array of tensors");
  for (const [index, layer] of layers.entries()) {
    checkTensor("createPages", `layer ${index} of ${name}`, layer);
  }
  return layers as readonly Tensor[];
}

/** Bytes that one page takes, over all layers. */
export function pageBytes(model: LanguageModel, size: number): number {
  return scope(() => {
    const layers = createPages(model, 1, size);
    return layers.reduce((sum, { size, dtype }) => sum + size * (dtype === "bf16" ? 2 : 4), 0);
  });
}

function freeBytes(device: Device): number {
  return device.type === "cpu" ? usableMemory().freeBytes : addon.gpuFreeBytes(device.index);
}

/**
 * Number of pages for an engine: as many as its sequences can use, as far as memory allows.
 * @param wanted pages that all sequences together can use
 * @param least pages of the longest sequence
 * @throws OutOfMemoryError if the longest sequence does not fit
 */
export function pageCount(
  model: LanguageModel,
  size: number,
  wanted: number,
  least: number,
  cacheBytes: number | undefined,
): number {
  const each = pageBytes(model, size);
  const { device } = model;
  const bytes = cacheBytes ?? freeBytes(device) * share[device.type];
  const count = Math.min(wanted, Math.floor(bytes / each));
  if (count < least) {
    throw new OutOfMemoryError(
      `[Engine] a text of ${least * size} tokens needs ${least * each} bytes of cache, but it has ${Math.floor(bytes)}: ` +
        "lower maxLength, or raise cacheBytes",
    );
  }
  return count;
}
