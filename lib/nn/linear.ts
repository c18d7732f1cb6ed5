import type { Tensor } from "../core/tensor.js";
import { type FrozenLinear, frozenLinear } from "../ops/adapted-linear.js";
import type { Fp8Observer } from "../ops/fp8.js";
import { fp8Linear, frozenFp8Linear } from "../ops/fp8-linear.js";
import type { Fp8Weights } from "../ops/fp8-weights.js";
import { linear } from "../ops/linear.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** A product that runs in fp8. @internal */
export interface Fp8Use {
  weights: Fp8Weights;
  /** Who looks at the product's tensors. */
  observe: Fp8Observer;
}

/** y = x · weightᵀ + bias. The weight has the shape (outputs, inputs), the bias (outputs). */
export class Linear extends Module {
  readonly weight: Parameter;
  /** null for a layer without bias, as in Llama. */
  readonly bias: Parameter | null;
  /**
   * Computes the layer with adapters, (..., inputs) to (..., outputs); null for a layer without any.
   * It may also return null, and then the layer computes alone.
   */
  adapter: ((x: Tensor, layer: FrozenLinear) => Tensor | null) | null = null;

  /**
   * @param std standard deviation of the weight's normal initialisation
   * @param bias whether the layer has a bias, initially 0. Default: false
   * @param parts outputs of the layers that are packed into this one. Default: one layer
   */
  constructor(
    inputs: number,
    outputs: number,
    std: number,
    bias = false,
    parts: readonly number[] = [outputs],
  ) {
    super();
    this.weight = new Parameter([outputs, inputs], { kind: "normal", std }, parts);
    this.bias = bias ? new Parameter([outputs], { kind: "constant", value: 0 }) : null;
  }

  /** The weight and the bias as tensors. @internal */
  get parts(): { weight: Tensor; bias: Tensor | null } {
    return { weight: this.weight.tensor, bias: this.bias?.tensor ?? null };
  }

  /**
   * @param x   (..., inputs)
   * @param fp8 how the layer's own product runs in fp8. Default: null, it runs in x's dtype
   * @returns (..., outputs)
   */
  forward(x: Tensor, fp8: Fp8Use | null = null): Tensor {
    const { parts } = this;
    const { weight, bias } = parts;
    if (this.adapter) {
      const layer = fp8
        ? frozenFp8Linear(parts, fp8.weights, fp8.observe)
        : frozenLinear(weight, bias);
      const y = this.adapter(x, layer);
      if (y) return y;
    }
    return fp8 ? fp8Linear(x, parts, fp8.weights, fp8.observe) : linear(x, weight, bias);
  }
}
