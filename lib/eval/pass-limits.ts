import { noGrad } from "../core/autograd.js";
import { ArgumentError } from "../core/errors.js";
import { usableMemory } from "../core/machine-limits.js";
import { gpuFreeBytes } from "../core/native.js";
import { memory } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import type { LanguageModel } from "../model/language-model.js";
import type { PassLimits } from "./score-batches.js";
import type { EvalWorld } from "./world.js";

/** Tokens beyond which a larger pass does not use the device any better. */
const mostTokens = { cpu: 4096, cuda: 65_536 };
/** Cost of a pass besides its tokens, in tokens: starting kernels, reading weights. */
const passCosts = { cpu: 64, cuda: 512 };
/** Share of the free memory that a plan may use, because the plan is an estimate. */
const usableShare = 0.8;
/** Memory of the output head's logits, which the kernel computes for some rows at a time. */
const logitsBytes = { cpu: 16 << 20, cuda: 512 << 20 };
/**
 * Caches that exist at a time: that of the prefixes, a pass's copy, the copy before it, and a
 * layer's keys and values with room for queries, in the order of attention's kernel.
 */
const caches = 4;
/** Width of a model that does not report its activations: intermediates, in widths of its head. */
const unknownWidths = 40;

/** Bytes of a token in the model's cache; null for a model without a cache. */
export function cacheBytesPerToken(model: LanguageModel): number | null {
  return scope(() => {
    try {
      const { layers } = noGrad(() => model.createCache(1, 1));
      return layers.reduce((sum, { size, dtype }) => sum + size * (dtype === "bf16" ? 2 : 4), 0);
    } catch (error) {
      if (error instanceof ArgumentError) return null;
      throw error;
    }
  });
}

/** Bytes of a token in a forward pass without backward: those of one block. */
function activationBytesPerToken(model: LanguageModel): number {
  const element = model.store.dtype === "bf16" ? 2 : 4;
  const { pass } = model.cost;
  if (!pass) return element * unknownWidths * (model.headWeight.shape[1] as number);
  const { kept, working } = pass.activations(element, "none");
  return kept / pass.blocks + working;
}

function freeBytes(model: LanguageModel): number {
  const { device } = model;
  if (device.type === "cpu") return usableMemory().freeBytes;
  // Memory that this process keeps for reuse is free for its own tensors.
  return gpuFreeBytes(device.index) + memory(device).cachedBytes;
}

/** Bytes that the plan of a model's work may use now. */
export function usableBytes(model: LanguageModel): number {
  return Math.max(0, usableShare * freeBytes(model) - logitsBytes[model.device.type]);
}

/**
 * Sizes of forward passes.
 * @param batch sequences of a pass, or "auto" for as many tokens as the free memory holds and the
 *   device can use
 * @param cacheBytes bytes of a token in the model's cache; null without one
 */
export async function passLimits(
  model: LanguageModel,
  batch: number | "auto",
  cacheBytes: number | null,
  world?: EvalWorld,
): Promise<PassLimits> {
  const endless = Number.POSITIVE_INFINITY;
  const { type } = model.device;
  const passCost = passCosts[type];
  if (batch !== "auto") {
    return { tokens: endless, rows: batch, cacheTokens: endless, passCost };
  }
  const usable = usableBytes(model);
  const passBytes = cacheBytes === null ? usable : usable / 2;
  const planned = Float64Array.of(
    Math.min(mostTokens[type], passBytes / activationBytesPerToken(model)),
    cacheBytes === null ? 0 : (usable - passBytes) / caches / cacheBytes,
  );
  // All ranks make the same batches, so the rank with the least memory decides.
  const all = world ? await world.gather(planned) : [planned];
  const [tokens, cacheTokens] = [0, 1].map((index) =>
    Math.floor(Math.min(...all.map((numbers) => numbers[index] as number))),
  ) as [number, number];
  return { tokens, rows: endless, cacheTokens, passCost };
}
