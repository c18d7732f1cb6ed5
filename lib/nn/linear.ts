import type { Tensor } from "../core/tensor.js";
import { add } from "../ops/binary.js";
import { linear } from "../ops/linear.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** y = x · weightᵀ + bias. The weight has the shape (outputs, inputs), the bias (outputs). */
export class Linear extends Module {
  readonly weight: Parameter;
  /** null for a layer without bias, as in Llama. */
  readonly bias: Parameter | null;
  /**
   * What an adapter adds to the output, (..., inputs) to (..., outputs); null without one. The
   * adapter may also return null, and then adds nothing.
   */
  adapter: ((x: Tensor) => Tensor | null) | null = null;

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

  /** @param x (..., inputs) @returns (..., outputs) */
  forward(x: Tensor): Tensor {
    const y = linear(x, this.weight.tensor, this.bias?.tensor ?? null);
    if (this.adapter === null) return y;
    const change = this.adapter(x);
    if (change === null) return y;
    const sum = add(y, change);
    for (const part of [y, change]) part.dispose();
    return sum;
  }
}
