import { differentiable } from "../core/autograd.js";
import { checkFloat, shapeText } from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { mul } from "./binary.js";
import { split } from "./slice.js";
import { sigmoid } from "./unary.js";

/**
 * SwiGLU on the packed product of one matrix: y = silu(gate) · up with silu(g) = g / (1 + e^-g).
 * @param gateUp (..., 2 · ffn) bf16 or f32: the gate half, then the up half
 * @returns y (..., ffn) with the dtype of gateUp
 * @throws ShapeError if the last axis is not even
 * @see Shazeer 2020, arXiv 2002.05202
 */
export function swiglu(gateUp: Tensor): Tensor {
  checkFloat("swiglu", "gateUp", gateUp);
  const width = gateUp.shape.at(-1);
  if (width === undefined || width % 2 !== 0) {
    throw new ShapeError(
      `[swiglu] expected an even last axis (gate and up) for gateUp but received shape ${shapeText(gateUp.shape)}`,
    );
  }
  const y = empty([...gateUp.shape.slice(0, -1), width / 2], gateUp);
  native.swigluForward(gateUp.native, y.native);
  return differentiable("swiglu", {
    inputs: [gateUp],
    outputs: [y],
    saved: [gateUp],
    backward: ([dy], [gateUp]) => {
      const dGateUp = empty((gateUp as Tensor).shape, gateUp as Tensor);
      native.swigluBackward((dy as Tensor).native, (gateUp as Tensor).native, dGateUp.native);
      return [dGateUp];
    },
  });
}

/**
 * `swiglu` composed of plain operations: its definition, and the oracle of its test.
 * @param gateUp (..., 2 · ffn): the gate half, then the up half
 * @returns (..., ffn)
 */
export function composedSwiglu(gateUp: Tensor): Tensor {
  const ffn = (gateUp.shape.at(-1) as number) / 2;
  const [gate, up] = split(gateUp, ffn, -1) as [Tensor, Tensor]; // (..., ffn) each
  return mul(mul(gate, sigmoid(gate)), up);
}
