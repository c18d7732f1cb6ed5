import type { RunConfig } from "../config/index.js";
import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { scope } from "../core/scope.js";
import { type DocumentOptions, makeBatch } from "../data/loader.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { WindowRows } from "../data/windows.js";
import { generate, type TextCodec } from "../generate/generate.js";
import { batchTensors } from "../model/batch.js";
import type { LanguageModel } from "../model/language-model.js";
import type { RunChat } from "./chat.js";
import type { Sample, Validation } from "./metrics.js";
import { namedFigures, nextTokens, type Objective } from "./objective.js";

/** Loss of a micro-batch, and its weight in the mean. */
interface BatchLoss {
  /** The loss, and the figures of the objective. */
  values: readonly number[];
  /** Number of units: of targets, divided by the sequence length, or of pairs. */
  weight: number;
}

/**
 * Mean loss over the targets or pairs of held-out documents. The windows are always the first ones of the
 * mixture, so that results within a run are comparable. Documents are kept apart as in training.
 * A model that trains in fp8 computes in bf16 here: the loss is that of its checkpoint.
 * @param options `batches`: micro-batches of `microBatch` windows; limited to the number of
 *   existing windows
 */
export async function validationLoss(
  model: LanguageModel,
  mixture: Mixture,
  options: {
    batches: number;
    microBatch: number;
    documents?: DocumentOptions;
    objective?: Objective;
  },
): Promise<Validation> {
  const { batches, microBatch, documents = {}, objective = nextTokens } = options;
  const { sequenceLength } = mixture;
  const total = Math.min(batches * microBatch, mixture.windows);
  const countAt = (position: number) => Math.min(microBatch, total - position);
  const enqueue = async (windows: WindowRows, position: number): Promise<BatchLoss> => {
    const marksOf = (row: number) => mixture.marksAt(position + row);
    const batch = makeBatch(windows, countAt(position), sequenceLength, documents, marksOf);
    model.store.parallel?.beginMicroBatch(false);
    const measure = () => objective.measure(model, batchTensors(batch, model.device), batch);
    const pending = scope(() => {
      const { loss, figures } = noGrad(() => model.withoutFp8(measure));
      return Promise.all([loss.item(), figures?.toArray() ?? []]);
    });
    const [loss, figures] = await pending;
    const unit = objective === nextTokens ? sequenceLength : 1;
    return { values: [loss, ...figures], weight: objective.count(batch) / unit };
  };
  const lossesAt = (places: readonly number[]): Promise<BatchLoss[]> =>
    readAndEnqueue(places, (position) => mixture.readRows(position, countAt(position)), enqueue);
  const positions = Array.from({ length: Math.ceil(total / microBatch) }, (_, i) => i * microBatch);
  const losses = await sharedLosses(model, positions, lossesAt, 1 + objective.figures.length);
  const weights = losses.reduce((all, { weight }) => all + weight, 0);
  const means = [0, ...objective.figures].map((_, index) => {
    const sum = losses.reduce(
      (all, { values, weight }) => all + (weight > 0 ? (values[index] as number) * weight : 0),
      0,
    );
    return sum / weights;
  });
  const [loss, ...figures] = means as [number, ...number[]];
  const { bytesPerToken } = mixture;
  return {
    loss,
    bitsPerByte: bytesPerToken > 0 ? loss / Math.LN2 / bytesPerToken : null,
    ...(figures.length > 0 && { figures: namedFigures(objective, figures) }),
  };
}

/**
 * Micro-batches that may be enqueued before the first of them is awaited, so that the device always
 * has work.
 */
const runAhead = 2;

/**
 * Reads a micro-batch while earlier ones are computed. All processes enqueue the micro-batches in
 * the same order.
 */
async function readAndEnqueue(
  positions: readonly number[],
  read: (position: number) => Promise<WindowRows>,
  enqueue: (windows: WindowRows, position: number) => Promise<BatchLoss>,
): Promise<BatchLoss[]> {
  // The promise is awaited later. Until then a failure must not count as unhandled.
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

/**
 * The loss at each position. When several processes train together, each computes its share of the
 * positions.
 */
async function sharedLosses(
  model: LanguageModel,
  positions: readonly number[],
  lossesAt: (positions: readonly number[]) => Promise<BatchLoss[]>,
  values: number,
): Promise<BatchLoss[]> {
  const { parallel } = model.store;
  if (!parallel) return await lossesAt(positions);
  const { worldSize, rank } = parallel;
  // All processes compute in every round, because sharded weights are gathered by all of them.
  // Surplus results of the last round are not counted.
  const rounds = Math.ceil(positions.length / worldSize);
  const shares = Array.from({ length: rounds }, (_, round) => round * worldSize + rank);
  const losses = await lossesAt(
    shares.map((index) => positions[Math.min(index, positions.length - 1)] as number),
  );
  const width = values + 1;
  const mine = new Float32Array(width * positions.length);
  for (const [round, index] of shares.entries()) {
    if (index >= positions.length) continue;
    const { values, weight } = losses[round] as BatchLoss;
    mine.set(
      [...values, weight].map((value) => value * worldSize),
      width * index,
    );
  }
  // Positions of other processes hold zeros. The mean of these sums is exact if the number of
  // processes is a power of two, and equal on all of them.
  return await scope(async () => {
    const all = tensor(mine, { device: model.device });
    parallel.average(all);
    const means = await all.toArray();
    return positions.map((_, index) => {
      const own = [...means.subarray(width * index, width * (index + 1))];
      return { values: own.slice(0, values), weight: own[values] as number };
    });
  });
}

/**
 * Writes a continuation of each prompt, or of chats an answer to it. Equal steps and seeds give
 * equal text.
 * @param chat template of chats and the token that ends an answer; null if the model learns from text
 * @param end token that ends documents of text; null for the end-of-text token
 */
export async function writeSamples(
  model: LanguageModel,
  tokenizer: Tokenizer,
  config: RunConfig,
  step: number,
  chat: RunChat | null,
  end: number | null,
): Promise<Sample[]> {
  const { prompts, maxTokens, temperature, topK, topP } = config.sample;
  const samples: Sample[] = [];
  for (const [index, prompt] of prompts.entries()) {
    let text = "";
    // Each step and prompt has its own sequence of random numbers.
    const seed = (config.seed + step * 1009 + index) % Number.MAX_SAFE_INTEGER;
    const codec = chat ? chatCodec(tokenizer) : tokenizer;
    const beginning = chat ? chat.template.render([{ role: "user", content: prompt }]) : prompt;
    for await (const piece of generate(model, codec, beginning, {
      stopAt: (chat ? chat.endId : end) ?? tokenizer.eosId,
      maxTokens,
      temperature,
      topK,
      topP,
      seed,
    })) {
      text += piece;
    }
    samples.push({ prompt: chat ? `${prompt}\n` : prompt, text });
  }
  return samples;
}

/** A tokenizer that reads the special tokens that a chat template writes. */
function chatCodec(tokenizer: Tokenizer): TextCodec {
  const { eosId, vocabSize } = tokenizer;
  return {
    encode: (text) => tokenizer.encode(text, { specialTokens: "recognize" }),
    decodeStream: () => tokenizer.decodeStream(),
    eosId,
    vocabSize,
  };
}
