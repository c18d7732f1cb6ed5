import { tensor } from "../core/create.js";
import { native } from "../core/native.js";
import type { Tensor } from "../core/tensor.js";
import { decisionSize, guardStateSize } from "../optim/guard.js";
import type { KernelCase, Workbench } from "./kernel-case.js";

/** The kernels of a training step, at the sizes of that step. */
export function trainingKernels(bench: Workbench): KernelCase[] {
  return [
    ...products(bench),
    ...attention(bench),
    ...layers(bench),
    ...ends(bench),
    ...update(bench),
  ];
}

/** y = x·Wᵀ and the two products of its backward. Weight gradients are f32 and accumulate. */
function products(bench: Workbench): KernelCase[] {
  const { tokens, shapes } = bench;
  const { hiddenSize, intermediateSize, heads, kvHeads, headSize } = shapes.model;
  const matrices: [string, number, number][] = [
    ["qkv", (heads + 2 * kvHeads) * headSize, hiddenSize],
    ["attention output", hiddenSize, heads * headSize],
    ["gate and up", 2 * intermediateSize, hiddenSize],
    ["down", hiddenSize, intermediateSize],
  ];
  const group = "matrix products";
  return matrices.flatMap(([name, outputs, inputs]): KernelCase[] => {
    const work = { flops: 2 * tokens * outputs * inputs };
    const x = () => bench.random([tokens, inputs]);
    const weight = () => bench.random([outputs, inputs], bench.dtype, 0.02);
    const gradient = () => bench.random([tokens, outputs]);
    const call =
      (
        kernel: typeof native.gemm,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        first: boolean,
        second: boolean,
      ) =>
      () =>
        kernel(a.native, b.native, c.native, first, second, false);
    return [
      {
        group,
        name: `${name} ${outputs}x${inputs}, forward`,
        work,
        prepare: () =>
          call(native.gemm, x(), weight(), bench.empty([tokens, outputs]), false, true),
      },
      {
        group,
        name: `${name} ${outputs}x${inputs}, input gradient`,
        work,
        prepare: () =>
          call(native.gemm, gradient(), weight(), bench.empty([tokens, inputs]), false, false),
      },
      {
        group,
        name: `${name} ${outputs}x${inputs}, weight gradient`,
        work,
        prepare: () => {
          const sum = bench.filled([outputs, inputs], "f32", 0);
          return call(native.gemmAccumulate, gradient(), x(), sum, true, false);
        },
      },
    ];
  });
}

/**
 * Causal attention, which needs half of the products of all tokens with all tokens. Forward has two
 * products, backward five.
 */
function attention(bench: Workbench): KernelCase[] {
  const { microBatch, sequenceLength, model } = bench.shapes;
  const { heads, kvHeads, headSize } = model;
  const flops = 2 * microBatch * heads * sequenceLength ** 2 * headSize;
  const scale = 1 / Math.sqrt(headSize);
  const make = () => {
    const window = [microBatch, sequenceLength];
    const qkv = bench.random([...window, (heads + 2 * kvHeads) * headSize]);
    const o = bench.empty([...window, heads * headSize]);
    const statistics = bench.empty([2, microBatch, heads, sequenceLength], "f32");
    const forward = () =>
      native.attentionForward(qkv.native, null, o.native, statistics.native, heads, kvHeads, scale);
    return { qkv, o, statistics, forward };
  };
  return [
    {
      group: "attention",
      name: `attention ${heads}/${kvHeads} heads of ${headSize}, forward`,
      work: { flops },
      prepare: () => make().forward,
    },
    {
      group: "attention",
      name: `attention ${heads}/${kvHeads} heads of ${headSize}, backward`,
      work: { flops: 2.5 * flops },
      prepare: () => {
        const { qkv, o, statistics, forward } = make();
        forward();
        const gradient = bench.random(o.shape);
        const dQkv = bench.empty(qkv.shape);
        return () =>
          native.attentionBackward(
            gradient.native,
            qkv.native,
            o.native,
            statistics.native,
            null,
            dQkv.native,
            heads,
            kvHeads,
            scale,
          );
      },
    },
  ];
}

/** Norms, positions and the gate. */
function layers(bench: Workbench): KernelCase[] {
  const { tokens, element, shapes } = bench;
  const { hiddenSize, intermediateSize, heads, kvHeads, headSize, rmsNormEps } = shapes.model;
  const row = element * tokens * hiddenSize;
  const group = "layers";
  const hidden = () => bench.random([tokens, hiddenSize]);
  const weight = () => bench.filled([hiddenSize], bench.dtype, 1);
  const rstd = () => bench.filled([tokens], "f32", 1);
  const packed = heads + 2 * kvHeads;
  return [
    {
      group,
      name: "rms_norm, forward",
      work: { bytes: 2 * row },
      prepare: () => {
        const [x, w, y, r] = [hidden(), weight(), bench.empty([tokens, hiddenSize]), rstd()];
        return () => native.rmsNormForward(x.native, w.native, y.native, r.native, rmsNormEps);
      },
    },
    {
      group,
      name: "rms_norm with residual, forward",
      work: { bytes: 4 * row },
      prepare: () => {
        const [x, skip, w, r] = [hidden(), hidden(), weight(), rstd()];
        const [sum, y] = [hidden(), hidden()];
        return () =>
          native.addRmsNormForward(
            ...[x.native, skip.native, w.native],
            ...[sum.native, y.native, r.native],
            rmsNormEps,
          );
      },
    },
    {
      group,
      name: "rms_norm with residual, backward",
      work: { bytes: 4 * row },
      prepare: () => {
        const [dy, x, w, r, dr, dx] = [hidden(), hidden(), weight(), rstd(), hidden(), hidden()];
        const dWeight = bench.filled([hiddenSize], "f32", 0);
        return () =>
          native.rmsNormBackward(
            ...[dy.native, x.native, w.native, r.native],
            ...[dr.native, dx.native, dWeight.native],
          );
      },
    },
    {
      group,
      name: "rope in place",
      work: { bytes: 2 * element * tokens * (heads + kvHeads) * headSize },
      prepare: () => {
        const { microBatch, sequenceLength } = shapes;
        const x = bench.random([microBatch, sequenceLength, packed * headSize]);
        const table = bench.empty([sequenceLength, headSize / 2, 2], "f32");
        native.ropeTable(table.native, shapes.model.ropeTheta);
        return () =>
          native.rope(
            ...[x.native, table.native, null, x.native],
            ...[packed, heads + kvHeads, 0, false],
          );
      },
    },
    {
      group,
      name: "swiglu, forward",
      work: { bytes: 3 * element * tokens * intermediateSize },
      prepare: () => {
        const gateUp = bench.random([tokens, 2 * intermediateSize]);
        const y = bench.empty([tokens, intermediateSize]);
        return () => native.swigluForward(gateUp.native, y.native);
      },
    },
    {
      group,
      name: "swiglu, backward",
      work: { bytes: 5 * element * tokens * intermediateSize },
      prepare: () => {
        const gateUp = bench.random([tokens, 2 * intermediateSize]);
        const dy = bench.random([tokens, intermediateSize]);
        const gradient = bench.empty(gateUp.shape);
        return () => native.swigluBackward(dy.native, gateUp.native, gradient.native);
      },
    },
  ];
}

