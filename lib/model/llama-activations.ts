import type { ActivationCost, ActivationKind } from "./cost.js";
import type { Recompute } from "./language-model.js";
import type { LlamaConfig } from "./llama-config.js";
import { hasHeadNorm } from "./llama-variations.js";
import { adaptedStages } from "./lora-config.js";

/** Bytes of a token that the parts of a block keep for backward. */
interface BlockParts {
  attention: number;
  /** Of the feed-forward part: its input, and what follows. */
  feedForwardInput: number;
  feedForward: number;
  /** Of a recomputed feed-forward part: its input, and the results that backward makes again. */
  recomputedFeedForward: { kept: number; again: number };
  /** Intermediate gradients. */
  gradients: number;
}

/** Bytes per token of the activations of a Llama's pass. */
export function llamaActivations(
  config: LlamaConfig,
  recompute: Recompute,
  { element, fp8, lora }: ActivationKind & { element: 2 | 4 },
): ActivationCost {
  const { hiddenSize, layers } = config;
  const adapted = adaptedProducts(config, lora);
  const parts = fp8 ? partsInFp8(config, adapted) : partsOf(config, element, adapted);
  const inner = element * (adapted?.inner ?? 0);
  const whole = parts.attention + parts.feedForwardInput + parts.feedForward + inner;
  const stream = element * 2 * hiddenSize; // the residual stream and the change that is added to it
  const kept = {
    none: whole,
    ffn: parts.attention + parts.recomputedFeedForward.kept + inner,
    block: stream,
  };
  const again = { none: 0, ffn: parts.recomputedFeedForward.again, block: whole };
  // Activations outside the blocks: token ids and targets, the embedded input, the final norm and
  // its gradient.
  const ends = 8 + element * 3 * hiddenSize + 4;
  return {
    kept: layers * kept[recompute] + ends,
    working: again[recompute] + parts.gradients,
  };
}

/** Which products of a frozen block have adapters; null for a block that is trained whole. */
type Adapted = Record<"qkv" | "gateUp" | "down", boolean> & {
  /** Numbers per token between the halves of the adapters. */
  inner: number;
};

function adaptedProducts(config: LlamaConfig, lora: ActivationKind["lora"]): Adapted | null {
  if (!lora) return null;
  const stages = adaptedStages(lora, config);
  const [qkv, , gateUp, down] = stages.map((stage) => stage !== null) as boolean[];
  const inner = stages.reduce((sum, stage) => sum + (stage?.width ?? 0), 0);
  return { qkv: qkv as boolean, gateUp: gateUp as boolean, down: down as boolean, inner };
}

function sizesOf(config: LlamaConfig) {
  const { hiddenSize, intermediateSize: ffn, heads, kvHeads, headSize } = config;
  const [query, keyValue] = [heads * headSize, 2 * kvHeads * headSize];
  // Norms of heads keep q and k as they were before, and 1/rms of each head.
  const normedHeads = (element: number) =>
    hasHeadNorm(config) ? element * (query + keyValue / 2) + 4 * (heads + kvHeads) : 0;
  return { hiddenSize, ffn, query, keyValue, heads, normedHeads };
}

/**
 * A block keeps: its input and the sum after attention, each also in its normed form, and 1/rms of
 * both norms; the packed q, k and v; attention's output with its softmax's maximum and sum; gate, up
 * and their product. A product without a gradient of its weight keeps no input.
 */
function partsOf(config: LlamaConfig, element: 2 | 4, adapted: Adapted | null): BlockParts {
  const { hiddenSize, ffn, query, keyValue, heads, normedHeads } = sizesOf(config);
  const inputOf = (product: "qkv" | "gateUp" | "down", width: number) =>
    adapted === null || adapted[product] ? width : 0;
  const attention =
    element * (hiddenSize + inputOf("qkv", hiddenSize) + 2 * query + keyValue) +
    4 * (1 + 2 * heads) +
    normedHeads(element);
  const feedForward = element * (2 * ffn + inputOf("down", ffn));
  return {
    attention,
    feedForwardInput: element * (hiddenSize + inputOf("gateUp", hiddenSize)) + 4,
    feedForward,
    recomputedFeedForward: { kept: element * 2 * hiddenSize + 4, again: feedForward },
    gradients: element * (3 * ffn + 2 * hiddenSize + query + keyValue),
  };
}

/**
 * In fp8, products keep the 8 bits of their inputs, transposed, and a recomputed feed-forward part
 * begins before its norm. A block keeps: the sum before each norm in bf16 and the normed rows in 8
 * bits, with 1/rms; packed q, k and v; attention's output in both, with its statistics; gate and up;
 * their product in 8 bits. A frozen product keeps nothing in 8 bits, but adapters its input in bf16.
 */
function partsInFp8(config: LlamaConfig, adapted: Adapted | null): BlockParts {
  const { hiddenSize, ffn, query, keyValue, heads, normedHeads } = sizesOf(config);
  const inputOf = (product: "qkv" | "gateUp" | "down", width: number) => {
    if (adapted === null) return width;
    return adapted[product] ? 2 * width : 0;
  };
  const mixed = adapted === null ? 3 * query : 2 * query;
  const attention =
    2 * (hiddenSize + query + keyValue) +
    inputOf("qkv", hiddenSize) +
    mixed +
    4 * (1 + 2 * heads) +
    normedHeads(2);
  const feedForwardInput = 2 * hiddenSize + inputOf("gateUp", hiddenSize) + 4;
  const feedForward = 4 * ffn + inputOf("down", ffn);
  const startsAfterNorm = adapted !== null && (adapted.gateUp || adapted.down);
  return {
    attention,
    feedForwardInput,
    feedForward,
    recomputedFeedForward: startsAfterNorm
      ? { kept: 4 * hiddenSize + 4, again: feedForward }
      : { kept: 2 * hiddenSize, again: feedForwardInput + feedForward },
    // A gradient is in 8 bits twice, as rows and as columns.
    gradients: 2 * (3 * ffn + 3 * hiddenSize + query + keyValue),
  };
}
