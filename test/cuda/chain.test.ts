import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { defaultDevice } from "../../lib/core/device.js";
import { record } from "../../lib/core/recording.js";
import { keep, scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { attentionPaged } from "../../lib/ops/attention.js";
import { linear, normLinear, ropeTable } from "../../lib/ops/index.js";
import { toTensor } from "../support/float-ops.js";
import { random } from "../support/reference.js";

// A recorded step of a GPU is one kernel for all layers (csrc/cuda/gemm/chain.cu), operation by
// operation it is one kernel each. On a CPU both are the same operations.

interface Sizes {
  rows: number;
  hidden: number;
  inner: number;
  headSize: number;
  heads: number;
  kvHeads: number;
  layers: number;
  vocabulary: number;
}

const page = 32;
const pagesOfRow = 40;

/** Weights of a few layers, and a function that computes one step with them over its own pages. */
function stepOf(sizes: Sizes) {
  const { rows, hidden, inner, headSize, heads, kvHeads, layers, vocabulary } = sizes;
  const weight = (seed: number, ...shape: number[]) =>
    toTensor(random(shape, seed, { low: -0.08, high: 0.08, dtype: "bf16" }), "bf16");
  const norm = (seed: number) =>
    toTensor(random([hidden], seed, { low: 0.5, high: 1.5, dtype: "bf16" }), "bf16");
  const all = Array.from({ length: layers }, (_, l) => ({
    norms: [norm(10 * l), norm(10 * l + 1)] as const,
    qkv: weight(10 * l + 2, (heads + 2 * kvHeads) * headSize, hidden),
    output: weight(10 * l + 3, hidden, heads * headSize),
    gateUp: weight(10 * l + 4, 2 * inner, hidden),
    down: weight(10 * l + 5, hidden, inner),
  }));
  const lastNorm = norm(101);
  const head = weight(102, vocabulary, hidden);
  const angles = ropeTable(page * pagesOfRow, headSize, 10_000);
  const table = tensor(
    Int32Array.from(
      { length: rows * pagesOfRow },
      (_, i) => ((i % pagesOfRow) * rows + Math.floor(i / pagesOfRow)) % (rows * pagesOfRow),
    ),
    { shape: [rows, pagesOfRow] },
  );
  return () => {
    const pages = all.map(() =>
      zeros([rows * pagesOfRow, 2, kvHeads, page, headSize], { dtype: "bf16" }),
    );
    return (x: Tensor, positions: Tensor): Tensor =>
      noGrad(() => {
        let stream = x;
        let change: Tensor | null = null;
        for (const [l, { norms, qkv, output, gateUp, down }] of all.entries()) {
          const [sum, packed] = normLinear(stream, change, norms[0], qkv);
          const mixed = attentionPaged(
            packed,
            pages[l] as Tensor,
            { table, positions },
            { heads, kvHeads, angles },
          );
          const [next, gated] = normLinear(sum, linear(mixed, output), norms[1], gateUp, {
            swiglu: true,
          });
          [stream, change] = [next, linear(gated, down)];
        }
        return normLinear(stream, change, lastNorm, head)[1];
      });
  };
}

// Widths that fill neither stages of 512 columns nor tiles. A GPU has one kernel for single rows
// where each of its multiprocessors has 4 rows of each weight.
const odd = { hidden: 640, inner: 1216, headSize: 64, heads: 10, kvHeads: 2, layers: 3 };
const cases: (Sizes & { what: string })[] = [
  { what: "one row", rows: 1, ...odd, vocabulary: 1001 },
  { what: "one row, a head of few rows", rows: 1, ...odd, layers: 1, vocabulary: 77 },
  {
    what: "one row, heads of 128",
    rows: 1,
    ...odd,
    headSize: 128,
    heads: 5,
    kvHeads: 1,
    vocabulary: 700,
  },
  // More heads and units of keys than a GPU has multiprocessors.
  {
    what: "one row, 64 kv heads",
    rows: 1,
    ...odd,
    heads: 64,
    kvHeads: 64,
    layers: 2,
    vocabulary: 700,
  },
  { what: "three rows", rows: 3, ...odd, layers: 1, vocabulary: 77 },
];
// Stages wrap around the ring of weights many times.
const large = { hidden: 2048, inner: 5632, headSize: 64, heads: 32, kvHeads: 4, layers: 2 };
if (defaultDevice().type === "cuda") {
  cases.push({ what: "one row of a model of 1.1B", rows: 1, ...large, vocabulary: 3000 });
}

describe("a recorded step of several layers", () => {
  it.each(cases)("has the bits of its operations one by one: $what", async (sizes) => {
    using _ = scope();
    const { rows, hidden } = sizes;
    const make = stepOf(sizes);
    const [recorded, apart] = [make(), make()];
    const x = zeros([1, rows, hidden], { dtype: "bf16" });
    const positions = zeros([1, rows], { dtype: "i32" });
    let y!: Tensor;
    using recording = record(defaultDevice(), () => {
      y = scope(() => keep(recorded(x, positions)));
    });
    // Positions around the 64 keys of a warp and the 512 of a block; later ones see keys of zeros.
    for (const [run, position] of [0, 1, 2, 63, 64, 65, 511, 512, 700, 1279].entries()) {
      const own = random([1, rows, hidden], 500 + run, { dtype: "bf16" });
      const values = toTensor(own, "bf16");
      x.native.write(new Uint16Array(await values.toBytes()));
      positions.native.write(
        Int32Array.from({ length: rows }, (_, row) => Math.max(0, position - 3 * row)),
      );
      recording.replay();
      const got = await y.toArray();
      const expected = await apart(x, positions).toArray();
      expect(got.every(Number.isFinite)).toBe(true);
      expect(got).toEqual(expected);
    }
  });
});
