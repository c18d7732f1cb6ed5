import { describe, expect, it, test } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { ones, zeros } from "../../lib/core/create.js";
import { AutogradError, DTypeError, LlamaForgeError, ShapeError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import {
  adaptedLinear,
  composedAdaptedLinear,
  frozenLinear,
  type LowRankAdapters,
} from "../../lib/ops/adapted-linear.js";
import { expectComposed } from "../support/composed.js";
import { toTensor } from "../support/float-ops.js";
import { random, relativeError, tolerances } from "../support/reference.js";

const inputs = 10;
const outputs = 14;
const rank = 3;

type Parts = LowRankAdapters["parts"];
const whole: Parts = [{ firstRow: 0, rows: outputs }];
const packed: Parts = [
  { firstRow: 0, rows: 8 },
  { firstRow: 8, rows: 2 },
  { firstRow: 10, rows: 4 },
];
const first: Parts = [{ firstRow: 0, rows: 8 }];
const ends: Parts = [packed[0], packed[2]] as Parts;
const cases: [name: string, parts: Parts, scale: number, dropout: boolean][] = [
  ["on the whole layer", whole, 2, false],
  ["on the whole layer, unscaled", whole, 1, false],
  ["on all matrices of a packed layer", packed, 0.5, false],
  ["on the first matrix", first, 2, false],
  ["on the first and the last", ends, 1.5, false],
  ["on the whole layer, with dropout", whole, 2, true],
  ["on all matrices, with dropout", packed, 2, true],
  ["on the first and the last, with dropout", ends, 1, true],
];

function settings(parts: Parts, scale: number, dropout: boolean) {
  const dropouts = parts.map((_, index) => (index === 1 ? null : { rate: 0.4, seed: 7 + index }));
  return { parts, scale, ...(dropout && { dropouts }) };
}

const halves = (parts: Parts) => {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  return [random([parts.length * rank, inputs], 3), random([rows, rank], 4)] as const;
};

describe("adaptedLinear", () => {
  it.each(cases)("equals its composed form %s", async (_, parts, scale, dropout) => {
    const how = settings(parts, scale, dropout);
    const weight = toTensor(random([outputs, inputs], 5), "f32");
    const bias = toTensor(random([outputs], 6), "f32");
    for (const added of [null, bias]) {
      await expectComposed(
        (x, down, up) => adaptedLinear(x, frozenLinear(weight, added), { down, up, ...how }),
        (x, down, up) => composedAdaptedLinear(x, weight, added, { down, up, ...how }),
        [random([2, 5, inputs], 2), ...halves(parts)],
      );
    }
  });

  it.each(cases)(
    "adds gradients up over passes, in bf16 too, %s",
    async (_, parts, scale, drop) => {
      for (const dtype of ["f32", "bf16"] as const) {
        await scope(async () => {
          const how = settings(parts, scale, drop);
          const layer = frozenLinear(toTensor(random([outputs, inputs], 5, { dtype }), dtype));
          const of = (times: number, composed: boolean) => {
            const [down, up] = halves(parts).map((half) => toTensor(half, dtype, true)) as [
              Tensor,
              Tensor,
            ];
            const x = toTensor(random([2, 5, inputs], 2, { dtype }), dtype, true);
            for (let time = 0; time < times; time++) {
              const y = composed
                ? composedAdaptedLinear(x, layer.weight, null, { down, up, ...how })
                : adaptedLinear(x, layer, { down, up, ...how });
              y.backward({ gradient: toTensor(random(y.shape, 9 + time, { dtype }), dtype) });
            }
            return Promise.all([x, down, up].map(async ({ grad }) => [...(await grad!.toArray())]));
          };
          const [found, wanted] = [await of(2, false), await of(2, true)];
          for (const [index, gradient] of found.entries()) {
            expect(relativeError(gradient, wanted[index] as number[])).toBeLessThan(
              tolerances[dtype].gradient,
            );
          }
          expect(await of(2, false)).toEqual(found);
        });
      }
    },
  );

  it("computes what is asked for alone: no gradient of an input that needs none", async () => {
    await scope(async () => {
      const layer = frozenLinear(toTensor(random([outputs, inputs], 5), "f32"));
      const refusing = {
        ...layer,
        inputGradient: (): Tensor => {
          throw new Error("the gradient of x was computed");
        },
      };
      const [down, up] = halves(packed).map((half) => toTensor(half, "f32", true)) as [
        Tensor,
        Tensor,
      ];
      const x = toTensor(random([5, inputs], 2), "f32");
      const y = adaptedLinear(x, refusing, { down, up, parts: packed, scale: 2 });
      y.backward({ gradient: toTensor(random(y.shape, 9), "f32") });
      expect(await up.grad!.toArray()).toHaveLength(outputs * rank);
      const silent = noGrad(() => adaptedLinear(x, layer, { down, up, parts: packed, scale: 2 }));
      expect(await silent.toArray()).toEqual(await y.toArray());
    });
  });
});

test("adaptedLinear refuses what does not fit, naming it", () => {
  const layer = frozenLinear(zeros([outputs, inputs]));
  const x = ones([2, inputs]);
  const good = { down: zeros([rank, inputs]), up: zeros([outputs, rank]), parts: whole, scale: 1 };
  const refused: [object, new (...args: never[]) => LlamaForgeError, RegExp][] = [
    [{ down: zeros([rank, inputs + 1]) }, ShapeError, /\[3,10\] for down/],
    [{ up: zeros([outputs - 1, rank]) }, ShapeError, /up/],
    [{ up: zeros([outputs, rank], { dtype: "bf16" }) }, DTypeError, /f32 and bf16/],
    [{ parts: [{ firstRow: 2, rows: outputs }] }, LlamaForgeError, /rows of a part/],
    [{ parts: [packed[1], packed[0]] }, LlamaForgeError, /firstRow of a part/],
    [{ scale: "2" }, LlamaForgeError, /scale/],
    [{ dropouts: [] }, LlamaForgeError, /dropouts for 1 parts/],
    [{ alpha: 3 }, LlamaForgeError, /alpha/],
  ];
  for (const [change, type, words] of refused) {
    const run = () => adaptedLinear(x, layer, { ...good, ...change } as LowRankAdapters);
    expect(run).toThrow(type);
    expect(run).toThrow(words);
  }
  const wrong = { ...layer, forward: () => zeros([3, outputs]) };
  expect(() => adaptedLinear(x, wrong, good)).toThrow(/the result of layer\.forward/);
  const nothing = { ...layer, forward: () => undefined as unknown as Tensor };
  expect(() => adaptedLinear(x, nothing, good)).toThrow(/the result of layer\.forward/);
  const biased = { ...layer, bias: zeros([3]) };
  expect(() => adaptedLinear(x, biased, good)).toThrow(/layer\.bias/);
  const trained = zeros([outputs, inputs], { requiresGrad: true });
  expect(() => adaptedLinear(x, frozenLinear(trained), good)).toThrow(AutogradError);
});
