import type { BlockFlops, PartFlops, StepFlops, StepKind } from "./cost.js";
import type { LlamaConfig } from "./llama-config.js";
import { windowOf } from "./llama-variations.js";
import { adaptedStages } from "./lora-config.js";

/** Products of a block in the order of the forward pass, with attention between the first two. */
const stages = ["qkv", "output", "gateUp", "down"] as const;
const attentionPlace = 0.5;

/**
 * The products that a training step of a Llama computes, per token. A frozen model has no gradients
 * of weights. The gradients of activations reach back to the first adapter of the first block.
 */
export function llamaStepFlops(
  config: LlamaConfig,
  sequenceLength: number,
  { lora, preferences = false, recompute = "none", attention = "causal" }: StepKind,
): StepFlops {
  const weights = weightsOf(config);
  const adapters = lora && adaptedStages(lora, config);
  const blockOf = (layer: number): BlockFlops => {
    const seen =
      attention === "full" ? 2 * sequenceLength : seenInLayer(config, layer, sequenceLength);
    const mixing = 2 * config.heads * config.headSize * seen;
    const adapted = (place: number): number => (adapters ? 2 * (adapters[place]?.weights ?? 0) : 0);
    const forward = { linear: 0, attention: mixing };
    const backward = { linear: 0, attention: 0 };
    // The first block's input has no gradient where nothing before it is trained.
    const first = adapters && layer === 0 ? adapters.findIndex((stage) => stage !== null) : -1;
    const reaches = (place: number): boolean => place > first;
    for (const place of stages.keys()) {
      const own = 2 * (weights[place] as number);
      forward.linear += own + adapted(place);
      if (!adapters) {
        backward.linear += 2 * own;
        continue;
      }
      if (reaches(place)) backward.linear += own + 2 * adapted(place);
      else if (place === first) {
        // The gradients of both halves, and that of the vector between them.
        backward.linear += 2 * adapted(place) - 2 * (adapters[place]?.downWeights ?? 0);
      }
    }
    if (reaches(attentionPlace)) backward.attention = 2 * mixing;
    const ffn = [2, 3].reduce((sum, place) => sum + 2 * (weights[place] as number), 0);
    const again = {
      none: nothing,
      ffn: { linear: ffn + adapted(2) + adapted(3), attention: 0 },
      block: forward,
    }[recompute];
    return { forward, backward, again };
  };
  const blocks = Array.from({ length: config.layers }, (_, layer) => blockOf(layer));
  const logits = 2 * config.vocabSize * config.hiddenSize;
  const gradients = adapters ? logits : 2 * logits;
  const reference = preferences ? referenceOf(config, blocks, weights, logits) : nothing;
  // The head's gradients of a mean over tokens are ready after forward. Those of a loss of
  // preferences need the logits again in backward.
  const head = preferences
    ? { forward: logits, backward: gradients, again: logits }
    : { forward: logits + gradients, backward: 0, again: 0 };
  return { reference, blocks, head };
}

const nothing: PartFlops = { linear: 0, attention: 0 };

/** Weights of each product of a block. */
function weightsOf(config: LlamaConfig): readonly number[] {
  const { hiddenSize, intermediateSize, heads, kvHeads, headSize } = config;
  const qkv = hiddenSize * (heads + 2 * kvHeads) * headSize;
  const output = heads * headSize * hiddenSize;
  return [qkv, output, 2 * hiddenSize * intermediateSize, intermediateSize * hiddenSize];
}

/** The forward pass of the whole model without adapters. */
function referenceOf(
  { layers }: LlamaConfig,
  blocks: readonly BlockFlops[],
  weights: readonly number[],
  logits: number,
): PartFlops {
  const products = 2 * weights.reduce((sum, count) => sum + count, 0);
  const attention = blocks.reduce((sum, { forward }) => sum + forward.attention, 0);
  return { linear: layers * products + logits, attention };
}

/**
 * Twice the number of tokens that a token of a layer attends to on average: T without a window.
 */
export function seenInLayer(config: LlamaConfig, layer: number, sequenceLength: number): number {
  const window = Math.min(windowOf(config, layer) ?? sequenceLength, sequenceLength);
  return 2 * window - (window * window) / sequenceLength;
}
