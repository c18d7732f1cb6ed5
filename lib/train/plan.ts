import { parameterBreakdown, parameterCount } from "../model/config.js";
import type { RunConfig } from "./config.js";
import { type FlopsPerToken, flopsPerToken } from "./flops.js";

/** How fast the run is expected to go; by one of the two figures. */
export interface PlanSpeed {
  /** Achieved TFLOP/s of one device, counted causally. */
  tflops?: number;
  /** Measured tokens/s of one device. */
  tokensPerSecond?: number;
  /** Devices that share the work. */
  devices?: number;
}

/** Bytes on one device, by what they hold. */
export interface MemoryPlan {
  weights: number;
  /** fp32 copy that the optimizer updates; none when the weights are fp32 themselves. */
  masterWeights: number;
  gradients: number;
  moments: number;
  /** What the forward pass keeps for the backward pass. */
  activations: number;
  /** One block's intermediate gradients, and what a recomputed block makes again. */
  workingSet: number;
  /** The loss's chunk of logits (all of them never exist at once) and its gradient of the head. */
  lossHead: number;
}

export interface TimeEstimate {
  label: string;
  tokensPerSecond: number;
  seconds: number;
  deviceHours: number;
  /** Device-hours for 300 billion tokens, the measure of TinyLlama's README. */
  hoursPer300B: number;
}

export interface RunPlan {
  parameters: ReturnType<typeof parameterBreakdown> & { total: number };
  memory: MemoryPlan & { total: number };
  flops: FlopsPerToken;
  tokensPerStep: number;
  tokens: number;
  estimates: TimeEstimate[];
}

/** What linearCrossEntropy makes at a time (kChunkBytes of csrc/cpu and csrc/cuda/linear_cross_entropy). */
const logitsChunk = {
  /** f32 logits; not fewer rows than these. */
  cpu: { bytes: 16 * 2 ** 20, fewestRows: 64 },
  /** f32 logits and, beside those of a bf16 model, their gradient. */
  cuda: { bytes: 512 * 2 ** 20, fewestRows: 128 },
} as const;

/** A100-hours for 300 billion tokens that others published (TinyLlama's README). */
export const publishedHoursPer300B = [
  { model: "TinyLlama-1.1B", hours: 3456 },
  { model: "Pythia-1.0B", hours: 4830 },
  { model: "MPT-1.3B", hours: 7920 },
] as const;

/** Rates that others reached on a model of a billion parameters, in causal TFLOP/s of one device. */
const references = [
  { label: "A100 at TinyLlama's efficiency", tflops: 162.2 },
  { label: "H100 at PyTorch's (compiled, flash attention)", tflops: 479 },
] as const;

/** Smaller models do not fill such a device, so the rates say nothing about them. */
const fewestReferenceParameters = 5e7;

/** What a run takes, before it starts. */
export function planRun(config: RunConfig, speed: PlanSpeed = {}): RunPlan {
  const { model, data, batch, steps } = config;
  const flops = flopsPerToken(model, data.sequenceLength);
  const tokensPerStep = batch.microBatch * batch.accumulation * data.sequenceLength;
  const tokens = tokensPerStep * steps;
  const devices = speed.devices ?? 1;

  const estimate = (label: string, perDevice: number): TimeEstimate => {
    const seconds = tokens / (perDevice * devices);
    return {
      label,
      tokensPerSecond: perDevice * devices,
      seconds,
      deviceHours: (seconds * devices) / 3600,
      hoursPer300B: 300e9 / perDevice / 3600,
    };
  };
  const rate = (tflops: number) => (tflops * 1e12) / flops.causal;
  const estimates: TimeEstimate[] = [];
  if (speed.tokensPerSecond !== undefined) {
    estimates.push(estimate("as measured", speed.tokensPerSecond));
  }
  if (speed.tflops !== undefined) {
    estimates.push(estimate(`at ${speed.tflops} TFLOP/s`, rate(speed.tflops)));
  }
  const total = parameterCount(model);
  if (config.device !== "cpu" && total >= fewestReferenceParameters) {
    for (const { label, tflops } of references) estimates.push(estimate(label, rate(tflops)));
  }

  const memory = planMemory(config);
  return {
    parameters: { ...parameterBreakdown(model), total },
    memory: { ...memory, total: Object.values(memory).reduce((sum, bytes) => sum + bytes, 0) },
    flops,
    tokensPerStep,
    tokens,
    estimates,
  };
}

/** What decides how much memory training takes. */
export interface MemoryShape extends Pick<RunConfig, "model" | "precision" | "recompute"> {
  data: { sequenceLength: number };
  batch: { microBatch: number };
  /** A GPU unless it is "cpu". */
  device?: string;
}

/** Bytes that training takes on one device, by part. */
export function planMemory(shape: MemoryShape): MemoryPlan {
  const { model, data, batch, precision, recompute } = shape;
  const parameters = parameterCount(model);
  const element = precision === "bf16" ? 2 : 4;
  const tokens = batch.microBatch * data.sequenceLength;
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, headSize } = model;
  const query = heads * headSize;
  const keyValue = 2 * kvHeads * headSize;

  // One block keeps, per token: its input and the sum after attention, both normed (4 · hidden) with the
  // norms' 1/rms; the packed q, k, v and attention's output with its logsumexp; gate, up and their product.
  const attentionPart = element * (2 * hiddenSize + 2 * query + keyValue) + 4 * (1 + heads);
  const feedForwardInput = element * 2 * hiddenSize + 4;
  const feedForwardPart = element * 3 * intermediateSize;
  const kept = {
    none: attentionPart + feedForwardInput + feedForwardPart,
    ffn: attentionPart + feedForwardInput,
    block: element * 2 * hiddenSize, // the stream and what is added to it
  }[recompute];
  const again = {
    none: 0,
    ffn: feedForwardPart,
    block: attentionPart + feedForwardInput + feedForwardPart,
  }[recompute];
  const gradients = element * (3 * intermediateSize + 2 * hiddenSize + query + keyValue);
  // Beside the blocks: token ids and targets, the embedded input, the final norm and its gradient.
  const ends = 8 + element * 3 * hiddenSize + 4;

  return {
    weights: element * parameters,
    masterWeights: precision === "bf16" ? 4 * parameters : 0,
    gradients: 4 * parameters,
    moments: 8 * parameters,
    activations: tokens * (layers * kept + ends),
    workingSet: tokens * (again + gradients),
    lossHead:
      4 * model.vocabSize * hiddenSize +
      logitsBytes(tokens, model.vocabSize, element, shape.device === "cpu"),
  };
}

/** Bytes of a chunk of logits and their gradient; the chunks are made equally long, in whole tiles of 128 rows on a GPU. */
function logitsBytes(tokens: number, vocabSize: number, element: 2 | 4, onCpu: boolean): number {
  const perLogit = element === 2 ? 6 : 4;
  const { bytes, fewestRows } = logitsChunk[onCpu ? "cpu" : "cuda"];
  const tile = onCpu ? 1 : 128;
  const counted = onCpu ? 4 : perLogit;
  const most = Math.max(fewestRows, Math.floor(bytes / (counted * vocabSize) / tile) * tile);
  const each = Math.ceil(tokens / Math.ceil(tokens / most));
  return perLogit * vocabSize * Math.min(tokens, Math.ceil(each / tile) * tile);
}
