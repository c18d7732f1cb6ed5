import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { native } from "../../lib/core/native.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { random, relativeError, roundToBf16 } from "../support/reference.js";

const options = { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 };

interface Group {
  weight: Tensor;
  master: Tensor | null;
  m: Tensor;
  v: Tensor;
}

function group(weight: ArrayLike<number>, dtype: "f32" | "bf16", withMaster: boolean): Group {
  const values = Float32Array.from(weight);
  const n = values.length;
  return {
    weight: tensor(values, { dtype }),
    master: withMaster ? tensor(values) : null,
    m: zeros([n]),
    v: zeros([n]),
  };
}

/** [apply, gradient multiplier, bias corrections, norm, z, z, reason] */
const decision = (step: number, multiplier = 1, apply = 1): Tensor =>
  tensor([apply, multiplier, 1 / (1 - 0.9 ** step), 1 / (1 - 0.95 ** step), 0, 0, 0, 0]);

function update({ weight, master, m, v }: Group, grad: Tensor, chosen: Tensor): void {
  const { lr, beta1, beta2, eps, weightDecay } = options;
  native.adamw(
    weight.native,
    master?.native ?? null,
    grad.native,
    m.native,
    v.native,
    chosen.native,
    lr,
    beta1,
    beta2,
    eps,
    weightDecay,
  );
}

/** Loshchilov & Hutter 2019, algorithm 2, in float64. */
function reference(
  w: number[],
  m: number[],
  v: number[],
  g: ArrayLike<number>,
  step: number,
): void {
  const { lr, beta1, beta2, eps, weightDecay } = options;
  for (let i = 0; i < w.length; i++) {
    m[i] = beta1 * (m[i] as number) + (1 - beta1) * (g[i] as number);
    v[i] = beta2 * (v[i] as number) + (1 - beta2) * (g[i] as number) ** 2;
    const mHat = (m[i] as number) / (1 - beta1 ** step);
    const vHat = (v[i] as number) / (1 - beta2 ** step);
    w[i] = (w[i] as number) * (1 - lr * weightDecay) - (lr * mHat) / (Math.sqrt(vHat) + eps);
  }
}

const bytes = async (g: Group): Promise<Buffer[]> =>
  Promise.all(
    [g.weight, g.m, g.v, ...(g.master ? [g.master] : [])].map(async (t) =>
      Buffer.from(await t.toBytes()),
    ),
  );

