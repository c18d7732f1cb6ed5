import type { Tensor } from "../core/tensor.js";
import { embedding } from "../ops/embedding.js";
import { Module } from "./module.js";
import { Parameter } from "./parameter.js";

/** Looks up a row of `weight` (count, size) for each id. */
export class Embedding extends Module {
  readonly weight: Parameter;

  constructor(count: number, size: number, std: number) {
    super();
    this.weight = new Parameter([count, size], { kind: "normal", std });
  }

  /** @param ids (...) i32 @returns (..., size) */
  forward(ids: Tensor): Tensor {
    return embedding(ids, this.weight.tensor);
  }
}
