// Gradients and values in three hard cases: a reciprocal, square or exponential of the argument
// leaves f32's range and the result does not; 0 would meet an infinity in a product; a sum would
// round away the significant part.
import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import * as ops from "../../lib/ops/index.js";
import { type FloatDType, reference, rounded } from "../support/reference.js";

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
const dtypes = ["f32", "bf16"] as const;
const precision = { f32: 2e-6, bf16: 1e-2 };

const inDType = (values: readonly number[], dtype: FloatDType) =>
  Array.from(rounded(reference([values.length], values), dtype).data);

/**
 * Infinities, NaN and zeros must be the same (but for the sign of a zero), finite numbers close.
 */
function expectNear(got: ArrayLike<number>, wanted: readonly number[], dtype: FloatDType) {
  const values = Array.from(got);
  const rightOrClose = wanted.map((want, i) => {
    const value = values[i] as number;
    const close = Math.abs(value - want) <= Math.abs(want) * precision[dtype];
    return close || Object.is(value, want) ? value : want;
  });
  expect(values).toEqual(rightOrClose);
}

/** The value for x, and the gradients of all inputs for dy. */
async function derivatives(
  op: (...inputs: Tensor[]) => Tensor,
  inputs: readonly (readonly number[])[],
  dy: readonly number[],
  dtype: FloatDType,
) {
  return scope(async () => {
    const leaves = inputs.map((x) => tensor([...x], { dtype, requiresGrad: true }));
    const y = op(...leaves);
    y.backward({
      gradient: ops.reshape(tensor([...dy], { dtype: y.dtype as FloatDType }), y.shape),
    });
    const gradients = [];
    for (const { grad } of leaves) gradients.push(Array.from(await (grad as Tensor).toArray()));
    return { y: Array.from(await y.toArray()), gradients };
  });
}

const big = 2 ** 127;
/** Op, its derivative times dy in float64, and pairs of x and dy. */
const slopes: [string, (x: Tensor) => Tensor, (x: number, dy: number) => number, number[][]][] = [
  [
    "log",
    ops.log,
    (x, dy) => dy / x,
    [
      [1e-39, 1e-10],
      [1e-40, -1e-3],
      [3e38, 1e30],
      [0, 1],
    ],
  ],
  [
    "sqrt",
    ops.sqrt,
    (x, dy) => dy / (2 * Math.sqrt(x)),
    [
      [1e-39, 1],
      [1e-40, 1e10],
      [0, 1],
    ],
  ],
  [
    "rsqrt",
    ops.rsqrt,
    (x, dy) => -dy / (2 * x * Math.sqrt(x)),
    [
      [1e-39, 1e-25],
      [1e-35, 1e-20],
      [1e30, 1e30],
    ],
  ],
  [
    "reciprocal",
    ops.reciprocal,
    (x, dy) => -dy / x / x,
    [
      [1e-30, 1e-30],
      [1e-25, -1e-20],
      [1e30, 1e38],
    ],
  ],
  [
    "square",
    ops.square,
    (x, dy) => 2 * x * dy,
    [
      [3e38, 0.1],
      [-big, 0.25],
      [3e38, 0],
    ],
  ],
  [
    "exp",
    ops.exp,
    (x, dy) => Math.exp(x) * dy,
    [
      [80, 1e-30],
      [-80, 1e30],
      [-inf, 1],
    ],
  ],
  [
    "tanh",
    ops.tanh,
    (x, dy) => dy * Math.cosh(Math.min(Math.abs(x), 400)) ** -2,
    [
      [20, 1e10],
      [-inf, 1],
      [3e38, 1],
    ],
  ],
  [
    "sin",
    ops.sin,
    (x, dy) => dy * Math.cos(x),
    [
      [1e5, 1],
      [-1e-40, 2],
    ],
  ],
];

