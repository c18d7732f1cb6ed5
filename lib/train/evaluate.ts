import type { RunConfig } from "../config/index.js";
import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { documentStarts, splitWindows } from "../data/windows.js";
import { generate } from "../generate/generate.js";
import type { Llama } from "../model/llama.js";
import { type DocumentChoice, documentOptions, needStarts } from "./documents.js";
import type { Sample, Validation } from "./metrics.js";

/**
 * Mean loss on held-out documents. The windows are always the same ones, the first of the mixture, so that the figures of
 * a run can be compared.
 * Documents are kept apart as in training.
 * @param batches micro-batches of `microBatch` windows; at most as many windows as there are
 */
export async function validationLoss(
  model: Llama,
  mixture: Mixture,
  options: { batches: number; microBatch: number; documents?: DocumentChoice },
): Promise<Validation> {
  const { batches, microBatch, documents } = options;
  const { sequenceLength } = mixture;
  const total = Math.min(batches * microBatch, mixture.windows);
  const countAt = (position: number) => Math.min(microBatch, total - position);
  const enqueue = (windows: Int32Array, position: number): Promise<number> => {
    const count = countAt(position);
    const { inputs, targets } = splitWindows(windows, count, sequenceLength);
    const starts = needStarts(documents)
      ? documentStarts(windows, sequenceLength, (row) => mixture.marksAt(position + row))
      : undefined;
    const ids = (data: Int32Array): Tensor =>
      tensor(data, { shape: [count, sequenceLength], dtype: "i32", device: model.device });
    model.store.parallel?.beginMicroBatch(false);
    return scope(() =>
      noGrad(() =>
        model
          .loss(ids(inputs), ids(targets), documentOptions(documents, starts && ids(starts)))
          .item(),
      ),
    );
  };
  const lossesAt = (places: readonly number[]): Promise<number[]> =>
    readAndEnqueue(places, (position) => mixture.read(position, countAt(position)), enqueue);
  const positions = Array.from({ length: Math.ceil(total / microBatch) }, (_, i) => i * microBatch);
  const losses = await sharedLosses(model, positions, lossesAt);
  const sum = positions.reduce((all, at, i) => all + (losses[i] as number) * countAt(at), 0);
  const loss = sum / total;
  const { bytesPerToken } = mixture;
  return { loss, bitsPerByte: bytesPerToken > 0 ? loss / Math.LN2 / bytesPerToken : null };
}

/** Micro-batches that may be on the device before the first of them is waited for: it is never without work. */
const runAhead = 2;

/** Reads one micro-batch while others are computed; enqueues them in their order, which is the same on all processes. */
async function readAndEnqueue(
  positions: readonly number[],
  read: (position: number) => Promise<Int32Array>,
  enqueue: (windows: Int32Array, position: number) => Promise<number>,
): Promise<number[]> {
  // Waited for later; a failure until then must not count as unhandled.
  const start = <T>(work: Promise<T>): Promise<T> => {
    work.catch(() => {});
    return work;
  };
  const losses: Promise<number>[] = [];
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
  model: Llama,
  positions: readonly number[],
  lossesAt: (positions: readonly number[]) => Promise<number[]>,
): Promise<ArrayLike<number>> {
  const { parallel } = model.store;
  if (!parallel) return await lossesAt(positions);
  const { worldSize, rank } = parallel;
  // All processes compute in each round, as divided weights are gathered by all; the last rounds' surplus is not counted.
  const rounds = Math.ceil(positions.length / worldSize);
  const shares = Array.from({ length: rounds }, (_, round) => round * worldSize + rank);
  const losses = await lossesAt(
    shares.map((index) => positions[Math.min(index, positions.length - 1)] as number),
  );
  const mine = new Float32Array(positions.length);
  for (const [round, index] of shares.entries()) {
    if (index < positions.length) mine[index] = (losses[round] as number) * worldSize;
  }
  // Zeros where others have computed: the mean of these sums is exact for a power of two, and the same on all of them.
  return await scope(async () => {
    const all = tensor(mine, { device: model.device });
    parallel.average(all);
    return await all.toArray();
  });
}

/** A continuation of each prompt; the same step and seed give the same text. */
export async function writeSamples(
  model: Llama,
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
