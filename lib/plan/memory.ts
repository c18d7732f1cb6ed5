import type { RunConfig } from "../config/index.js";
import type { StrategyName } from "../dist/strategy.js";
import { adapterGroups, describeModel } from "../model/architectures.js";
import type { PassCost } from "../model/cost.js";
import { costOf } from "../model/shapes.js";
import { planGroup } from "../nn/group.js";
import { matricesOf } from "../optim/muon.js";

/** Bytes on one device, by purpose. */
export interface MemoryPlan {
  weights: number;
  /** The frozen copy of the model that preferences are learnt relative to; 0 without one. */
  reference: number;
  /** The fp32 copy that the optimizer updates; 0 if the weights are fp32 themselves. */
  masterWeights: number;
  gradients: number;
  moments: number;
  /**
   * For sharded weights: two whole groups of layers with their gradients, during their computation.
   */
  wholeGroups: number;
  /** Extra memory of gradients that are in transit to other processes. */
  inTransit: number;
  /** Activations that the forward pass keeps for the backward pass. */
  activations: number;
  /**
   * One block's intermediate gradients and recomputed activations. Never in memory together with
   * `lossHead`.
   */
  workingSet: number;
  /**
   * The loss's chunk of logits (all of them never exist at once) and its gradient of the head.
   * Never in memory together with `workingSet`.
   */
  lossHead: number;
}

/** The options that decide how much memory training takes. */
export interface MemoryShape extends Pick<RunConfig, "model" | "precision" | "recompute"> {
  data: { sequenceLength: number };
  batch: { microBatch: number; accumulation?: number };
  /** The device; anything but "cpu" is a GPU. */
  device?: string;
  /** Low-rank adapters, which alone are trained. */
  lora?: RunConfig["lora"];
  /** Learning from preferences, which needs a reference. */
  dpo?: RunConfig["dpo"];
  /** The optimizer. Default: AdamW. */
  optimizer?: { type: RunConfig["optimizer"]["type"] };
}

/** The division of a model's state among several processes. */
export interface Division {
  parallel: StrategyName;
  /** Processes of the run. */
  ranks: number;
  /** Processes that share one copy of the model in hybrid_shard. */
  shardSize: number;
  /** The dtype in which gradients are summed. */
  reduce: RunConfig["distributed"]["reduce"];
}

/**
 * Size of a chunk of logits in linearCrossEntropy (kChunkBytes of csrc/cpu and
 * csrc/cuda/ops/linear_cross_entropy).
 */
const logitsChunk = {
  /** f32 logits; at least this many rows. */
  cpu: { bytes: 16 * 2 ** 20, fewestRows: 64 },
  /** f32 logits and, for a bf16 model, their gradient as well. */
  cuda: { bytes: 2 * 2 ** 30, fewestRows: 128 },
} as const;

/**
 * Bytes that training takes on one device, by part.
 * @param division among several processes; default: one process
 */
export function planMemory(shape: MemoryShape, division?: Division): MemoryPlan {
  const { model, data, batch, precision, recompute } = shape;
  const element = precision === "fp32" ? 4 : 2;
  const tokens = batch.microBatch * data.sequenceLength;
  const pass = passOf(model);
  const { lora, dpo } = shape;
  const kind = { fp8: precision === "fp8", ...(lora && { lora }) };
  const { kept, working } = pass.activations(element, recompute, kind);

  const logits = logitsBytes(tokens, pass.vocabSize, element, shape.device === "cpu");
  // Without a mean over targets, the head's gradient goes where it belongs, unless it is added up.
  const added = !dpo || (batch.accumulation ?? 1) > 1;
  const headGradient = lora || !added ? 0 : 4 * pass.vocabSize * pass.headWidth;

  return {
    ...(lora ? planAdapters(shape, lora, division) : planState(shape, division)),
    reference: referenceBytes(shape),
    activations: tokens * kept,
    workingSet: tokens * working,
    lossHead: headGradient + logits,
  };
}

/** The reference of preferences, whole on every process. With adapters, the frozen model is it. */
function referenceBytes({ model, precision, lora, dpo }: MemoryShape): number {
  if (!dpo || lora) return 0;
  const element = precision === "fp32" ? 4 : 2;
  const inFp8 = precision === "fp8" ? fp8Bytes(model) : 0;
  return element * sum(groupSizes(model, 1)) + inFp8;
}

/** The frozen weights, whole on every process, and the state of the adapters. */
function planAdapters(
  { model, precision, batch }: MemoryShape,
  lora: NonNullable<MemoryShape["lora"]>,
  division: Division | undefined,
) {
  const element = precision === "fp32" ? 4 : 2;
  const parts = division ? partsOf(division) : { optimizer: 1, weights: 1 };
  const sizes = adapterGroupSizes(model, lora, parts.optimizer);
  const total = sum(sizes);
  const alone = division === undefined || division.ranks === 1;
  const slots = slotsOf(sizes);
  const sending = { total, slots, accumulates: (batch.accumulation ?? 1) > 1 };
  return {
    weights:
      element * (sum(groupSizes(model, 1)) + total / parts.weights) +
      (precision === "fp8" ? fp8Bytes(model) : 0),
    masterWeights: precision !== "fp32" ? (4 * total) / parts.optimizer : 0,
    gradients: (4 * total) / parts.weights,
    moments: (8 * total) / parts.optimizer,
    wholeGroups: parts.weights > 1 ? (element + 4) * slots : 0,
    inTransit: alone ? 0 : inTransit(division, sending),
  };
}

/** Elements of the adapters' groups, one for each block, padded for a division into `parts`. */
export function adapterGroupSizes(
  model: RunConfig["model"],
  lora: NonNullable<MemoryShape["lora"]>,
  parts: number,
): number[] {
  return adapterGroups(model, lora).map((spec, index) => planGroup(spec, index, parts).size);
}