describe.each(dtypes)("gradients at the ends of the range in %s", (dtype) => {
  it.each(slopes)("%s", async (_, op, slope, pairs) => {
    const x = inDType(
      pairs.map((pair) => pair[0] as number),
      dtype,
    );
    const dy = inDType(
      pairs.map((pair) => pair[1] as number),
      dtype,
    );
    const { gradients } = await derivatives(op, [x], dy, dtype);
    const wanted = x.map((value, i) => slope(value, dy[i] as number));
    expectNear(gradients[0] ?? [], inDType(wanted, dtype), dtype);
  });

  it("relu and abs choose, whatever the gradient that comes in", async () => {
    const x = [-1, -inf, 0, -0, 2, inf, -3, nan];
    const dy = [inf, -inf, inf, nan, inf, -inf, nan, 1];
    const { gradients: relu } = await derivatives(ops.relu, [x], dy, dtype);
    expect(relu[0]).toEqual([0, 0, 0, 0, inf, -inf, 0, 1]);
    const { gradients: abs } = await derivatives(ops.abs, [x], dy, dtype);
    expect(abs[0]).toEqual([-inf, inf, 0, 0, inf, -inf, nan, nan]);
  });

  it.each([
    ["silu", ops.silu],
    ["gelu", ops.gelu],
  ] as const)("%s is flat on the left and x on the right, to infinity", async (_, op) => {
    const x = inDType([-inf, -3e38, -1e20, -300, 300, 1e20, 3e38, inf, nan], dtype);
    const dy = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    const { y, gradients } = await derivatives(op, [x], dy, dtype);
    expect(y.map((v) => v + 0)).toEqual([0, 0, 0, 0, ...x.slice(4)]);
    expect(gradients[0]?.map((v) => v + 0)).toEqual([0, 0, 0, 0, 5, 6, 7, 8, nan]);
  });

  it("swiglu likewise", async () => {
    const gate = inDType([-inf, -3e38, -300, 300, 1e20, inf], dtype);
    const up = [2, 3, 4, 5, 6, 7];
    const joined = (g: Tensor, u: Tensor) => ops.swiglu(ops.concat([g, u]));
    const { y, gradients } = await derivatives(
      joined as never,
      [gate, up],
      up.map(() => 1),
      dtype,
    );
    const silu = gate.map((g) => Math.max(g, 0));
    expectNear(
      y.map((v) => v + 0),
      inDType(
        silu.map((s, i) => s * (up[i] as number)),
        dtype,
      ),
      dtype,
    );
    expect(gradients[0]?.map((v) => v + 0)).toEqual([0, 0, 0, 5, 6, 7]);
    expect(gradients[1]?.map((v) => v + 0)).toEqual(silu);
  });

  it("division, where b² or a/b² leaves the range", async () => {
    const a = inDType([1e-38, 1, 0, 1e30], dtype);
    const b = inDType([1e-36, 1e-30, 1e-30, 1e20], dtype);
    const dy = inDType([1e-3, 1e-30, 1, 1], dtype);
    const { gradients } = await derivatives(ops.div as never, [a, b], dy, dtype);
    const at = (x: number[], i: number) => x[i] as number;
    const da = dy.map((d, i) => d / at(b, i));
    const db = dy.map((d, i) => -((d * (at(a, i) / at(b, i))) / at(b, i)));
    expectNear(gradients[0] ?? [], inDType(da, dtype), dtype);
    expectNear(
      gradients[1]?.map((v) => v + 0) ?? [],
      inDType(
        db.map((v) => v + 0),
        dtype,
      ),
      dtype,
    );
  });

  it("max and min, where dy is infinite", async () => {
    const { gradients } = await derivatives((x) => ops.max(x as Tensor), [[1, 3, 3]], [inf], dtype);
    expect(gradients[0]).toEqual([0, inf, inf]);
    const { gradients: least } = await derivatives(
      (x) => ops.min(ops.reshape(x as Tensor, [2, 2]), 1),
      [[1, 3, nan, 3]],
      [-inf, 1],
      dtype,
    );
    expect(least[0]).toEqual([-inf, 0, nan, nan]);
    const { gradients: pair } = await derivatives(
      ops.maximum as never,
      [
        [1, 2, 3],
        [2, 2, 2],
      ],
      [inf, inf, inf],
      dtype,
    );
    expect(pair).toEqual([
      [0, inf, inf],
      [inf, inf, 0],
    ]);
  });

  it("logSoftmax, where probabilities round to 0 and dy is infinite", async () => {
    // In the last row a probability is 0: 0 times infinity has no value.
    const rows = [
      [100, -100, -120, 0],
      [0, -100, -95, 3],
      [0, 0, -inf, 0],
    ];
    const dy = [0, inf, 0, 0, 0, 0, 0, -inf, inf, 0, 0, 0];
    const { y, gradients } = await derivatives(
      (x) => ops.logSoftmax(ops.reshape(x as Tensor, [3, 4])),
      [rows.flat()],
      dy,
      dtype,
    );
    expectNear(y.slice(0, 4), [0, -200, -220, -100], dtype);
    expect(gradients[0]).toEqual([-inf, nan, -inf, -inf, inf, inf, inf, nan, nan, -inf, nan, -inf]);
  });

  it("rmsNorm of rows whose squares leave the range", async () => {
    for (const [scale, eps] of [
      [1e25, 1e-5],
      [1e34, 1e-5],
      [1e-30, 0],
      [1e-36, 0],
      [1e-18, 1e-40],
    ] as const) {
      for (const columns of [4, 40, 2051]) {
        const x = inDType(
          Array.from({ length: columns }, (_, i) => scale * ((i % 5) - 1.5)),
          dtype,
        );
        const dy = x.map((_, i) => (i === 1 ? 1 : 0));
        const ones = x.map(() => 1);
        const { y, gradients } = await derivatives(
          (v, w) => ops.rmsNorm(v as Tensor, w as Tensor, eps),
          [x, ones],
          dy,
          dtype,
        );
        const rms = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / columns + eps);
        const n = x.map((v) => v / rms);
        expectNear(y, inDType(n, dtype), dtype);
        const along = (n[1] as number) / columns;
        const dx = n.map((v, i) => ((i === 1 ? 1 : 0) - v * along) / rms);
        const largest = Math.max(...dx.map(Math.abs));
        const worst = Math.max(...dx.map((d, i) => Math.abs(d - (gradients[0]?.[i] as number))));
        expect(worst / largest, `${scale}, ${columns}`).toBeLessThan(precision[dtype]);
        expectNear(
          gradients[1] ?? [],
          inDType(
            dy.map((d, i) => d * (n[i] as number)),
            dtype,
          ),
          dtype,
        );
      }
    }
  });
});

