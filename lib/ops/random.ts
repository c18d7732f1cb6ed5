import {
  argumentError,
  checkBoolean,
  checkChoice,
  checkDevice,
  checkInteger,
  checkNumber,
  checkOptions,
  checkShapeArgument,
} from "../core/check.js";
import type { TensorOptions } from "../core/create.js";
import { defaultDevice } from "../core/device.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/** Sequence of random numbers for a tensor, and the tensor's start in it. */
export interface RandomOptions extends TensorOptions {
  dtype?: "f32" | "bf16";
  /** Seed of the sequence. Equal seeds give equal numbers, on every device. */
  seed: number;
  /**
   * Position of the first element in the sequence. Element i depends only on seed and offset + i.
   * Default: 0.
   */
  offset?: number;
}

/** The largest finite f32. */
const most = 3.4028234663852886e38;

interface Prepared {
  seed: number;
  offset: number;
  /** Makes the tensor, after everything else has been checked. */
  make(): Tensor;
}

function prepare(
  op: string,
  shape: readonly number[],
  options: RandomOptions,
  own: string[],
): Prepared {
  const size = checkShapeArgument(op, "shape", shape);
  if (options === undefined) throw argumentError(op, "an object with a seed", "options", options);
  checkOptions(op, options, ["seed", "offset", ...own, "dtype", "device", "requiresGrad"]);
  const {
    seed,
    offset = 0,
    dtype = "f32",
    device = defaultDevice(),
    requiresGrad = false,
  } = options;
  checkDevice(op, "device", device);
  checkInteger(op, "seed", seed);
  checkInteger(op, "offset", offset, { min: 0 });
  checkChoice(op, "dtype", dtype, ["f32", "bf16"]);
  checkBoolean(op, "requiresGrad", requiresGrad);
  const make = (): Tensor => {
    const result = empty(size, { dtype, device }, op);
    result.requiresGrad = requiresGrad;
    return result;
  };
  return { seed, offset, make };
}

/**
 * Normal random numbers, from Philox4x32-10 by the Box-Muller transform.
 * @param options mean (0), std (1, at least 0), seed, offset, and the options of every new tensor
 * @see Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
 */
export function randn(
  shape: readonly number[],
  options: RandomOptions & { mean?: number; std?: number },
): Tensor {
  const { seed, offset, make } = prepare("randn", shape, options, ["mean", "std"]);
  const { mean = 0, std = 1 } = options;
  checkNumber("randn", "mean", mean, { min: -most, max: most });
  checkNumber("randn", "std", std, { min: 0, max: most });
  const result = make();
  native.philoxNormal(result.native, mean, std, seed, offset);
  return result;
}

/**
 * Uniform random numbers in [low, high), from Philox4x32-10. A bf16 value is the nearest to such a
 * number, but never `high`.
 * @param options low (0), high (1), seed, offset, and the options of every new tensor
 */
export function rand(
  shape: readonly number[],
  options: RandomOptions & { low?: number; high?: number },
): Tensor {
  const { seed, offset, make } = prepare("rand", shape, options, ["low", "high"]);
  const { low = 0, high = 1 } = options;
  checkNumber("rand", "low", low, { min: -most / 2, max: most / 2 });
  checkNumber("rand", "high", high, { min: -most / 2, max: most / 2 });
  if (!(Math.fround(low) < Math.fround(high))) {
    throw argumentError("rand", `a number above low (${low})`, "high", high);
  }
  const result = make();
  native.philoxUniform(result.native, low, high, seed, offset);
  return result;
}