describe("adamw", () => {
  it.each([1, 15, 31, 33, 40_001])(
    "follows the paper over eight steps, for %i parameters",
    async (n) => {
      const start = random([n], 1);
      const own = group(start.data, "f32", false);
      const [w, m, v] = [
        [...start.data],
        new Array<number>(n).fill(0),
        new Array<number>(n).fill(0),
      ];
      for (let step = 1; step <= 8; step++) {
        const g = random([n], 100 + step, { low: -2, high: 2 });
        update(own, tensor(Float32Array.from(g.data)), decision(step, 0.5));
        reference(
          w,
          m,
          v,
          g.data.map((x) => 0.5 * x),
          step,
        );
      }
      expect(relativeError(await own.m.toArray(), m)).toBeLessThan(1e-6);
      expect(relativeError(await own.v.toArray(), v)).toBeLessThan(1e-6);
      expect(relativeError(await own.weight.toArray(), w)).toBeLessThan(1e-6);
    },
  );

  it("gives PyTorch's numbers, with its clipping", async () => {
    // torch 2.13: AdamW(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) after clip_grad_norm_(1.0).
    const gradients = [
      [0.1, -0.2, 3.0, 1e-4, 0.0],
      [0.3, 0.1, -1.0, 2e-4, -5.0],
      [-0.4, 0.25, 0.5, -3e-4, 0.125],
    ];
    const norms = [3.008321762084961, 5.108816146850586, 0.6986595392227173];
    const weights = [
      [
        0.4895000159740448, -1.2387499809265137, 1.9880000352859497, -0.008997991681098938,
        -0.7492499947547913,
      ],
      [
        0.4792969524860382, -1.233139991760254, 1.9808101654052734, -0.018975187093019485,
        -0.7411511540412903,
      ],
      [
        0.4837416410446167, -1.237059473991394, 1.9723478555679321, -0.014081532135605812,
        -0.7355138063430786,
      ],
    ];
    const own = group([0.5, -1.25, 2.0, 1e-3, -0.75], "f32", false);
    const state = zeros([8]);
    for (const [index, gradient] of gradients.entries()) {
      const grad = tensor(gradient);
      const [squares, chosen] = [zeros([1]), zeros([8])];
      native.sumOfSquares(grad.native, squares.native);
      native.stepGuard(
        tensor([1]).native,
        squares.native,
        state.native,
        chosen.native,
        1,
        0.9,
        0.95,
        0,
        0,
        0,
      );
      update(own, grad, chosen);
      expect((await chosen.toArray())[4]).toBeCloseTo(norms[index] as number, 6);
      const got = await own.weight.toArray();
      (weights[index] as number[]).forEach((w, i) => {
        expect(Math.abs((got[i] as number) - w)).toBeLessThan(2e-7);
      });
    }
  });

  it("keeps the sum in an f32 master and writes its rounding to a bf16 weight", async () => {
    const start = random([1003], 1);
    const [mixed, plain] = [group(start.data, "bf16", true), group(start.data, "f32", false)];
    for (let step = 1; step <= 5; step++) {
      const grad = tensor(Float32Array.from(random([1003], step).data));
      update(mixed, grad, decision(step));
      update(plain, grad, decision(step));
    }
    const master = await (mixed.master as Tensor).toArray();
    expect([...master]).toEqual([...(await plain.weight.toArray())]);
    expect([...(await mixed.weight.toArray())]).toEqual([...master].map(roundToBf16));
  });

  it("updates a bf16 weight without master by rounding each step", async () => {
    const start = random([37], 1, { dtype: "bf16" });
    const own = group(start.data, "bf16", false);
    const g = random([37], 2);
    update(own, tensor(Float32Array.from(g.data)), decision(1));
    const w = [...start.data];
    reference(
      w,
      w.map(() => 0),
      w.map(() => 0),
      g.data,
      1,
    );
    const got = await own.weight.toArray();
    w.forEach((value, i) => {
      expect(Math.abs((got[i] as number) - value)).toBeLessThanOrEqual(2 ** -8 * Math.abs(value));
    });
  });

  it.each(["f32", "bf16"] as const)(
    "changes no byte of a %s group when the step is skipped",
    async (dtype) => {
      const own = group(random([1001], 1).data, dtype, dtype === "bf16");
      update(own, tensor(Float32Array.from(random([1001], 2).data)), decision(1));
      const before = await bytes(own);
      const broken = Float32Array.from(random([1001], 3).data);
      broken[500] = Number.NaN;
      broken[7] = Number.POSITIVE_INFINITY;
      update(own, tensor(broken), decision(2, 0, 0));
      update(own, tensor(broken), decision(2, Number.NaN, 0));
      expect(await bytes(own)).toEqual(before);
      update(own, tensor(Float32Array.from(random([1001], 4).data)), decision(2));
      expect(await bytes(own)).not.toEqual(before);
    },
  );

  it("names what does not fit, and writes nothing then", async () => {
    const own = group([1, 2, 3], "f32", false);
    const before = await bytes(own);
    const cases: [() => void, string][] = [
      [
        () => update(own, zeros([4]), decision(1)),
        "expected grad of 3 elements like weight, got [4]",
      ],
      [() => update({ ...own, m: zeros([2]) }, zeros([3]), decision(1)), "expected m"],
      [() => update(own, zeros([3]), zeros([7])), "expected decision of shape [8]"],
      [() => update(own, zeros([3], { dtype: "bf16" }), decision(1)), "expected f32 for grad"],
      [() => update({ ...own, master: zeros([3]) }, zeros([3]), decision(1)), "its own master"],
    ];
    for (const [call, message] of cases) {
      call();
      await expect(own.weight.toArray()).rejects.toThrow(message);
    }
    expect(await bytes(own)).toEqual(before);
  });
});
