import { checkNumber } from "../core/check.js";
import type { Tensor } from "../core/tensor.js";
import { addRmsNorm, rmsNorm } from "../ops/rms-norm.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Root-mean-square norm over the last axis with a learned scale (Zhang & Sennrich 2019, arXiv 1910.07467). */
export class RMSNorm extends Module {
  readonly weight: Parameter;
  readonly eps: number;

  constructor(size: number, eps = 1e-5) {
    super();
    this.weight = new Parameter([size], { kind: "constant", value: 1 });
    checkNumber("RMSNorm", "eps", eps, { min: 0 });
    this.eps = eps;
  }

  /** The weight as a tensor, and eps. @internal */
  get parts(): { weight: Tensor; eps: number } {
    return { weight: this.weight.tensor, eps: this.eps };
  }

  /** @param x (..., size) @returns (..., size) */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight.tensor, this.eps);
  }

  /** Returns [x + skip, norm(x + skip)], computed in one pass over memory. */
  forwardAdd(x: Tensor, skip: Tensor): readonly [Tensor, Tensor] {
    return addRmsNorm(x, skip, this.weight.tensor, this.eps);
  }
}
