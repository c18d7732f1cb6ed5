import type { RunConfig } from "../config/index.js";
import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { scope } from "../core/scope.js";
import { type DocumentOptions, makeBatch } from "../data/loader.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { generate } from "../generate/generate.js";
import { batchTensors, countTargets } from "../model/batch.js";
import type { LanguageModel } from "../model/language-model.js";
import type { Sample, Validation } from "./metrics.js";

/** Loss of a micro-batch, and how many of its windows' targets it is the mean of. */
interface BatchLoss {
  loss: number;
  /** Targets that count, in windows: their number divided by the sequence length. */
  weight: number;
}

/**
 * Mean loss over the targets of held-out documents. The windows are always the same ones, the first of the mixture, so that
 * the figures of a run can be compared. Documents are kept apart as in training.
 * @param options `batches`: micro-batches of `microBatch` windows; at most as many windows as there are
 */
export async function validationLoss(
  model: LanguageModel,
  mixture: Mixture,
  options: { batches: number; microBatch: number; documents?: DocumentOptions },
): Promise<Validation> {
  const { batches, microBatch, documents = {} } = options;
  const { sequenceLength } = mixture;
  const total = Math.min(batches * microBatch, mixture.windows);
  const countAt = (position: number) => Math.min(microBatch, total - position);
  const enqueue = async (windows: Int32Array, position: number): Promise<BatchLoss> => {
    const marksOf = (row: number) => mixture.marksAt(position + row);
    const batch = makeBatch(windows, countAt(position), sequenceLength, documents, marksOf);
    model.store.parallel?.beginMicroBatch(false);
    const loss = scope(() => noGrad(() => model.loss(batchTensors(batch, model.device)).item()));
    return { loss: await loss, weight: countTargets(batch.targets) / sequenceLength };
  };
  const lossesAt = (places: readonly number[]): Promise<BatchLoss[]> =>
    readAndEnqueue(places, (position) => mixture.read(position, countAt(position)), enqueue);
  const positions = Array.from({ length: Math.ceil(total / microBatch) }, (_, i) => i * microBatch);
  const losses = await sharedLosses(model, positions, lossesAt);
  const sum = losses.reduce((all, { loss, weight }) => all + (weight > 0 ? loss * weight : 0), 0);
  const loss = sum / losses.reduce((all, { weight }) => all + weight, 0);
  const { bytesPerToken } = mixture;
  return { loss, bitsPerByte: bytesPerToken > 0 ? loss / Math.LN2 / bytesPerToken : null };
}

/** Micro-batches that may be on the device before the first of them is waited for: it is never without work. */
const runAhead = 2;

/** Reads one micro-batch while others are computed; enqueues them in their order, which is the same on all processes. */
async function readAndEnqueue(
  positions: readonly number[],
  read: (position: number) => Promise<Int32Array>,
  enqueue: (windows: Int32Array, position: number) => Promise<BatchLoss>,
): Promise<BatchLoss[]> {
  // Waited for later; a failure until then must not count as unhandled.
  const start = <T>(work: Promise<T>): Promise<T> => {
    work.catch(() => {});
    return work;
  };
  const losses: Promise<BatchLoss>[] = [];
  let next = start(read(positions[0] as number));
  for (const [index, position] of positions.entries()) {
    const windows = await next;
    const following = positions[index + 1];
    if (following !== undefined) next = start(read(following));
    losses.push(start(enqueue(windows, position)));
    await losses[index - runAhead];
  }
  return await Promise.all(losses);
}

/** The loss at each position; where several processes train together, each computes its share of them. */
async function sharedLosses(
  model: LanguageModel,
  positions: readonly number[],
  lossesAt: (positions: readonly number[]) => Promise<BatchLoss[]>,
): Promise<BatchLoss[]> {
  const { parallel } = model.store;
  if (!parallel) return await lossesAt(positions);
  const { worldSize, rank } = parallel;
  // All processes compute in each round, as divided weights are gathered by all; the last rounds' surplus is not counted.
  const rounds = Math.ceil(positions.length / worldSize);
  const shares = Array.from({ length: rounds }, (_, round) => round * worldSize + rank);
  const losses = await lossesAt(
    shares.map((index) => positions[Math.min(index, positions.length - 1)] as number),
  );
  const mine = new Float32Array(2 * positions.length);
  for (const [round, index] of shares.entries()) {
    if (index >= positions.length) continue;
    const { loss, weight } = losses[round] as BatchLoss;
    mine[2 * index] = loss * worldSize;
    mine[2 * index + 1] = weight * worldSize;
  }
  // Zeros where others have computed: the mean of these sums is exact for a power of two, and equal on all of them.
  return await scope(async () => {
    const all = tensor(mine, { device: model.device });
    parallel.average(all);
    const means = await all.toArray();
    return positions.map((_, index) => ({
      loss: means[2 * index] as number,
      weight: means[2 * index + 1] as number,
    }));
  });
}

/** A continuation of each prompt; the same step and seed give the same text. */
export async function writeSamples(
  model: LanguageModel,
  tokenizer: Tokenizer,
  config: RunConfig,
  step: number,
): Promise<Sample[]> {
  const { prompts, maxTokens, temperature, topK, topP } = config.sample;
  const samples: Sample[] = [];
  for (const [index, prompt] of prompts.entries()) {
    let text = "";
    // A sequence of random numbers for each step and prompt.
    const seed = (config.seed + step * 1009 + index) % Number.MAX_SAFE_INTEGER;
    for await (const piece of generate(model, tokenizer, prompt, {
      maxTokens,
      temperature,
      topK,
      topP,
      seed,
    })) {
      text += piece;
    }
    samples.push({ prompt, text });
  }
  return samples;
}
