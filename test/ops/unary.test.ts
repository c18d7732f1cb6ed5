import { describe, expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { scope } from "../../lib/core/scope.js";
import {
  abs,
  cos,
  exp,
  gelu,
  log,
  neg,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  silu,
  sin,
  sqrt,
  square,
  tanh,
  type UnaryKind,
} from "../../lib/ops/unary.js";
import { checkOperation } from "../support/operations.js";
import { expectClose, map, type Reference, random, reference } from "../support/reference.js";

const logistic = (x: number) => 1 / (1 + Math.exp(-x));

interface Case {
  f: (x: number) => number;
  low: number;
  high: number;
  whole?: (x: number) => number;
  /** Allowed error in units in the last place, by default 4. */
  units?: number;
}

const cases: { [K in UnaryKind]: Case } = {
  neg: { f: (x) => -x, low: -2, high: 2, whole: (x) => -x | 0 },
  abs: { f: Math.abs, low: -2, high: 2, whole: (x) => Math.abs(x) | 0 },
  exp: { f: Math.exp, low: -5, high: 5 },
  log: { f: Math.log, low: 0.01, high: 9 },
  sqrt: { f: Math.sqrt, low: 0.01, high: 9 },
  rsqrt: { f: (x) => 1 / Math.sqrt(x), low: 0.1, high: 9 },
  square: { f: (x) => x * x, low: -3, high: 3, whole: (x) => Math.imul(x, x) },
  reciprocal: { f: (x) => 1 / x, low: 0.2, high: 4 },
  tanh: { f: Math.tanh, low: -4, high: 4 },
  sigmoid: { f: logistic, low: -6, high: 6 },
  silu: { f: (x) => x * logistic(x), low: -6, high: 6 },
  gelu: {
    // x/2 · (1 + tanh(u)) without cancellation.
    f: (x) => x * logistic(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)),
    low: -4,
    high: 4,
    units: 128, // one unit in the last place of the exponent 70 makes 64 in the result
  },
  relu: { f: (x) => Math.max(x, 0), low: -2, high: 2, whole: (x) => Math.max(x, 0) },
  sin: { f: Math.sin, low: -7, high: 7 },
  cos: { f: Math.cos, low: -7, high: 7 },
};
const ops = {
  abs,
  cos,
  exp,
  gelu,
  log,
  neg,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  silu,
  sin,
  sqrt,
  square,
  tanh,
};
const kinds = Object.keys(cases) as UnaryKind[];
const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

/** Values away from 0, where abs and relu have no derivative. */
const awayFromZero = (x: Reference) => map(x, (value) => (Math.abs(value) < 0.01 ? 0.5 : value));

describe.each(kinds)("%s", (kind) => {
  const { f, low, high, whole, units = 4 } = cases[kind];
  const op = ops[kind];

  it.each([[[]], [[1]], [[31]], [[33]], [[3, 5, 7]], [[2, 129]]])(
    "agrees with float64 on %j",
    async (shape) => {
      const inputs = [awayFromZero(random(shape, 5, { low, high }))];
      await checkOperation(kind, { op, ref: (x) => map(x, f), inputs });
    },
  );

  it(`is within ${units} units in the last place over many magnitudes`, async () => {
    const values = new Float32Array(40000);
    const sign = low < 0 ? [1, -1] : [1];
    values.forEach((_, i) => {
      values[i] = (sign[i % sign.length] as number) * 2 ** (-20 + (i * 26) / values.length);
    });
    // sin and cos have a bounded absolute error near a zero. Values below 2^-100 may become 0.
    const unitOf = (exact: number) =>
      kind === "sin" || kind === "cos" ? 2 ** -23 : Math.max(Math.abs(exact), 2 ** -100) * 2 ** -23;
    await scope(async () => {
      const y = await op(tensor(values)).toArray();
      let worst = { x: 0, error: 0 };
      for (const [i, x] of values.entries()) {
        const exact = f(x);
        const error =
          Math.abs(exact) > 3.4e38 ? 0 : Math.abs((y[i] as number) - exact) / unitOf(exact);
        if (!(error <= worst.error)) worst = { x, error };
      }
      expect(worst.error, `${kind}(${worst.x})`).toBeLessThanOrEqual(units);
    });
  });

  it("gives every lane of a NaN its NaN and leaves the others alone", async () => {
    const x = random([100], 3, { low: 0.5, high: 1 });
    x.data[17] = nan;
    x.data[99] = nan;
    await scope(async () => {
      const y = await op(tensor(Float32Array.from(x.data))).toArray();
      y.forEach((value, i) => {
        expect(Number.isNaN(value), `lane ${i}`).toBe(i === 17 || i === 99);
      });
    });
  });

  if (whole) {
    it("takes i32, which wraps around", async () => {
      const values = [0, 1, -1, 7, -46341, 65536, 2147483647, -2147483648];
      await scope(async () => {
        const y = op(tensor(values, { dtype: "i32" }));
        await expectClose(y, reference([values.length], values.map(whole)));
      });
    });
  }
});

it.each<[UnaryKind, number[], number[]]>([
  ["exp", [-inf, inf, 0, -200, 100], [0, inf, 1, 0, inf]],
  ["log", [0, -0, inf, -1, 1, 2 ** -140], [-inf, -inf, inf, nan, 0, Math.log(2 ** -140)]],
  ["sqrt", [0, inf, -1], [0, inf, nan]],
  ["rsqrt", [0, inf, -1], [inf, 0, nan]],
  ["reciprocal", [0, inf, -inf], [inf, 0, -0]],
  ["tanh", [0, inf, -inf, 20], [0, 1, -1, 1]],
  ["sigmoid", [0, inf, -inf, -200], [0.5, 1, 0, 0]],
  ["silu", [0, inf, -200], [0, inf, -0]],
  ["gelu", [0, 100, -100], [0, 100, -0]],
  ["relu", [0, inf, -inf, -3], [0, inf, 0, 0]],
  ["sin", [0, inf, 1e6, -1e6], [0, nan, Math.sin(1e6), -Math.sin(1e6)]],
  ["cos", [0, -inf, 1e6], [1, nan, Math.cos(1e6)]],
])("%s has PyTorch's values at the ends of its range", async (kind, values, expected) => {
  await scope(async () => {
    const y = await ops[kind](tensor(values)).toArray();
    expected.forEach((value, i) => {
      if (Number.isFinite(value) && value !== 0) expect(y[i]).toBeCloseTo(value, 5);
      else expect((y[i] as number) + 0, `${kind}(${values[i]})`).toBe(value + 0);
    });
  });
});

it.each<[UnaryKind, number, number]>([
  ["abs", 0, 0],
  ["relu", 0, 0],
  ["tanh", 60, 0],
  ["sigmoid", -200, 0],
  ["silu", -200, 0],
  ["sqrt", 0, inf],
])("the gradient of %s at %d is %d", async (kind, x, expected) => {
  await scope(async () => {
    const leaf = tensor([x], { requiresGrad: true });
    ops[kind](leaf).backward();
    expect(((await leaf.grad?.item()) ?? nan) + 0).toBe(expected);
  });
});
