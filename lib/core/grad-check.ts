import { backwardFrom } from "./backward.js";
import {
  argumentError,
  checkDType,
  checkNumber,
  checkOptions,
  checkTensor,
  shapeText,
} from "./check.js";
import { tensor } from "./create.js";
import { AutogradError } from "./errors.js";
import { hostArray } from "./host-array.js";
import { scope } from "./scope.js";
import { noGrad, onlyInto, withGrad } from "./tape.js";
import type { Tensor } from "./tensor.js";

/** Step and tolerances of `checkGradients`. */
export interface GradCheckOptions {
  /**
   * Step of the differences, relative to max(1, |element|). Default: 1e-2; f32 does not allow a
   * much smaller one.
   */
  eps?: number;
  /** Allowed difference, relative to the largest gradient of the input. Default: 1e-3. */
  tolerance?: number;
  /** Seed of the random projection of the output. Default: 1. */
  seed?: number;
}

/** The element whose gradient deviates most from its difference quotient. */
export interface GradCheckResult {
  /** Index of the input. */
  input: number;
  /** Coordinates of the element in that input. */
  index: number[];
  /** Gradient from `backward()`. */
  analytic: number;
  /** Gradient from the differences. */
  numeric: number;
  /** |analytic - numeric| relative to the largest gradient of the input. */
  error: number;
}

/**
 * Checks the gradients of a function against central differences. The output is projected on random
 * numbers, so that every element of every output counts, and the projection is summed in float64.
 * Each element of an f32 input costs two evaluations of `fn`; i32 inputs are passed through. First
 * order only. The `grad` of the inputs, and of everything else that `fn` uses, such as a module's
 * parameters, does not change.
 * @param fn a deterministic function of f32 (and i32) tensors; should be smooth within `eps` of the
 *   inputs
 * @returns the worst element
 * @throws AutogradError naming the worst element if it exceeds the tolerance or is NaN
 */
export async function checkGradients(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  options: GradCheckOptions = {},
): Promise<GradCheckResult> {
  if (typeof fn !== "function") throw argumentError("checkGradients", "a function", "fn", fn);
  if (!Array.isArray(inputs))
    throw argumentError("checkGradients", "an array of tensors", "inputs", inputs);
  checkOptions("checkGradients", options, ["eps", "tolerance", "seed"]);
  const { eps = 1e-2, tolerance = 1e-3, seed = 1 } = options;
  checkNumber("checkGradients", "eps", eps, { min: 1e-6, max: 1 });
  checkNumber("checkGradients", "tolerance", tolerance, { min: 0 });
  checkNumber("checkGradients", "seed", seed);
  inputs.forEach((input, i) => {
    checkDType("checkGradients", `inputs[${i}]`, input, "f32", "i32");
  });
  if (!inputs.some((input) => input.dtype === "f32")) {
    throw argumentError("checkGradients", "at least one f32 tensor", "inputs", inputs);
  }

  const values = await Promise.all(inputs.map((input) => input.toArray()));
  const place = inputs.map(({ shape, dtype, device }) => ({ shape, dtype, device }));
  const weights = randomWeights(seed);
  const analytic = await analyticGradients(fn, values, place, weights);

  let worst: GradCheckResult | null = null;
  for (const [input, data] of values.entries()) {
    const gradient = analytic[input];
    if (!gradient) continue;
    const numeric = hostArray("checkGradients", Float64Array, data.length);
    for (let i = 0; i < data.length; ++i) {
      numeric[i] = await differenceQuotient(fn, values, place, weights, input, i, eps);
    }
    const found = worstElement(gradient, numeric, input, inputs[input]?.shape ?? []);
    if (!worst || !(found.error <= worst.error)) worst = found;
    if (Number.isNaN(worst.error)) break;
  }
  const result = worst as GradCheckResult;
  if (result.error <= tolerance) return result;
  throw new AutogradError(
    `[checkGradients] input ${result.input} at ${shapeText(result.index)}: backward gives ${result.analytic}, ` +
      `differences give ${result.numeric} (error ${result.error} of the largest gradient, allowed ${tolerance})`,
  );
}

type Values = Float32Array | Int32Array;
type LeafKinds = readonly Pick<Tensor, "shape" | "dtype" | "device">[];

/**
 * Weight i of the projection, in [0.5, 1.5) with random sign. No weight is small enough to hide an
 * element.
 */
function randomWeights(seed: number): (count: number) => Float32Array {
  return (count) => {
    let state = Math.floor(seed) >>> 0;
    return Float32Array.from({ length: count }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const magnitude = 0.5 + (state >>> 9) / 2 ** 23;
      return state & 256 ? magnitude : -magnitude;
    });
  };
}

async function analyticGradients(
  fn: (...inputs: Tensor[]) => Tensor,
  values: readonly Values[],
  place: LeafKinds,
  weights: (count: number) => Float32Array,
): Promise<(Values | null)[]> {
  return scope(async () => {
    const leaves = values.map((data, i) => {
      const requiresGrad = place[i]?.dtype === "f32";
      return tensor(data, { ...place[i], requiresGrad });
    });
    const only = onlyInto(leaves);
    const output = withGrad(() => fn(...leaves));
    checkTensor("checkGradients", "the result of fn", output);
    const { shape, dtype, device } = output;
    const gradient = tensor(weights(output.size), { shape, dtype, device });
    backwardFrom(output, { gradient }, only);
    return Promise.all(
      leaves.map((leaf) => {
        if (!leaf.requiresGrad) return null;
        return leaf.grad ? leaf.grad.toArray() : new Float32Array(leaf.size);
      }),
    );
  });
}

/** (P(x + h) - P(x - h)) / 2h for one element, with h rounded to the step that f32 really takes. */
async function differenceQuotient(
  fn: (...inputs: Tensor[]) => Tensor,
  values: readonly Values[],
  place: LeafKinds,
  weights: (count: number) => Float32Array,
  input: number,
  element: number,
  eps: number,
): Promise<number> {
  const data = (values[input] as Values).slice();
  const value = data[element] as number;
  const step = eps * Math.max(1, Math.abs(value));
  const above = Math.fround(value + step);
  const below = Math.fround(value - step);
  const project = (changed: number): Promise<number> =>
    scope(async () => {
      data[element] = changed;
      const output = noGrad(() =>
        fn(...values.map((other, i) => tensor(i === input ? data : other, { ...place[i] }))),
      );
      const result = await output.toArray();
      const factors = weights(result.length);
      let sum = 0;
      for (let i = 0; i < result.length; ++i) sum += (result[i] as number) * (factors[i] as number);
      return sum;
    });
  return ((await project(above)) - (await project(below))) / (above - below);
}

function worstElement(
  analytic: Values,
  numeric: Float64Array,
  input: number,
  shape: readonly number[],
): GradCheckResult {
  let scale = 0;
  for (const value of [...analytic, ...numeric]) scale = Math.max(scale, Math.abs(value));
  let worst = 0;
  let error = 0;
  for (let i = 0; i < numeric.length && !Number.isNaN(error); ++i) {
    const difference = Math.abs((analytic[i] as number) - (numeric[i] as number));
    const relative = difference === 0 ? 0 : difference / scale;
    if (relative <= error) continue;
    worst = i;
    error = relative;
  }
  let rest = worst;
  const index = shape.map(() => 0);
  for (let axis = shape.length - 1; axis >= 0; --axis) {
    index[axis] = rest % (shape[axis] as number);
    rest = Math.floor(rest / (shape[axis] as number));
  }
  return {
    input,
    index,
    analytic: analytic[worst] as number,
    numeric: numeric[worst] as number,
    error,
  };
}
