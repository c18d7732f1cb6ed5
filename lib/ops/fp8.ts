/** Tensors in fp8 and their products: what the differentiable operations of fp8 are made of. */
import type { GradientTarget } from "../core/autograd.js";
import { DTypeError, ShapeError } from "../core/errors.js";
import { type Fp8Format, fp8Multiple } from "../core/fp8.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

/**
 * Formats of the tensors and sums of the products, found by experiment: docs/LOG.md has the table.
 * @internal
 */
export const fp8Choices = {
  /** Of activations and weights. */
  forward: "f8e4m3" as Fp8Format,
  /** Of gradients. Their bounds can be far above their numbers, which e5m2's range allows. */
  gradient: "f8e5m2" as Fp8Format,
  /**
   * Whether the tensor cores add up sums by themselves, with fewer bits than f32. On an H200 a sum of
   * 11,264 products then errs by 0.2%, and the rounding of the operands alone by 5.9%. Sums over all
   * tokens of a micro-batch are the longest, so the gradients of weights are not left to them.
   */
  fast: { output: true, inputGradient: true, weightGradient: false },
};

/** The 8 bits of a tensor, as rows or as columns, and the number that they are multiplied with. */
export interface Fp8Part {
  readonly bits: Tensor;
  readonly scale: Tensor;
}

/** A tensor in fp8: (..., width) rows, and the transpose (width, rows) padded with zeros. */
export interface Fp8Copy {
  readonly rows: Tensor | null;
  readonly columns: Tensor | null;
  readonly scale: Tensor;
}

/** A tensor of a product in fp8: its input, its weight, or the gradient of its result. */
export type Fp8Role = "input" | "weight" | "gradient";

/** Sees each tensor of a product in fp8 once it is there; null where nobody looks. */
export type Fp8Observer = ((role: Fp8Role, part: Fp8Part) => void) | null;

/** Which of the two layouts are made. */
export interface Fp8Layouts {
  rows: boolean;
  columns: boolean;
}

/** Makes the tensors of a copy, without contents. */
export function emptyCopy(
  shape: readonly number[],
  like: Tensor,
  { rows, columns }: Fp8Layouts,
  dtype: Fp8Format,
): Fp8Copy {
  const { device } = like;
  const width = shape.at(-1) as number;
  const count = shape.reduce((product, extent) => product * extent, 1) / width;
  const padded = Math.ceil(count / fp8Multiple) * fp8Multiple;
  return {
    rows: rows ? empty(shape, { dtype, device }) : null,
    columns: columns ? empty([width, padded], { dtype, device }) : null,
    scale: empty([1], { device }),
  };
}

/** The largest |x|, f32 (1). */
export function fp8Maximum(x: Tensor): Tensor {
  const maximum = empty([1], { device: x.device });
  native.fp8Maximum(x.native, maximum.native);
  return maximum;
}

/** Casts a bf16 tensor with the scale of its largest number, or of a given bound. */
export function fp8Cast(
  x: Tensor,
  layouts: Fp8Layouts,
  dtype: Fp8Format,
  bound: Tensor | null = null,
): Fp8Copy {
  const maximum = bound ?? fp8Maximum(x);
  const copy = emptyCopy(x.shape, x, layouts, dtype);
  castInto(x, maximum, copy);
  if (!bound) maximum.dispose();
  return copy;
}

/** Casts a bf16 tensor into an existing copy. */
export function castInto(x: Tensor, bound: Tensor, { rows, columns, scale }: Fp8Copy): void {
  native.fp8Cast(
    x.native,
    bound.native,
    rows?.native ?? null,
    columns?.native ?? null,
    scale.native,
  );
}

/** Frees a copy's rows, columns, or all of it. */
export function dropCopy(copy: Fp8Copy): void {
  copy.rows?.dispose();
  copy.columns?.dispose();
  copy.scale.dispose();
}

/** Rows of a copy as an operand. */
export const rowsOf = ({ rows, scale }: Fp8Copy): Fp8Part => ({ bits: rows as Tensor, scale });

/** Shows a copy to an observer, by its rows if it has them. */
export function observed(observe: Fp8Observer, role: Fp8Role, copy: Fp8Copy): Fp8Copy {
  observe?.(role, copy.rows ? rowsOf(copy) : columnsOf(copy));
  return copy;
}

/** Columns of a copy as an operand. */
export const columnsOf = ({ columns, scale }: Fp8Copy): Fp8Part => ({
  bits: columns as Tensor,
  scale,
});

/**
 * a (..., K) · bᵀ (N, K) + bias, in bf16.
 * @param bias (N) bf16, or null
 */
export function fp8Product(a: Fp8Part, b: Fp8Part, bias: Tensor | null, fast: boolean): Tensor {
  const outputs = b.bits.shape[0] as number;
  const { device } = a.bits;
  const y = empty([...a.bits.shape.slice(0, -1), outputs], { dtype: "bf16", device });
  let multiply = native.fp8Gemm;
  if (bias) {
    // The product adds to rows that hold the bias. max(b, b) is b, and broadcasts.
    native.binary(bias.native, bias.native, y.native, "maximum");
    multiply = native.fp8GemmAccumulate;
  }
  multiply(a.bits.native, a.scale.native, b.bits.native, b.scale.native, y.native, fast);
  return y;
}

/**
 * The gradient of a weight (outputs, inputs): dyᵀ · x, summed over all rows, in the leaf's f32
 * buffer if there is one.
 * @returns null if the gradient is in the leaf's buffer
 */
export function fp8WeightGradient(
  dy: Fp8Part,
  x: Fp8Part,
  weight: Tensor,
  target: GradientTarget | null,
): Tensor | null {
  const gradient = target?.tensor ?? empty(weight.shape, weight);
  const multiply = target?.accumulate ? native.fp8GemmAccumulate : native.fp8Gemm;
  const { weightGradient: fast } = fp8Choices.fast;
  multiply(dy.bits.native, dy.scale.native, x.bits.native, x.scale.native, gradient.native, fast);
  return target ? null : gradient;
}

/** Checks the input and the weight of a product in fp8. */
export function checkFp8(op: string, x: Tensor, weight: Tensor): void {
  for (const [name, tensor] of [
    ["x", x],
    ["weight", weight],
  ] as const) {
    if (tensor.dtype !== "bf16") {
      throw new DTypeError(
        `[${op}] expected dtype bf16 for ${name} but received ${tensor.dtype}: fp8 is a form of bf16 training`,
      );
    }
  }
  const [outputs, inputs] = weight.shape as [number, number];
  if (weight.rank !== 2 || x.shape.at(-1) !== inputs) {
    throw new ShapeError(
      `[${op}] expected weight of shape (outputs, ${x.shape.at(-1)}) but received [${weight.shape}]`,
    );
  }
  if (inputs % fp8Multiple !== 0 || outputs % fp8Multiple !== 0) {
    throw new ShapeError(
      `[${op}] fp8 needs widths that are multiples of ${fp8Multiple}, got a weight of shape [${weight.shape}]`,
    );
  }
}
