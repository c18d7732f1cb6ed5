import type { Tensor } from "../core/tensor.js";
import { linear } from "../ops/linear.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** y = x · weightᵀ, without bias as in Llama. The weight has the shape (outputs, inputs). */
export class Linear extends Module {
  readonly weight: Parameter;

  /** @param std standard deviation of the normal initialisation */
  constructor(inputs: number, outputs: number, std: number) {
    super();
    this.weight = new Parameter([outputs, inputs], { kind: "normal", std });
  }

  /** @param x (..., inputs) @returns (..., outputs) */
  forward(x: Tensor): Tensor {
    return linear(x, this.weight.tensor);
  }
}
