import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { ready } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { Cache, Context, LanguageModel } from "../model/language-model.js";
import { embedding } from "../ops/index.js";
import type { InputRow, PrefixGroup, RowUse } from "./prefix-groups.js";
import type { ScoreBatch, Suffix } from "./score-batches.js";

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
    let cache: PrefixCache | null = null;
    if (batch?.kind === "shared") cache = enqueuePrefixes(model, batch.groups, batch.passes);
    else if (counts.prefix > 0) forward(model, Int32Array.of(0), 1);
    for (const pass of batch?.passes ?? []) {
      await ready(model.device);
      scores.push(
        cache ? enqueueSuffixes(model, cache, pass as Suffix[]) : enqueueRows(model, pass),
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
function forward(
  model: LanguageModel,
  tokens: Int32Array,
  rows: number,
  cache?: Cache,
  context: Context = {},
): Tensor {
  model.store.parallel?.beginMicroBatch(false);
  return noGrad(() => model.hidden(ids(tokens, rows, model), cache, context));
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
function enqueueRows(model: LanguageModel, rows: readonly (InputRow | Suffix)[]): PassScores {
  return scope(() => {
    const time = longest((rows as InputRow[]).map((row) => row.ids.length));
    const tokens = new Int32Array(rows.length * time);
    const targets = noTargets();
    for (const [index, row] of (rows as InputRow[]).entries()) {
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

/** Keys and values of a batch's prefixes, which end at one place. */
interface PrefixCache {
  readonly cache: Cache;
  readonly groups: readonly PrefixGroup[];
  /** Places of the cache before each group's first token. */
  readonly padding: readonly number[];
}

/** Prefixes, padded on the left, so that their suffixes begin at one place of the cache. */
function enqueuePrefixes(
  model: LanguageModel,
  groups: readonly PrefixGroup[],
  passes: readonly (readonly Suffix[])[],
): PrefixCache {
  const time = longest(groups.map(({ prefix }) => prefix));
  const suffix = longest(
    passes.flatMap((pass) =>
      pass.map(({ row, group }) => row.ids.length - (groups[group] as PrefixGroup).prefix),
    ),
  );
  const padding = groups.map(({ prefix }) => time - prefix);
  const tokens = new Int32Array(groups.length * time);
  const firstKey = new Int32Array(tokens.length);
  const positions = new Int32Array(tokens.length);
  for (const [index, { prefix, rows }] of groups.entries()) {
    const start = index * time;
    const pad = padding[index] as number;
    tokens.set((rows[0] as InputRow).ids.subarray(0, prefix), start + pad);
    for (let t = 0; t < time; t++) {
      firstKey[start + t] = Math.min(t, pad); // a place of padding attends to itself alone
      positions[start + t] = Math.max(0, t - pad);
    }
  }
  const cache = noGrad(() => model.createCache(groups.length, time + suffix));
  scope(() => {
    const context = contextOf(model, padding, firstKey, positions);
    forward(model, tokens, groups.length, cache, context);
  });
  return { cache, groups, padding };
}

/** Attention limits and positions; none without padding, which has a faster kernel. */
function contextOf(
  model: LanguageModel,
  padding: readonly number[],
  firstKey: Int32Array,
  positions: Int32Array,
): Context {
  if (padding.every((pad) => pad === 0)) return {};
  const rows = padding.length;
  return { firstKey: ids(firstKey, rows, model), positions: ids(positions, rows, model) };
}

/** Suffixes, padded on the right, after a copy of their prefixes' keys and values. */
function enqueueSuffixes(
  model: LanguageModel,
  { cache, groups, padding }: PrefixCache,
  suffixes: readonly Suffix[],
): PassScores {
  return scope(() => {
    const prefixOf = ({ group }: Suffix): number => (groups[group] as PrefixGroup).prefix;
    const time = longest(suffixes.map((suffix) => suffix.row.ids.length - prefixOf(suffix)));
    const tokens = new Int32Array(suffixes.length * time);
    const firstKey = new Int32Array(tokens.length);
    const positions = new Int32Array(tokens.length);
    const targets = noTargets();
    for (const [index, suffix] of suffixes.entries()) {
      const start = index * time;
      const prefix = prefixOf(suffix);
      tokens.set(suffix.row.ids.subarray(prefix), start);
      firstKey.fill(padding[suffix.group] as number, start, start + time);
      for (let t = 0; t < time; t++) positions[start + t] = prefix + t;
      addTargets(targets, suffix.row, start, prefix);
    }
    const pads = suffixes.map(({ group }) => padding[group] as number);
    const copies = copyRows(
      model,
      cache,
      suffixes.map(({ group }) => group),
    );
    const context = contextOf(model, pads, firstKey, positions);
    const hidden = forward(model, tokens, suffixes.length, copies, context);
    return enqueueScores(model, hidden, targets);
  });
}

/** A cache whose sequence i is sequence rows[i] of another. Copies whole rows at memory's speed. */
function copyRows(model: LanguageModel, cache: Cache, rows: readonly number[]): Cache {
  const { device } = model;
  const layers = noGrad(() => {
    const index = tensor(Int32Array.from(rows), { device });
    return cache.layers.map((layer) => {
      const [count, ...shape] = layer.shape as [number, ...number[]];
      const copies = embedding(index, layer.view([count, layer.size / count]));
      return copies.view([rows.length, ...shape]);
    });
  });
  return { layers, position: cache.position };
}
