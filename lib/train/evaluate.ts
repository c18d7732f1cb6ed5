import { noGrad } from "../autograd.js";
import { tensor } from "../create.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { documentStarts, splitWindows } from "../data/windows.js";
import { generate } from "../model/generate.js";
import type { Llama } from "../model/llama.js";
import { scope } from "../scope.js";
import type { Tensor } from "../tensor.js";
import type { RunConfig } from "./config.js";
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
  const lossAt = async (position: number): Promise<number> => {
    const count = countAt(position);
    const windows = await mixture.read(position, count);
    const { inputs, targets } = splitWindows(windows, count, sequenceLength);
    const starts = needStarts(documents)
      ? documentStarts(windows, sequenceLength, (row) => mixture.marksAt(position + row))
      : undefined;
    const ids = (data: Int32Array): Tensor =>
      tensor(data, { shape: [count, sequenceLength], dtype: "i32", device: model.device });
    return await scope(() =>
      noGrad(() =>
        model
          .loss(ids(inputs), ids(targets), documentOptions(documents, starts && ids(starts)))
          .item(),
      ),
    );
  };
  const positions = Array.from({ length: Math.ceil(total / microBatch) }, (_, i) => i * microBatch);
  const losses = await sharedLosses(model, positions, lossAt);
  const sum = positions.reduce((all, at, i) => all + (losses[i] as number) * countAt(at), 0);
  const loss = sum / total;
  const { bytesPerToken } = mixture;
  return { loss, bitsPerByte: bytesPerToken > 0 ? loss / Math.LN2 / bytesPerToken : null };
}

/** The loss at each position; where several processes train together, each computes its share of them. */
async function sharedLosses(
  model: Llama,
  positions: readonly number[],
  lossAt: (position: number) => Promise<number>,
): Promise<ArrayLike<number>> {
  const { parallel } = model.store;
  if (!parallel) {
    const losses: number[] = [];
    for (const position of positions) losses.push(await lossAt(position));
    return losses;
  }
  const { worldSize, rank } = parallel;
  const mine = new Float32Array(positions.length);
  for (let first = 0; first < positions.length; first += worldSize) {
    // All processes compute in each round, as divided weights are gathered by all; the last rounds' surplus is not counted.
    const index = first + rank;
    parallel.beginMicroBatch(false);
    const loss = await lossAt(positions[Math.min(index, positions.length - 1)] as number);
    if (index < positions.length) mine[index] = loss * worldSize;
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
