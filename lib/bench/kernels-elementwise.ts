import { native } from "../core/native.js";
import type { Tensor } from "../core/tensor.js";
import type { KernelCase, Workbench } from "./kernel-case.js";

type Prepare = () => () => void;

/**
 * Conversion, plain arithmetic, sums and copies of one activation, (tokens, hidden). Memory
 * bandwidth limits all of these. Normal random numbers read nothing, so their arithmetic limits
 * them instead.
 */
export function elementwiseKernels(bench: Workbench): KernelCase[] {
  const { tokens, element, dtype, shapes } = bench;
  const { hiddenSize, heads } = shapes.model;
  const size = [tokens, hiddenSize];
  const n = tokens * hiddenSize;
  const x = () => bench.random(size);
  const wide = () => bench.random(size, "f32");
  const y = () => bench.empty(size);
  const scalar = () => bench.filled([1], "f32", 0.5);
  const binary = (a: Tensor, b: Tensor, out: Tensor, kind: string) => () =>
    native.binary(a.native, b.native, out.native, kind);
  const reduced = (axes: number[], shape: number[]): Prepare => {
    return () => {
      const [input, out] = [x(), bench.empty(shape)];
      return () => native.reduce(input.native, out.native, axes, "sum");
    };
  };
  const permuted = (view: number[], permutation: number[]): Prepare => {
    return () => {
      const input = x().view(view);
      const out = bench.empty(permutation.map((axis) => view[axis] as number));
      return () => native.permute(input.native, out.native, permutation);
    };
  };
  type Case = [name: string, bytes: number, prepare: Prepare];
  const elementwise: Case[] = [
    [
      `copy ${dtype}`,
      2 * element * n,
      () => {
        const [from, to] = [x(), y()];
        return () => native.cast(from.native, to.native);
      },
    ],
    [
      `fill ${dtype}`,
      element * n,
      () => {
        const out = y();
        return () => native.fill(out.native, 1);
      },
    ],
    [
      "cast f32 to bf16",
      6 * n,
      () => {
        const [from, to] = [wide(), bench.empty(size, "bf16")];
        return () => native.cast(from.native, to.native);
      },
    ],
    [
      "cast bf16 to f32",
      6 * n,
      () => {
        const [from, to] = [bench.random(size, "bf16"), bench.empty(size, "f32")];
        return () => native.cast(from.native, to.native);
      },
    ],
    [
      `accumulate ${dtype} into f32`,
      (element + 8) * n,
      () => {
        const [from, sum] = [x(), wide()];
        return () => native.accumulate(from.native, sum.native);
      },
    ],
    [
      "accumulate_scaled f32",
      12 * n,
      () => {
        const [from, factor, sum] = [wide(), scalar(), wide()];
        return () => native.accumulateScaled(from.native, factor.native, sum.native);
      },
    ],
    [`add ${dtype}`, 3 * element * n, () => binary(x(), x(), y(), "add")],
    [
      `add ${dtype}, a row to all`,
      2 * element * n,
      () => binary(x(), bench.random([hiddenSize]), y(), "add"),
    ],
    [`multiply ${dtype} by a number`, 2 * element * n, () => binary(x(), scalar(), y(), "mul")],
    [
      `silu ${dtype}`,
      2 * element * n,
      () => {
        const [from, to] = [x(), y()];
        return () => native.unary(from.native, to.native, "silu");
      },
    ],
  ];
  const rows: Case[] = [
    [
      `softmax ${dtype}`,
      2 * element * n,
      () => {
        const [from, to] = [x(), y()];
        return () => native.softmax(from.native, to.native, false);
      },
    ],
    [`sum ${dtype}, all`, element * n, reduced([0, 1], [])],
    [`sum ${dtype}, over rows`, element * n, reduced([0], [hiddenSize])],
    [`sum ${dtype}, over columns`, element * n, reduced([1], [tokens])],
  ];
  const moves: Case[] = [
    [
      `permute heads ${dtype}`,
      2 * element * n,
      permuted([shapes.microBatch, shapes.sequenceLength, heads, hiddenSize / heads], [0, 2, 1, 3]),
    ],
    [`transpose ${dtype}`, 2 * element * n, permuted(size, [1, 0])],
    [
      `slice ${dtype}, half the columns`,
      element * n,
      () => {
        const [from, to] = [x(), bench.empty([tokens, hiddenSize / 2])];
        return () => native.slice(from.native, to.native, [0, 0]);
      },
    ],
  ];
  const random: Case[] = [
    [
      "philox_normal f32",
      4 * n,
      () => {
        const out = bench.empty(size, "f32");
        return () => native.philoxNormal(out.native, 0, 1, 1, 0);
      },
    ],
  ];
  const groups = { "element-wise": elementwise, rows, moves, "random numbers": random };
  return Object.entries(groups).flatMap(([group, cases]) =>
    cases.map(([name, bytes, prepare]) => ({ group, name, work: { bytes }, prepare })),
  );
}
