import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { later } from "../core/turn.js";
import type { LanguageModel } from "../model/language-model.js";
import { embedding, latestIds, linear, logSoftmax, type RowSampling } from "../ops/index.js";
import { encodeSampling, sampleEncodedRows } from "../ops/sample.js";
import { likeliest } from "./likeliest.js";
import type { RecordedSteps } from "./recorded-steps.js";
import type { ChosenToken, Sequence } from "./sequence.js";
import type { Slots } from "./slots.js";
import { samplingNumbers } from "./step-inputs.js";
import type { StepResults } from "./step-results.js";
import { paddedRows, paddedTokens } from "./step-sizes.js";

/** Tokens of one sequence that a step computes. */
export interface TokenSpan {
  sequence: Sequence;
  from: number;
  to: number;
  /** Whether the step draws the token after `to`. */
  draws: boolean;
}

/** A step on its way. */
export interface EngineStep {
  /** Spans that draw a token, in the order of the results. */
  drawing: readonly TokenSpan[];
  /** The drawn tokens, once the device has them. */
  tokens: Promise<ChosenToken[]>;
  /** Whether the step was a replay of a recorded one. */
  recorded: boolean;
}

/** Parts that the steps of an engine share on the device. */
export interface EngineParts {
  model: LanguageModel;
  /** The cache's pages, one tensor per layer. */
  layers: readonly Tensor[];
  slots: Slots;
  results: StepResults;
  recorded: RecordedSteps;
  /** The page of rows without a sequence, with which steps are filled up; null if they are not. */
  sparePage: number | null;
}

/** Settings of a row, with its rows of the tables. */
function rowSampling({ sequence }: TokenSpan, slots: Slots): RowSampling {
  const { slot, drawn, settings, usesPenalties } = sequence;
  const bias = slots.biasRow(sequence);
  return {
    ...settings.sampling,
    offset: (settings.firstDraw ?? 0) + drawn,
    ...(slot !== null && usesPenalties && { counts: slot }),
    ...(bias !== undefined && { bias }),
  };
}

/**
 * Enqueues one step of an engine: the model on ragged tokens of many sequences, and the draw of the
 * next token of those whose text ends in it. It returns at once. A step without tokens of prompts is
 * a recorded one.
 */
export function enqueueStep(parts: EngineParts, spans: readonly TokenSpan[]): EngineStep {
  const drawing = spans.filter(({ draws }) => draws);
  return outsideScopes(() =>
    scope(() => {
      const decodes = spans.every(({ from, to, draws }) => draws && to === from + 1);
      const replayed = decodes ? parts.recorded.run(spans.map(({ sequence }) => sequence)) : null;
      const logits = replayed ?? noGrad(() => enqueueApart(parts, spans, drawing));
      const recorded = replayed !== null;
      if (!logits) return { drawing, tokens: Promise.resolve([]), recorded };
      // The first read after a draw hears of the draw's error.
      const read = later(parts.results.read(drawing.length));
      const tops = topReads(parts.model, logits, drawing);
      return { drawing, tokens: later(results(read, drawing, tops)), recorded };
    }),
  );
}

/** Enqueues a step op by op. @returns the logits of the spans that draw; null if none does */
function enqueueApart(
  { model, layers, slots, results, sparePage }: EngineParts,
  spans: readonly TokenSpan[],
  drawing: readonly TokenSpan[],
): Tensor | null {
  const tokens = spans.reduce((sum, { from, to }) => sum + to - from, 0);
  const count = sparePage === null ? tokens : paddedTokens(tokens);
  model.store.parallel?.beginMicroBatch(false);
  const hidden = model.hidden(inputIds(model, spans, results, count), {
    layers,
    ...places(model, spans, count, sparePage),
  });
  if (drawing.length === 0) return null;
  const { device } = model;
  const rows = sparePage === null ? drawing.length : paddedRows(drawing.length);
  const { vocabSize } = model.config;
  const logits = lastLogits(model, hidden, spans, rows).view([drawing.length, vocabSize]);
  const settings = drawing.map((span) => rowSampling(span, slots));
  const { reals, numbers } = encodeSampling(settings, slots.tables);
  const shape = [drawing.length, samplingNumbers];
  const encoded = {
    reals: tensor(reals, { shape, device }),
    numbers: tensor(numbers, { shape, dtype: "i32", device }),
  };
  sampleEncodedRows(logits, encoded, slots.tables, results.rowsOf(drawing.length));
  return logits;
}