describe("cross-entropy of logits far from 0", () => {
  it.each([0, 1e3, -1e3, 1e5, -1e5, 1e6])("by %d", async (offset) => {
    for (const classes of [3, 40, 3001]) {
      const uniform = (i: number) => ((i * 2654435761) % 1000) / 250 - 2;
      const logits = inDType(
        Array.from({ length: 2 * classes }, (_, i) => offset + uniform(i)),
        "f32",
      );
      const targets = tensor([1, 2], { dtype: "i32" });
      const { y, gradients } = await derivatives(
        (x) => ops.crossEntropy(ops.reshape(x as Tensor, [2, classes]), targets),
        [logits],
        [1],
        "f32",
      );
      const rows = [logits.slice(0, classes), logits.slice(classes)];
      const p = rows.map((row) => {
        const weights = row.map((v) => Math.exp(v - offset));
        const sum = weights.reduce((a, b) => a + b, 0);
        return weights.map((w) => w / sum);
      });
      const chosen = p.map((row, i) => row[i + 1] as number);
      expectNear(y, [-chosen.reduce((sum, v) => sum + Math.log(v), 0) / 2], "f32");
      const wanted = p.flatMap((row, i) => row.map((v, j) => (v - (j === i + 1 ? 1 : 0)) / 2));
      expectNear(gradients[0] ?? [], wanted, "f32");
    }
  });
});
