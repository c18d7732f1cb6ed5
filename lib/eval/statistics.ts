import { turn } from "../core/turn.js";
import { PythonRandom } from "./python-random.js";

// Means and standard errors as lm-evaluation-harness computes them. Sums run from left to right,
// like Python's `sum` before version 3.12, so that results are equal to the last digit.

export function sumOf(values: readonly number[]): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}

export function meanOf(values: readonly number[]): number {
  return sumOf(values) / values.length;
}

/** Standard deviation of a sample, with n - 1 in the denominator. */
function deviationOf(values: readonly number[]): number {
  const mean = meanOf(values);
  const squares = values.map((value) => (value - mean) * (value - mean));
  return Math.sqrt(sumOf(squares) / (values.length - 1));
}

/** Standard error of a mean; null for fewer than two values. */
export function standardError(values: readonly number[]): number | null {
  return values.length > 1 ? deviationOf(values) / Math.sqrt(values.length) : null;
}

/** exp(-mean) of log-likelihoods. */
export function perplexityOf(logLikelihoods: readonly number[]): number {
  return preciseExp(-meanOf(logLikelihoods));
}

/** Resamples that share one seed. */
const chunk = 1000;

/**
 * Standard error of a perplexity by the bootstrap: the deviation over resamples of the values. The
 * harness seeds Python's generator anew for each thousand resamples, with the number of the
 * thousand, and so does this function.
 * @param iterations number of resamples, a multiple of 1000 or below 1000
 */
export async function bootstrapPerplexityError(
  logLikelihoods: readonly number[],
  iterations: number,
  signal?: AbortSignal,
): Promise<number | null> {
  const count = logLikelihoods.length;
  if (count < 2 || iterations < 1) return null;
  const values = Float64Array.from(logLikelihoods);
  const size = Math.min(chunk, iterations);
  const resamples: number[] = [];
  for (let seed = 0; seed < Math.floor(iterations / size); seed++) {
    signal?.throwIfAborted();
    const random = new PythonRandom(seed);
    for (let i = 0; i < size; i++) {
      let sum = 0;
      for (let j = 0; j < count; j++) sum += values[Math.floor(random.random() * count)] as number;
      resamples.push(preciseExp(-(sum / count)));
    }
    // Signals and timers get a turn, because a large task takes seconds.
    await turn();
  }
  return deviationOf(resamples);
}

/** A task of a group, as the group's mean sees it. */
export interface GroupMember {
  value: number;
  error: number | null;
  /** Number of questions. */
  size: number;
}

/** Mean over the tasks of a group, weighted by their number of questions or not. */
export function groupMean(members: readonly GroupMember[], weighted: boolean): number {
  const weightOf = ({ size }: GroupMember) => (weighted ? size : 1);
  const sum = sumOf(members.map((member) => member.value * weightOf(member)));
  return sum / sumOf(members.map(weightOf));
}

/**
 * Standard error of `groupMean`; null if a task has none. The weighted one pools the tasks'
 * variances.
 */
export function groupError(members: readonly GroupMember[], weighted: boolean): number | null {
  const errors = members.map(({ error }) => error);
  if (errors.some((error) => error === null)) return null;
  const squares = (errors as number[]).map((error) => error * error);
  if (!weighted) return Math.sqrt(sumOf(squares)) / members.length;
  const sizes = members.map(({ size }) => size);
  const all = sumOf(sizes);
  const pooled = sizes.map((size, i) => (size - 1) * (squares[i] as number) * size);
  return Math.sqrt(sumOf(pooled) / (all - members.length) / all);
}

/** ln 2 in two parts; the product of the first with a small integer is exact. */
const ln2High = 0.6931471803691238;
const ln2Low = 1.9082149292705877e-10;

/**
 * exp(x), correctly rounded but for one case in some hundreds. The result of `Math.exp` is a unit in
 * the last place off in one case of ten, and then differs from the C library's that Python calls.
 */
export function preciseExp(x: number): number {
  if (!(Math.abs(x) < 700)) return Math.exp(x);
  const exponent = Math.round(x / Math.LN2);
  // x = exponent · ln 2 + high + low, with |high| below 0.35.
  const reduced = x - exponent * ln2High;
  const rest = exponent * ln2Low;
  const high = reduced - rest;
  const low = reduced - high - rest;
  // exp(high) = 1 + high + square / 2 · (1 + tail). The first three terms are added with the
  // rounding errors of the square and of the sums; the others are small.
  let tail = 0;
  for (let n = 22; n >= 3; n--) tail = (tail + 1) * (high / n);
  const half = (high * high) / 2;
  const lostInHalf = squareError(high, high * high) / 2;
  const first = 1 + high;
  const lostInFirst = high - (first - 1);
  const second = first + half;
  const lostInSecond = half - (second - first);
  const lost = lostInFirst + lostInSecond + lostInHalf;
  return (second + (lost + half * tail + low * second)) * 2 ** exponent;
}

/** The part of x² that its rounded value lacks, by Dekker's product. */
function squareError(x: number, rounded: number): number {
  const split = 134_217_729 * x;
  const high = split - (split - x);
  const low = x - high;
  return high * high - rounded + 2 * high * low + low * low;
}
