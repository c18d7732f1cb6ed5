/** Compares an operation with its float64 reference: values and gradients, in f32 and bf16. */

import { tensor } from "../../lib/core/create.js";
import { synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import {
  expectClose,
  type FloatDType,
  finiteDifferences,
  type Reference,
  random,
  rounded,
  tolerances,
} from "./reference.js";

/** A tensor with the values of a reference. */
export function fromReference(
  x: Reference,
  options: { dtype?: FloatDType | "i32"; requiresGrad?: boolean } = {},
): Tensor {
  return tensor(Float64Array.from(x.data), { shape: x.shape, ...options });
}

export interface OperationCase {
  op: (...inputs: Tensor[]) => Tensor;
  ref: (...inputs: Reference[]) => Reference;
  /** Floating-point inputs. Both sides get them rounded to the dtype. */
  inputs: readonly Reference[];
  dtypes?: readonly FloatDType[];
  /** Whether gradients are compared too (default: true). */
  gradient?: boolean;
  /** Step of the float64 differences. */
  eps?: number;
}

/** Fails if the operation and its reference differ by more than the tolerance of the dtype. */
export async function checkOperation(
  label: string,
  { op, ref, inputs, dtypes = ["f32", "bf16"], gradient = true, eps }: OperationCase,
): Promise<void> {
  for (const dtype of dtypes) {
    await scope(async () => {
      const name = `${label} (${dtype})`;
      const exact = inputs.map((x) => rounded(x, dtype));
      const leaves = exact.map((x) => fromReference(x, { dtype, requiresGrad: gradient }));
      const y = op(...leaves);
      if (y.dtype !== dtype) throw new Error(`${name}: result is ${y.dtype}`);
      const expected = ref(...exact);
      await expectClose(y, expected, tolerances[dtype].forward, name);
      if (!gradient) return;
      const dy = random(expected.shape, 77, { low: 0.5, high: 1.5, dtype });
      y.backward({ gradient: fromReference(dy, { dtype }) });
      const differences = finiteDifferences(ref, exact, dy, eps);
      for (const [i, leaf] of leaves.entries()) {
        if (!leaf.grad) throw new Error(`${name}: input ${i} has no gradient`);
        const wanted = differences[i] as Reference;
        await expectClose(leaf.grad, wanted, tolerances[dtype].gradient, `${name}, gradient ${i}`);
      }
    });
  }
  await synchronize();
}