/** Elements of the two slots that gather whole groups, each as large as its largest group. */
function slotsOf(sizes: readonly number[]): number {
  return sum([0, 1].map((parity) => Math.max(0, ...sizes.filter((_, i) => i % 2 === parity))));
}

/** Blocks, head and activations of a model. Every model that a recipe may name reports them. */
export function passOf(model: RunConfig["model"]): PassCost {
  return costOf(model).pass as PassCost;
}

/** Elements of each group of parameters, padded for a division into `parts` (lib/nn/group.ts). */
export function groupSizes(model: RunConfig["model"], parts: number): number[] {
  const groups = describeModel(model).parameterGroups();
  return groups.map((spec, index) => planGroup(spec, index, parts).size);
}

/**
 * Number of equal parts into which a group's weights, gradients and optimizer state are each
 * divided.
 */
export function partsOf({ parallel, ranks, shardSize }: Division) {
  const parts = { replicated: 1, zero1: ranks, full_shard: ranks, hybrid_shard: shardSize }[
    parallel
  ];
  const shards = parallel === "replicated" || parallel === "zero1" ? 1 : parts;
  return { optimizer: parts, weights: shards };
}

/** Weights, gradients and optimizer state, as the strategies in lib/dist allocate them. */
function planState(shape: MemoryShape, division: Division | undefined) {
  const { model, precision, batch } = shape;
  const element = precision === "fp32" ? 4 : 2;
  const parts = division ? partsOf(division) : { optimizer: 1, weights: 1 };
  const sizes = groupSizes(model, parts.optimizer);
  const total = sum(sizes);
  const slots = slotsOf(sizes);
  const sharded = parts.weights > 1;
  const alone = division === undefined || division.ranks === 1;
  return {
    // Where a rank holds all weights, it also holds those of the blocks in fp8, in both layouts.
    weights:
      (element * total) / parts.weights + (precision === "fp8" && !sharded ? fp8Bytes(model) : 0),
    masterWeights: precision !== "fp32" ? (4 * total) / parts.optimizer : 0,
    gradients: (4 * total) / parts.weights,
    // Muon's own memory in a step (directions, one matrix's iteration) is less than the activations,
    // which are gone by then.
    moments: (4 * total + 4 * secondMoments(shape, total)) / parts.optimizer,
    wholeGroups: sharded ? (element + 4) * slots : 0,
    inTransit: alone
      ? 0
      : inTransit(division, { total, slots, accumulates: (batch.accumulation ?? 1) > 1 }),
  };
}

/** Number of parameters that have a second moment. */
function secondMoments({ model, optimizer }: MemoryShape, total: number): number {
  return optimizer?.type === "muon" ? total - muonParameters(model) : total;
}

/** Number of parameters that Muon updates. */
export function muonParameters(model: RunConfig["model"]): number {
  return muonMatrices(model).reduce((sum, [rows, columns]) => sum + rows * columns, 0);
}

/** Rows and columns of the matrices that Muon updates. */
export function muonMatrices(model: RunConfig["model"]): (readonly [number, number])[] {
  const described = describeModel(model);
  const parameters = described.parameters().filter((part) => part !== described.headWeight);
  return parameters.flatMap(matricesOf);
}

/** Bytes of the blocks' weights in fp8, as rows and as columns. */
function fp8Bytes(model: RunConfig["model"]): number {
  const { parameters } = costOf(model);
  return parameters ? 2 * (parameters.attention + parameters.feedForward) : 0;
}

function inTransit(
  division: Division,
  sizes: { total: number; slots: number; accumulates: boolean },
): number {
  const { parallel, reduce } = division;
  const { total, slots, accumulates } = sizes;
  const parts = partsOf(division).optimizer;
  const rounded = reduce === "bf16" ? 2 : 0;
  switch (parallel) {
    case "replicated":
      return rounded * total;
    case "zero1":
      // Whole groups are freed as soon as they are sent. Each rank's parts stay until the end of
      // the backward pass.
      return rounded * (slots + total / parts);
    default: {
      // The part from a later micro-batch arrives in addition to the sum of the earlier ones.
      const arriving = accumulates ? (4 * slots) / parts : 0;
      const copies = parallel === "hybrid_shard" ? (rounded * total) / parts : 0;
      return Math.max(copies, arriving + rounded * (slots + slots / parts));
    }
  }
}

/**
 * Bytes of a chunk of logits and their gradient. All chunks have about equal length; on a GPU, in
 * whole tiles of 128 rows.
 */
function logitsBytes(tokens: number, vocabSize: number, element: 2 | 4, onCpu: boolean): number {
  const perLogit = element === 2 ? 6 : 4;
  const { bytes, fewestRows } = logitsChunk[onCpu ? "cpu" : "cuda"];
  const tile = onCpu ? 1 : 128;
  const counted = onCpu ? 4 : perLogit;
  const most = Math.max(fewestRows, Math.floor(bytes / (counted * vocabSize) / tile) * tile);
  const each = Math.ceil(tokens / Math.ceil(tokens / most));
  return perLogit * vocabSize * Math.min(tokens, Math.ceil(each / tile) * tile);
}

/**
 * The plan with its peak. The loss frees its logits before backward reaches the first block, so
 * only the larger of the two counts.
 */
export function withTotal(memory: MemoryPlan): MemoryPlan & { total: number } {
  const { workingSet, lossHead, ...lasting } = memory;
  return { ...memory, total: sum(Object.values(lasting)) + Math.max(workingSet, lossHead) };
}

function sum(values: readonly number[]): number {
  return values.reduce((all, value) => all + value, 0);
}
