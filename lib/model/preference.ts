/** Losses of preferences: of two answers, the preferred one is to become more likely. */
import {
  checkChoice,
  checkDType,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkShape,
} from "../core/check.js";
import { ArgumentError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import {
  add,
  cast,
  concat,
  div,
  gt,
  logSoftmax,
  maximum,
  mean,
  mul,
  neg,
  relu,
  reshape,
  segmentSum,
  slice,
  square,
  squeeze,
  stack,
  sub,
} from "../ops/index.js";
import type { Batch, HostBatch } from "./batch.js";
import { ignoredTarget } from "./ignored-target.js";
import { type PreferenceConfig, preferenceLosses } from "./preference-config.js";

/** Sums of log-probabilities of the answers of pairs, by the trained model and by the reference. */
export interface AnswerScores {
  /** (2 · pairs) f32: of each answer the log-probability of its tokens, preferred ones at 2k. */
  policy: Tensor;
  /** (2 · pairs) f32: the reference's log-probabilities of these answers. */
  reference: Tensor;
  /** (2 · pairs) f32: number of tokens of each answer. */
  lengths: Tensor;
}

/** Mean loss over pairs, and figures that tell how the answers fare. */
export interface PreferenceResult {
  /** f32, one element without axes, with a gradient. */
  loss: Tensor;
  /** (6) f32: the figures of `preferenceFigures`, in their order, without a gradient. */
  figures: Tensor;
}

/**
 * The log-probability of each answer: the sum over its tokens.
 * @param losses (batch, time) f32 of `targetLosses` or `tokenLosses`
 * @param pairs  number of pairs in the batch
 * @returns (2 · pairs) f32
 * @throws ArgumentError for a batch without pairs
 */
export function answerLogProbs(losses: Tensor, batch: Batch, pairs: number): Tensor {
  const { answers } = batch;
  if (answers === undefined) {
    throw new ArgumentError(
      "[answerLogProbs] expected a batch of preferences, got one without answers",
    );
  }
  checkInteger("answerLogProbs", "pairs", pairs, { min: 1 });
  const { size } = losses;
  return neg(segmentSum(reshape(losses, [size]), reshape(answers, [size]), 2 * pairs));
}

/** The number of tokens of each answer of a batch, (2 · pairs). */
export function answerLengths({ answers, targets, pairs = 0 }: HostBatch): Float32Array {
  const lengths = new Float32Array(2 * pairs);
  if (answers === undefined) return lengths;
  for (const [place, target] of targets.entries()) {
    if (target === ignoredTarget) continue;
    const answer = answers[place] as number;
    lengths[answer] = (lengths[answer] as number) + 1;
  }
  return lengths;
}

/**
 * The loss of preferences: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290)
 * and its relatives, as TRL's DPOTrainer computes them. With x the difference of the two answers'
 * log-ratios of model and reference:
 * - sigmoid: -log σ(βx); with label smoothing ε, (1 - ε) · -log σ(βx) + ε · -log σ(-βx)
 *   (Mitchell 2023)
 * - robust: ((1 - ε) · -log σ(βx) - ε · -log σ(-βx)) / (1 - 2ε) (arXiv 2403.00409)
 * - hinge: max(0, 1 - βx) (arXiv 2305.10425)
 * - ipo: (x' - 1 / 2β)², where x' has the mean over an answer's tokens in place of their sum
 *   (arXiv 2310.12036)
 * @throws ArgumentError, ShapeError, DTypeError for arguments that do not fit
 */
export function preferenceLoss(scores: AnswerScores, config: PreferenceConfig): PreferenceResult {
  const op = "preferenceLoss";
  const { beta, loss: kind, labelSmoothing } = checkPreference(op, config);
  checkObject(op, "scores", scores, "scores of answers: { policy, reference, lengths }");
  checkOptions(op, scores, ["policy", "reference", "lengths"]);
  const { policy, reference, lengths } = scores;
  checkDType(op, "policy", policy, "f32");
  checkRank(op, "policy", policy, 1);
  const { size } = policy;
  if (size === 0 || size % 2 !== 0) {
    throw new ArgumentError(`[${op}] expected two answers for each pair, got ${size} answers`);
  }
  for (const [name, values] of [
    ["reference", reference],
    ["lengths", lengths],
  ] as const) {
    checkDType(op, name, values, "f32");
    checkSameDevice(op, policy, values);
    checkShape(op, name, values, [size], "the answers of policy");
  }
  const ratios = sub(policy, reference);
  const [chosen, rejected] = sides(ratios);
  const losses = ((): Tensor => {
    if (kind === "ipo") {
      // An answer of which a window holds no token has a ratio of 0.
      const [mine, theirs] = sides(div(ratios, maximum(lengths, 1)));
      return square(sub(sub(mine, theirs), 1 / (2 * beta)));
    }
    const x = mul(sub(chosen, rejected), beta);
    if (kind === "hinge") return relu(sub(1, x));
    if (labelSmoothing === 0) return softplus(neg(x));
    const right = mul(softplus(neg(x)), 1 - labelSmoothing);
    const wrong = mul(softplus(x), labelSmoothing);
    return kind === "sigmoid"
      ? add(right, wrong)
      : mul(sub(right, wrong), 1 / (1 - 2 * labelSmoothing));
  })();
  return { loss: mean(losses), figures: figuresOf(policy.detach(), ratios.detach(), beta) };
}

/** The values of `preferenceFigures`. */
function figuresOf(policy: Tensor, ratios: Tensor, beta: number): Tensor {
  const rewards = sides(mul(ratios, beta));
  const [chosen, rejected] = rewards;
  const [likelyChosen, likelyRejected] = sides(policy);
  const means = [
    chosen,
    rejected,
    cast(gt(chosen, rejected), "f32"),
    sub(chosen, rejected),
    likelyChosen,
    likelyRejected,
  ].map((values) => reshape(mean(values), [1]));
  return concat(means);
}

/** The values of the preferred and of the rejected answers, (pairs) each. */
function sides(values: Tensor): [chosen: Tensor, rejected: Tensor] {
  const pairs = values.size / 2;
  const table = reshape(values, [pairs, 2]);
  const side = (at: number) => squeeze(slice(table, [0, at], [pairs, at + 1]), 1);
  return [side(0), side(1)];
}

/**
 * log(1 + e^x), as a log-softmax of [x, 0]: without an overflow, and with the right slope at 0, where
 * every run begins and where max(x, 0) and |x| have none.
 */
function softplus(x: Tensor): Tensor {
  const table = stack([neg(x), mul(x, 0)], 1); // (pairs, 2)
  return neg(squeeze(slice(logSoftmax(table, 1), [0, 0], [x.size, 1]), 1));
}

/**
 * Checks settings of a loss of preferences, and fills in the label smoothing.
 * @internal
 */
export function checkPreference(op: string, config: PreferenceConfig): Required<PreferenceConfig> {
  checkObject(op, "config", config, "settings of preferences: { loss, beta }");
  checkOptions(op, config, ["loss", "beta", "labelSmoothing"]);
  const { loss, beta, labelSmoothing = 0 } = config;
  checkChoice(op, "loss", loss, preferenceLosses);
  checkNumber(op, "beta", beta, { min: Number.MIN_VALUE });
  checkNumber(op, "labelSmoothing", labelSmoothing, { min: 0, max: 0.4999 });
  if (labelSmoothing > 0 && loss !== "sigmoid" && loss !== "robust") {
    throw new ArgumentError(`[${op}] labelSmoothing is for sigmoid and robust, not for ${loss}`);
  }
  return { loss, beta, labelSmoothing };
}
