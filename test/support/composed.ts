import { expect } from "vitest";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { toTensor } from "./float-ops.js";
import { expectClose, type Reference, random, reference, tolerances } from "./reference.js";

/**
 * Fails where a fused operation differs from its composed form in value or in any gradient, in f32.
 * @param inputs values of the floating-point inputs, each of which gets a gradient
 */
export async function expectComposed(
  fused: (...inputs: Tensor[]) => Tensor,
  composed: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Reference[],
): Promise<void> {
  await scope(async () => {
    const run = async (op: (...inputs: Tensor[]) => Tensor) => {
      const leaves = inputs.map((input) => toTensor(input, "f32", true));
      const y = op(...leaves);
      y.backward({ gradient: toTensor(random(y.shape, 98)) });
      return { y, gradients: leaves.map((leaf) => leaf.grad as Tensor) };
    };
    const [one, other] = [await run(fused), await run(composed)];
    const valuesOf = async (x: Tensor) => reference(x.shape, await x.toArray());
    await expectClose(one.y, await valuesOf(other.y), tolerances.f32.forward, "value");
    for (const [index, gradient] of one.gradients.entries()) {
      const wanted = other.gradients[index];
      expect(wanted, `the composed form has gradient ${index}`).toBeTruthy();
      const expected = await valuesOf(wanted as Tensor);
      await expectClose(gradient, expected, tolerances.f32.gradient, `gradient ${index}`);
    }
  });
}