/** Embedding and head. */
function ends(bench: Workbench): KernelCase[] {
  const { tokens, element, shapes, device } = bench;
  const { hiddenSize, vocabSize } = shapes.model;
  const row = element * tokens * hiddenSize;
  const ids = () => {
    const numbers = Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % vocabSize);
    return tensor(numbers, { dtype: "i32", device });
  };
  const rowsTouched = Math.min(tokens, vocabSize);
  const group = "embedding and head";
  return [
    {
      group,
      name: "embedding, forward",
      work: { bytes: row + element * rowsTouched * hiddenSize },
      prepare: () => {
        const [index, weight] = [ids(), bench.random([vocabSize, hiddenSize])];
        const y = bench.empty([tokens, hiddenSize]);
        return () => native.embeddingForward(index.native, weight.native, y.native);
      },
    },
    {
      group,
      name: "embedding, backward",
      work: { bytes: row + 8 * rowsTouched * hiddenSize },
      prepare: () => {
        const [index, dy] = [ids(), bench.random([tokens, hiddenSize])];
        const sum = bench.filled([vocabSize, hiddenSize], "f32", 0);
        return () => native.embeddingBackward(index.native, dy.native, sum.native);
      },
    },
    {
      group,
      name: "linear_cross_entropy with gradients",
      work: { flops: 6 * tokens * vocabSize * hiddenSize },
      prepare: () => {
        const x = bench.random([tokens, hiddenSize]);
        const weight = bench.random([vocabSize, hiddenSize], bench.dtype, 0.02);
        const [targets, loss] = [ids(), bench.empty([1], "f32")];
        const dx = bench.empty([tokens, hiddenSize]);
        const dWeight = bench.empty([vocabSize, hiddenSize], "f32");
        return () =>
          native.linearCrossEntropy(
            ...[x.native, weight.native, targets.native, null, loss.native],
            ...[null, null, dx.native, dWeight.native, -100, false],
          );
      },
    },
  ];
}

/** The optimizer's kernels, on the parameters of one block. */
function update(bench: Workbench): KernelCase[] {
  const { hiddenSize, intermediateSize, heads, kvHeads, headSize } = bench.shapes.model;
  const query = heads * headSize;
  const size =
    hiddenSize * (2 * query + 2 * kvHeads * headSize + 3 * intermediateSize) + 2 * hiddenSize;
  const mixed = bench.dtype === "bf16";
  const f32 = (value: number) => bench.filled([size], "f32", value);
  const group = "optimizer, one block";
  return [
    {
      group,
      name: "adamw",
      // Reads and writes weights and both moments, reads the gradient. Mixed precision also writes
      // the bf16 weights.
      work: { bytes: (mixed ? 30 : 28) * size },
      prepare: () => {
        const weight = bench.random([size], bench.dtype, 0.02);
        const master = mixed ? bench.random([size], "f32", 0.02) : null;
        const [gradient, m, v] = [bench.random([size], "f32"), f32(0), f32(1)];
        const decision = tensor(Float32Array.of(1, 1, 1, 1, 1, 0, 0, 0), { device: bench.device });
        return () =>
          native.adamw(
            ...[weight.native, master?.native ?? null, gradient.native],
            ...[m.native, v.native, decision.native],
            ...[1e-4, 0.9, 0.95, 1e-8, 0.1],
          );
      },
    },
    {
      group,
      name: "sum_of_squares",
      work: { bytes: 4 * size },
      prepare: () => {
        const [x, sum] = [bench.random([size], "f32"), bench.empty([1], "f32")];
        return () => native.sumOfSquares(x.native, sum.native);
      },
    },
    {
      group,
      name: "step_guard (latency)",
      work: null,
      prepare: () => {
        const window = 100;
        const [loss, squares] = [bench.filled([], "f32", 1), bench.filled([24], "f32", 1)];
        const state = bench.filled([guardStateSize(window)], "f32", 0);
        const decision = bench.empty([decisionSize], "f32");
        return () =>
          native.stepGuard(
            ...[loss.native, squares.native, state.native, decision.native],
            ...[1, 0.9, 0.95, 6, 6, 50],
          );
      },
    },
  ];
}
