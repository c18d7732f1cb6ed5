import { expect } from "vitest";
import { tensor } from "../../lib/core/create.js";
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
export const toTensor = (x: Reference, dtype: FloatDType = "f32", requiresGrad = false): Tensor =>
  tensor(Float32Array.from(x.data), { shape: x.shape, dtype, requiresGrad });

/**
 * Runs an operation and its backward, and compares the value with the reference and each gradient
 * with finite differences of the reference. Inputs, and the gradient that comes in, are rounded to
 * the dtype first.
 */
export async function expectOpMatches(
  op: (...inputs: Tensor[]) => Tensor,
  composed: (...inputs: Reference[]) => Reference,
  inputs: readonly Reference[],
  dtype: FloatDType,
): Promise<void> {
  const values = inputs.map((input) => rounded(input, dtype));
  const leaves = values.map((value) => toTensor(value, dtype, true));
  const expected = composed(...values);
  const y = op(...leaves);
  await expectClose(y, expected, undefined, "value");
  const incoming = random(expected.shape, 99, { dtype });
  y.backward({ gradient: toTensor(incoming, dtype) });
  const gradients = finiteDifferences(composed, values, incoming);
  for (const [index, gradient] of gradients.entries()) {
    const got = leaves[index]?.grad;
    expect(got, `input ${index} has a gradient`).toBeTruthy();
    await expectClose(
      got as Tensor,
      gradient,
      tolerances[dtype].gradient,
      `gradient of input ${index}`,
    );
  }
}
