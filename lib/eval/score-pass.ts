import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { withIndependentRows } from "../core/independent-rows.js";
import { ready } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { Cache, LanguageModel } from "../model/language-model.js";
import { embedding } from "../ops/index.js";
import { cacheRows } from "./cache-rows.js";
import type { InputRow, RowUse } from "./prefix-groups.js";
import type { ScoreBatch, Suffix } from "./score-batches.js";

type SharedBatch = Extract<ScoreBatch, { kind: "shared" }>;

/** Scores of a pass on their way from the device, target by target in the order of `uses`. */
export interface PassScores {
  readonly uses: readonly RowUse[];
  /** Nats, f32. */
  readonly losses: Promise<Float32Array | Int32Array>;
  /** 1 where the target is the most likely token. */
  readonly greedy: Promise<Float32Array | Int32Array>;
}

/** Forward passes of one batch. Ranks with sharded weights must make equally many of each kind. */
export interface PassCounts {
  /** Passes that fill a cache: 0 or 1. */
  prefix: number;
  /** Passes whose logits are scored. */
  scored: number;
}

export function passCounts(batch: ScoreBatch): PassCounts {
  return { prefix: batch.kind === "shared" ? 1 : 0, scored: batch.passes.length };
}

/**
 * Enqueues a batch on the device. Its scores can be awaited afterwards.
 * @param batch null for a rank that has no batch left but must keep pace
 * @param counts passes that all ranks make; a rank makes the missing ones on one token
 */
export async function enqueueBatch(
  model: LanguageModel,
  batch: ScoreBatch | null,
  counts: PassCounts,
): Promise<PassScores[]> {
  const scores: PassScores[] = [];
  await scope(async () => {
    const shared = batch?.kind === "shared" ? batch : null;
    const cache = shared && enqueuePrefixes(model, shared);
    if (!shared && counts.prefix > 0) forward(model, Int32Array.of(0), 1);
    for (const pass of batch?.passes ?? []) {
      await ready(model.device);
      scores.push(
        shared && cache
          ? enqueueSuffixes(model, cache, shared.prefix, pass as Suffix[])
          : enqueueRows(model, pass as InputRow[]),
      );
    }
    for (let done = scores.length; done < counts.scored; done++) enqueueNothing(model);
  });
  return scores;
}

/** Lists may be too long to be the arguments of `Math.max`. */
function longest(lengths: readonly number[]): number {
  return lengths.reduce((most, length) => Math.max(most, length), 0);
}

function ids(values: Int32Array, rows: number, model: LanguageModel): Tensor {
  return tensor(values, { shape: [rows, values.length / rows], device: model.device });
}

/** A forward pass as far as the output head, (rows, time, hidden). */
function forward(model: LanguageModel, tokens: Int32Array, rows: number, cache?: Cache): Tensor {
  model.store.parallel?.beginMicroBatch(false);
  // Which rows share a pass must not change a score.
  const hidden = () => model.hidden(ids(tokens, rows, model), cache);
  return withIndependentRows(() => noGrad(() => model.withoutFp8(hidden)));
}

/** Places and targets of the logits that a pass's rows need. */
interface Targets {
  readonly uses: RowUse[];
  readonly places: number[];
  readonly ids: number[];
}

/** Adds the targets of a row whose first `skipped` tokens are not in the pass. */
function addTargets(targets: Targets, row: InputRow, place: number, skipped: number): void {
  for (const use of row.uses) {
    const { tokens, scored } = use.request;
    targets.uses.push(use);
    for (let at = tokens.length - scored; at < tokens.length; at++) {
      targets.places.push(place + at - 1 - skipped);
      targets.ids.push(tokens[at] as number);
    }
  }
}

/** Enqueues the output head for the places that are scored. */
function enqueueScores(model: LanguageModel, hidden: Tensor, targets: Targets): PassScores {
  const { device } = model;
  const width = hidden.shape[2] as number;
  const { losses, greedy } = noGrad(() => {
    const places = tensor(Int32Array.from(targets.places), { device });
    const needed = embedding(places, hidden.view([hidden.size / width, width]));
    return model.targetScores(needed, tensor(Int32Array.from(targets.ids), { device }));
  });
  const scores = { uses: targets.uses, losses: losses.toArray(), greedy: greedy.toArray() };
  // They are awaited later. Until then a failure must not count as unhandled.
  for (const result of [scores.losses, scores.greedy]) result.catch(() => {});
  return scores;
}

const noTargets = (): Targets => ({ uses: [], places: [], ids: [] });

/** Whole rows, padded on the right. */
function enqueueRows(model: LanguageModel, rows: readonly InputRow[]): PassScores {
  return scope(() => {
    const time = longest(rows.map((row) => row.ids.length));
    const tokens = new Int32Array(rows.length * time);
    const targets = noTargets();
    for (const [index, row] of rows.entries()) {
      tokens.set(row.ids, index * time);
      addTargets(targets, row, index * time, 0);
    }
    return enqueueScores(model, forward(model, tokens, rows.length), targets);
  });
}

/** A pass on one token, for a rank that only keeps pace. */
function enqueueNothing(model: LanguageModel): void {
  scope(() => {
    const targets = { uses: [], places: [0], ids: [0] };
    enqueueScores(model, forward(model, Int32Array.of(0), 1), targets);
  });
}

/** Computes the prefixes of a batch's groups. The cache has room for the longest suffix. */
function enqueuePrefixes(model: LanguageModel, { prefix, groups, passes }: SharedBatch): Cache {
  const rows = passes.flatMap((pass) => pass.map(({ row }) => row.ids.length));
  const cache = noGrad(() => model.createCache(groups.length, longest(rows)));
  const tokens = new Int32Array(groups.length * prefix);
  for (const [index, group] of groups.entries()) {
    tokens.set((group.rows[0] as InputRow).ids.subarray(0, prefix), index * prefix);
  }
  scope(() => forward(model, tokens, groups.length, cache).dispose());
  return cache;
}

/** Suffixes, padded on the right, after a copy of their prefixes' keys and values. */
function enqueueSuffixes(
  model: LanguageModel,
  cache: Cache,
  prefix: number,
  suffixes: readonly Suffix[],
): PassScores {
  return scope(() => {
    const time = longest(suffixes.map(({ row }) => row.ids.length - prefix));
    const tokens = new Int32Array(suffixes.length * time);
    const targets = noTargets();
    for (const [index, { row }] of suffixes.entries()) {
      tokens.set(row.ids.subarray(prefix), index * time);
      addTargets(targets, row, index * time, prefix);
    }
    const groups = suffixes.map(({ group }) => group);
    const copies = noGrad(() => cacheRows(model, cache, groups));
    return enqueueScores(model, forward(model, tokens, suffixes.length, copies), targets);
  });
}
