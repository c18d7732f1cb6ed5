import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import { later } from "../core/turn.js";
import type { LanguageModel } from "../model/language-model.js";
import {
  embedding,
  gather,
  ge,
  linear,
  logSoftmax,
  maximum,
  type RowSampling,
  sampleRows,
  where,
} from "../ops/index.js";
import { likeliest } from "./likeliest.js";
import type { ChosenToken, Sequence } from "./sequence.js";
import type { Slots } from "./slots.js";

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
  /** The drawn ids, i32 (rows), outside of every scope; null if nothing is drawn. */
  ids: Tensor | null;
  /** The drawn tokens, once the device has them. */
  tokens: Promise<ChosenToken[]>;
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
 * next token of those whose text ends in it. It returns at once.
 * @param layers the cache's pages, one tensor per layer
 * @param before the step before, whose results hold the pending tokens
 */
export function enqueueStep(
  model: LanguageModel,
  layers: readonly Tensor[],
  spans: readonly TokenSpan[],
  before: EngineStep | null,
  slots: Slots,
): EngineStep {
  const drawing = spans.filter(({ draws }) => draws);
  return outsideScopes(() =>
    noGrad(() => {
      const kept: Tensor[] = [];
      const reads: Promise<ArrayLike<number>>[] = [];
      const tops: Promise<Float32Array>[] = [];
      scope(() => {
        const hidden = model.hidden(inputIds(model, spans, before), {
          layers,
          ...places(model, spans),
        });
        if (drawing.length === 0) return;
        const logits = lastLogits(model, hidden, spans);
        const settings = drawing.map((span) => rowSampling(span, slots));
        const { ids, logprobs } = sampleRows(logits, settings, slots.tables);
        kept.push(
          outsideScopes(() => ids.view(ids.shape)),
          outsideScopes(() => logprobs.view(logprobs.shape)),
        );
        // The first read after a draw hears of the draw's error.
        reads.push(...kept.map((tensor) => later(tensor.toArray())));
        for (const [row, { sequence }] of drawing.entries()) {
          if (sequence.settings.top === 0) continue;
          const { vocabSize } = model.config;
          tops[row] = later(
            logSoftmax(
              logits.view([vocabSize], row * vocabSize),
            ).toArray() as Promise<Float32Array>,
          );
        }
      });
      const [ids = null, logprobs = null] = kept;
      logprobs?.dispose();
      const tokens = results(reads, drawing, tops);
      return { drawing, ids, tokens: later(tokens) };
    }),
  );
}

async function results(
  reads: readonly Promise<ArrayLike<number>>[],
  drawing: readonly TokenSpan[],
  tops: readonly Promise<Float32Array>[],
): Promise<ChosenToken[]> {
  const [chosen = [], probabilities = []] = await Promise.all(reads);
  return await Promise.all(
    drawing.map(async ({ sequence }, row) => {
      const token = { id: chosen[row] as number, logprob: probabilities[row] as number };
      const all = await tops[row];
      return all ? { ...token, top: likeliest(all, sequence.settings.top) } : token;
    }),
  );
}

/** (1, tokens) i32. Tokens that only the device knows are copied on the device. */
function inputIds(
  model: LanguageModel,
  spans: readonly TokenSpan[],
  before: EngineStep | null,
): Tensor {
  const count = spans.reduce((sum, { from, to }) => sum + to - from, 0);
  const known = new Int32Array(count);
  const source = new Int32Array(count).fill(-1);
  let at = 0;
  for (const { sequence, from, to } of spans) {
    for (let position = from; position < to; position++, at++) {
      if (position < sequence.tokens.length) known[at] = sequence.tokens[position] as number;
      else source[at] = sequence.pending?.row as number;
    }
  }
  const { device } = model;
  const shape = [1, count];
  const ids = before?.ids;
  if (!ids || source.every((row) => row < 0)) return tensor(known, { shape, device });
  if (ids.size === count && source.every((row, i) => row === i)) return ids.view(shape);
  const rows = tensor(source, { shape: [count], device });
  const pending = gather(ids, maximum(rows, 0), 0).view(shape);
  return where(ge(rows, 0).view(shape), pending, tensor(known, { shape, device }));
}

/** The places of a step's tokens in the cache. */
function places(model: LanguageModel, spans: readonly TokenSpan[]) {
  const { device } = model;
  const width = Math.max(...spans.map(({ sequence }) => sequence.pages.length));
  const table = new Int32Array(spans.length * width);
  const sequences: number[] = [];
  const positions: number[] = [];
  for (const [row, { sequence, from, to }] of spans.entries()) {
    table.set(sequence.pages, row * width);
    for (let position = from; position < to; position++) {
      sequences.push(row);
      positions.push(position);
    }
  }
  const perToken = (values: readonly number[]) =>
    tensor(Int32Array.from(values), { shape: [1, values.length], device });
  return {
    table: tensor(table, { shape: [spans.length, width], device }),
    sequences: perToken(sequences),
    positions: perToken(positions),
  };
}

/** Logits (drawing spans, vocabulary) after the last token of each span that draws. */
function lastLogits(model: LanguageModel, hidden: Tensor, spans: readonly TokenSpan[]): Tensor {
  const width = hidden.shape.at(-1) as number;
  const rows = hidden.size / width;
  const last: number[] = [];
  let end = 0;
  for (const { from, to, draws } of spans) {
    end += to - from;
    if (draws) last.push(end - 1);
  }
  const flat = hidden.view([rows, width]);
  const chosen =
    last.length === rows
      ? flat
      : embedding(tensor(Int32Array.from(last), { device: model.device }), flat);
  return linear(chosen, model.headWeight.tensor);
}
