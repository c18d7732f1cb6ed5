import { describe, expect, it } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { ones, type zeros } from "../../lib/core/create.js";
import { AutogradError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { withIndependentRows } from "../../lib/core/independent-rows.js";
import { composedNormLinear, normLinear } from "../../lib/ops/norm-linear.js";
import { toTensor } from "../support/float-ops.js";
import { random, relativeError, tolerances } from "../support/reference.js";

// Rows that one kernel takes (up to 16) and more; widths of one chunk of 2048 columns, of several,
// and of a part; numbers of outputs that fill no tile.
const shapes = [
  { rows: 1, inputs: 2048, outputs: 70 },
  { rows: 2, inputs: 264, outputs: 48 },
  { rows: 3, inputs: 5632, outputs: 34 },
  { rows: 8, inputs: 64, outputs: 4300 },
  { rows: 11, inputs: 72, outputs: 34 },
  { rows: 16, inputs: 2056, outputs: 16 },
  { rows: 17, inputs: 40, outputs: 18 },
  { rows: 5, inputs: 7, outputs: 6 },
];

describe.each(["f32", "bf16"] as const)("normLinear in %s", (dtype) => {
  it.each(shapes)(
    "equals the norm, the product and SwiGLU for $rows rows, $inputs to $outputs",
    async ({ rows, inputs, outputs }) => {
      const x = toTensor(random([1, rows, inputs], 1, { dtype }), dtype);
      const skip = toTensor(random([1, rows, inputs], 2, { dtype }), dtype);
      const norm = toTensor(random([inputs], 3, { low: 0.5, high: 1.5 }), dtype);
      const weight = toTensor(random([outputs, inputs], 4, { dtype }), dtype);
      for (const added of [null, skip]) {
        for (const swiglu of [false, true]) {
          const arguments_ = [x, added, norm, weight, { eps: 1e-6, swiglu }] as const;
          const [sum, y] = noGrad(() => normLinear(...arguments_));
          const [expectedSum, expected] = composedNormLinear(...arguments_);
          expect(y.shape).toEqual([1, rows, swiglu ? outputs / 2 : outputs]);
          expect(await sum.toArray()).toEqual(await expectedSum.toArray());
          const got = await y.toArray();
          expect(relativeError(got, await expected.toArray())).toBeLessThan(
            tolerances[dtype].forward,
          );
        }
      }
    },
  );

  it("gives a row the bits that it has alone, among up to 16", async () => {
    const x = toTensor(random([16, 512], 1, { dtype }), dtype);
    const [norm, weight] = [[512], [48, 512]].map((shape, i) =>
      toTensor(random(shape, i + 2, { dtype }), dtype),
    ) as [ReturnType<typeof zeros>, ReturnType<typeof zeros>];
    if (dtype === "f32" && x.device.type === "cuda") return; // cuBLASLt chooses by the number of rows
    const [, all] = normLinear(x, null, norm, weight);
    const together = await all.toArray();
    for (const count of [9, 16]) {
      const [, some] = normLinear(x.view([count, 512]), null, norm, weight);
      expect(await some.toArray()).toEqual(together.slice(0, count * 48));
    }
  });

  it("takes rows whose squares overflow", async () => {
    const x = toTensor(random([2, 64], 1, { low: 1e25, high: 3e25 }), dtype);
    const weight = toTensor(random([16, 64], 2, { dtype }), dtype);
    const arguments_ = [x, null, ones([64], { dtype }), weight] as const;
    const [, y] = normLinear(...arguments_);
    const [, expected] = composedNormLinear(...arguments_);
    const error = relativeError(await y.toArray(), await expected.toArray());
    expect(error).toBeLessThan(tolerances[dtype].forward);
  });
});

describe("normLinear refuses", () => {
  const x = () => ones([2, 4]);
  it.each([
    ["a weight of another width", () => normLinear(x(), null, ones([4]), ones([3, 5])), ShapeError],
    ["a norm of another width", () => normLinear(x(), null, ones([5]), ones([3, 4])), ShapeError],
    [
      "skip of another shape",
      () => normLinear(x(), ones([4]), ones([4]), ones([3, 4])),
      ShapeError,
    ],
    [
      "an odd product for SwiGLU",
      () => normLinear(x(), null, ones([4]), ones([3, 4]), { swiglu: true }),
      ShapeError,
    ],
    [
      "another dtype of weight",
      () => normLinear(x(), null, ones([4]), ones([3, 4], { dtype: "bf16" })),
      DTypeError,
    ],
    [
      "a gradient",
      () => normLinear(x(), null, ones([4], { requiresGrad: true }), ones([3, 4])),
      AutogradError,
    ],
  ])("%s", (_name, call, error) => {
    expect(call).toThrow(error);
  });
});

it("gives a row the same bits beside any other rows, where rows must be independent", async () => {
  const [rows, inputs, outputs] = [40, 96, 64];
  const x = random([1, rows, inputs], 1, { dtype: "f32" });
  const norm = toTensor(random([inputs], 3, { low: 0.5, high: 1.5 }), "f32");
  const weight = toTensor(random([outputs, inputs], 4, { dtype: "f32" }), "f32");
  const run = async (count: number) => {
    const few = toTensor(x, "f32").view([1, count, inputs]);
    const [, y] = withIndependentRows(() => noGrad(() => normLinear(few, null, norm, weight)));
    return [...(await y.toArray())];
  };
  const all = await run(rows);
  for (const count of [1, 2, 7, 9, 33])
    expect(await run(count)).toEqual(all.slice(0, count * outputs));
});
