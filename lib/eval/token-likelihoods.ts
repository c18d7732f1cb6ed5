import { NonFiniteError } from "../core/errors.js";
import { explainNonFinite } from "../model/finite.js";
import type { LanguageModel } from "../model/language-model.js";
import { inputRows, prefixGroups } from "./prefix-groups.js";
import { type PassLimits, type ScoreBatch, scoreBatches } from "./score-batches.js";
import { enqueueBatch, type PassCounts, type PassScores, passCounts } from "./score-pass.js";
import type { TokenRequest } from "./token-requests.js";
import type { EvalWorld } from "./world.js";

/** Scores of token requests, in their order. */
export interface TokenScores {
  /** Nats, at most 0. */
  readonly logLikelihoods: Float64Array;
  /** 1 if each scored token is the most likely one, else 0. */
  readonly greedy: Float64Array;
}

export interface ScoreSettings {
  readonly limits: PassLimits;
  /** Whether prefixes are computed once, which needs a model with a cache. */
  readonly sharesPrefixes: boolean;
  readonly world?: EvalWorld | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Batches that may be enqueued before the first of them is awaited, so that the device always has
 * work while the next one is built.
 */
const runAhead = 2;

/** The batches of requests. All ranks find the same ones. */
export function planScores(
  requests: readonly TokenRequest[],
  { limits, sharesPrefixes }: ScoreSettings,
): ScoreBatch[] {
  const rows = inputRows(requests);
  const groups = sharesPrefixes
    ? prefixGroups(rows)
    : rows.map((row) => ({ prefix: 0, rows: [row] }));
  return scoreBatches(groups, limits);
}

/**
 * log p(scored tokens | tokens before them) of each request.
 * @param onDone called with the number of requests that have been scored since its last call
 * @throws NonFiniteError if the model's logits give no probabilities
 */
export async function tokenLikelihoods(
  model: LanguageModel,
  requests: readonly TokenRequest[],
  settings: ScoreSettings,
  onDone: (count: number) => void = () => {},
): Promise<TokenScores> {
  const { world, signal } = settings;
  const { rank, worldSize } = world ?? { rank: 0, worldSize: 1 };
  const logLikelihoods = new Float64Array(requests.length);
  const greedy = new Float64Array(requests.length);
  const finish = async (passes: readonly PassScores[], round: readonly ScoreBatch[]) => {
    for (const pass of passes) await collect(pass, logLikelihoods, greedy);
    onDone(round.reduce((sum, batch) => sum + requestsOf(batch), 0));
  };
  const batches = planScores(requests, settings);
  const started: { passes: PassScores[]; round: readonly ScoreBatch[] }[] = [];
  for (let first = 0; first < batches.length; first += worldSize) {
    signal?.throwIfAborted();
    const round = batches.slice(first, first + worldSize);
    const batch = round[rank] ?? null;
    const passes = await enqueueBatch(model, batch, countsFor(model, batch, round));
    started.push({ passes, round });
    if (started.length > runAhead) {
      const oldest = started.shift() as (typeof started)[number];
      await finish(oldest.passes, oldest.round);
    }
  }
  for (const { passes, round } of started) await finish(passes, round);
  const scores = { logLikelihoods, greedy };
  const all = world && requests.length > 0 ? await gatherScores(world, scores, batches) : scores;
  // All ranks see the same numbers here, so all of them fail together.
  const broken = all.logLikelihoods.reduce((sum, value) => sum + Number(Number.isNaN(value)), 0);
  if (broken > 0) {
    const message = `[likelihoods] the log-likelihoods of ${broken} of ${requests.length} texts are not numbers`;
    await explainNonFinite(model, new NonFiniteError(message));
  }
  return all;
}

/** The scores of all ranks: each from the rank that computed it. */
async function gatherScores(
  world: EvalWorld,
  { logLikelihoods, greedy }: TokenScores,
  batches: readonly ScoreBatch[],
): Promise<TokenScores> {
  const owners = new Int32Array(logLikelihoods.length);
  for (const [index, batch] of batches.entries()) {
    for (const request of indicesOf(batch)) owners[request] = index % world.worldSize;
  }
  return {
    logLikelihoods: await gatherOwned(world, logLikelihoods, owners),
    greedy: await gatherOwned(world, greedy, owners),
  };
}

/** Passes of this rank. Sharded weights are gathered by all ranks together, pass by pass. */
function countsFor(
  model: LanguageModel,
  batch: ScoreBatch | null,
  round: readonly ScoreBatch[],
): PassCounts {
  if (!model.store.divided) return batch ? passCounts(batch) : { prefix: 0, scored: 0 };
  const all = round.map(passCounts);
  return {
    prefix: Math.max(...all.map(({ prefix }) => prefix)),
    scored: Math.max(...all.map(({ scored }) => scored)),
  };
}

/** Awaits a pass and adds up each request's targets. */
async function collect(
  { uses, losses, greedy }: PassScores,
  logLikelihoods: Float64Array,
  greedyOf: Float64Array,
): Promise<void> {
  const [nats, flags] = await Promise.all([losses, greedy]);
  let at = 0;
  for (const { request, indices } of uses) {
    let sum = 0;
    let all = 1;
    for (const end = at + request.scored; at < end; at++) {
      sum += nats[at] as number;
      all &= flags[at] as number;
    }
    for (const index of indices) {
      logLikelihoods[index] = 0 - sum;
      greedyOf[index] = all;
    }
  }
}

function indicesOf(batch: ScoreBatch): number[] {
  const rows = batch.kind === "plain" ? batch.passes[0] : batch.passes.flat().map(({ row }) => row);
  return rows.flatMap(({ uses }) => uses.flatMap(({ indices }) => indices));
}

function requestsOf(batch: ScoreBatch): number {
  return indicesOf(batch).length;
}

/** Takes each number from the rank that computed it. */
async function gatherOwned(
  world: EvalWorld,
  values: Float64Array,
  owners: Int32Array,
): Promise<Float64Array> {
  const all = await world.gather(values);
  return values.map((_, index) => (all[owners[index] as number] as Float64Array)[index] as number);
}
