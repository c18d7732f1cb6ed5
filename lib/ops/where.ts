import { differentiable } from "../core/autograd.js";
import {
  broadcastShapes,
  checkDType,
  checkSameDevice,
  checkSameDType,
  checkTensor,
} from "../core/check.js";
import { full } from "../core/create.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { type Operand, scalarLike, sumTo } from "./broadcast.js";

/**
 * condition ? a : b outside of the tape, for checked operands.
 * @internal
 */
export function applyWhere(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  const inner = broadcastShapes("where", a.shape, b.shape);
  const y = empty(broadcastShapes("where", condition.shape, inner), a);
  native.where(condition.native, a.native, b.native, y.native);
  return y;
}

/**
 * a where condition is not 0, b elsewhere, with NumPy's broadcasting of all three. Elements that
 * are not chosen have no influence, not even NaN, and get a gradient of 0.
 * @param condition i32, such as the result of a comparison
 * @param a a tensor or a number
 * @param b a tensor of a's dtype, or a number; two numbers give f32
 */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  checkDType("where", "condition", condition, "i32");
  for (const [name, operand] of [
    ["a", a],
    ["b", b],
  ] as const) {
    if (typeof operand === "number") continue;
    checkTensor("where", name, operand);
    checkSameDevice("where", condition, operand);
  }
  const like = [a, b].find((operand) => typeof operand !== "number") ?? {
    dtype: "f32" as const,
    device: condition.device,
  };
  const shapeOf = (operand: Operand) => (typeof operand === "number" ? [] : operand.shape);
  if (typeof a !== "number" && typeof b !== "number") checkSameDType("where", a, b);
  broadcastShapes("where", condition.shape, broadcastShapes("where", shapeOf(a), shapeOf(b)));
  const left = typeof a === "number" ? scalarLike("where", "a", a, like) : a;
  const right = typeof b === "number" ? scalarLike("where", "b", b, like) : b;
  const { shape: shapeA } = left;
  const { shape: shapeB } = right;
  const y = differentiable("where", {
    inputs: [left, right],
    outputs: [applyWhere(condition, left, right)],
    saved: [condition],
    backward: ([dy], [condition], _into, needs) => {
      const zero = full([], 0, { dtype: (dy as Tensor).dtype, device: (dy as Tensor).device });
      return [
        needs(0) ? sumTo(applyWhere(condition as Tensor, dy as Tensor, zero), shapeA) : null,
        needs(1) ? sumTo(applyWhere(condition as Tensor, zero, dy as Tensor), shapeB) : null,
      ];
    },
  });
  if (typeof a === "number") left.dispose();
  if (typeof b === "number") right.dispose();
  return y;
}