/** Log-probabilities of the whole vocabulary, for sequences that want the likeliest tokens. */
function topReads(
  model: LanguageModel,
  logits: Tensor,
  drawing: readonly TokenSpan[],
): Promise<Float32Array>[] {
  const { vocabSize } = model.config;
  const tops: Promise<Float32Array>[] = [];
  for (const [row, { sequence }] of drawing.entries()) {
    if (sequence.settings.top === 0) continue;
    const logprobs = noGrad(() => logSoftmax(logits.view([vocabSize], row * vocabSize)));
    tops[row] = later(logprobs.toArray() as Promise<Float32Array>);
  }
  return tops;
}

async function results(
  read: Promise<{ ids: Int32Array; logprobs: Float32Array }>,
  drawing: readonly TokenSpan[],
  tops: readonly Promise<Float32Array>[],
): Promise<ChosenToken[]> {
  const { ids, logprobs } = await read;
  const tokens: ChosenToken[] = [];
  for (const [row, { sequence }] of drawing.entries()) {
    const token: ChosenToken = { id: ids[row] as number, logprob: logprobs[row] as number };
    // Waiting for nothing would cost each token a turn of the microtasks.
    const top = tops[row];
    if (top) token.top = likeliest(await top, sequence.settings.top);
    tokens.push(token);
  }
  return tokens;
}

/** (1, count) i32. Tokens that only the device knows are copied on the device; the rest is 0. */
function inputIds(
  { device }: LanguageModel,
  spans: readonly TokenSpan[],
  { ids: latest }: StepResults,
  count: number,
): Tensor {
  const known = new Int32Array(count);
  const source = new Int32Array(count).fill(-1);
  let at = 0;
  for (const { sequence, from, to } of spans) {
    for (let position = from; position < to; position++, at++) {
      if (position < sequence.tokens.length) known[at] = sequence.tokens[position] as number;
      else source[at] = sequence.pending?.row as number;
    }
  }
  const shape = [1, count];
  const ids = tensor(known, { shape, device });
  if (source.every((row) => row < 0)) return ids;
  return latestIds(ids, tensor(source, { shape, device }), latest);
}

/** The places of a step's tokens in the cache. Further tokens belong to a row of the spare page. */
function places(
  model: LanguageModel,
  spans: readonly TokenSpan[],
  count: number,
  sparePage: number | null,
) {
  const { device } = model;
  const width = Math.max(...spans.map(({ sequence }) => sequence.pages.length));
  const rows = spans.length + (sparePage === null ? 0 : 1);
  const table = new Int32Array(rows * width).fill(sparePage ?? 0);
  const sequences: number[] = [];
  const positions: number[] = [];
  for (const [row, { sequence, from, to }] of spans.entries()) {
    table.set(sequence.pages, row * width);
    for (let position = from; position < to; position++) {
      sequences.push(row);
      positions.push(position);
    }
  }
  while (positions.length < count) {
    sequences.push(spans.length);
    positions.push(0);
  }
  const perToken = (values: readonly number[]) =>
    tensor(Int32Array.from(values), { shape: [1, values.length], device });
  return {
    table: tensor(table, { shape: [rows, width], device }),
    sequences: perToken(sequences),
    positions: perToken(positions),
  };
}

/** Logits (count, vocabulary), first those after the last token of each span that draws. */
function lastLogits(
  model: LanguageModel,
  hidden: Tensor,
  spans: readonly TokenSpan[],
  count: number,
): Tensor {
  const width = hidden.shape.at(-1) as number;
  const rows = hidden.size / width;
  const last: number[] = [];
  let end = 0;
  for (const { from, to, draws } of spans) {
    end += to - from;
    if (draws) last.push(end - 1);
  }
  const flat = hidden.view([rows, width]);
  const inOrder = last.every((token, i) => token === i);
  while (last.length < count) last.push(last.at(-1) as number);
  const chosen =
    inOrder && last.length === rows
      ? flat
      : embedding(tensor(Int32Array.from(last), { device: model.device }), flat);
  return linear(chosen, model.headWeight.tensor);
}
