// The numbers of Muon's kernels; test/optim/muon.test.ts tests the optimizer.
import { expect, it } from "vitest";
import { tensor } from "../../lib/core/create.js";
import { native } from "../../lib/core/native.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { random, roundToBf16 } from "../support/reference.js";

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.toArray())];
const decision = (apply: number, multiplier: number): Tensor =>
  tensor([apply, multiplier, 1, 1, 0, 0, 0, 0]);
const sizes = [1, 3, 4, 5, 16, 63, 1024, 4099, 40_001];

function close(got: readonly number[], expected: readonly number[], bound: number): void {
  expect(got.length).toBe(expected.length);
  const wrong = got.filter(
    (value, i) => !(Math.abs(value - (expected[i] as number)) <= bound * (1 + Math.abs(value))),
  );
  expect(wrong).toEqual([]);
}

it.each(sizes)("gathers the momentum of %i numbers, and their Nesterov direction", async (n) => {
  const [g, m] = [random([n], 1), random([n], 2)].map(({ data }) => Float32Array.from(data));
  for (const dtype of ["f32", "bf16"] as const) {
    for (const offset of [0, 1]) {
      // A view that starts at an odd element takes no packs.
      const shifted = (x: Float32Array) =>
        tensor([...Array(offset).fill(9), ...x]).view([n], offset);
      const [grad, momentum] = [shifted(g as Float32Array), shifted(m as Float32Array)];
      const direction = empty([n + offset], { dtype }).view([n], offset);
      const run = (chosen: Tensor) =>
        native.muonMomentum(grad.native, momentum.native, direction.native, chosen.native, 0.95);
      run(decision(1, 0.5));
      const next = [...(m as Float32Array)].map(
        (old, i) => old + (0.5 * (g?.[i] ?? 0) - old) * 0.05,
      );
      close(await numbers(momentum), next, 1e-6);
      const towards = next.map((value, i) => {
        const scaled = 0.5 * (g?.[i] ?? 0);
        return scaled + 0.95 * (value - scaled);
      });
      close(await numbers(direction), towards, dtype === "f32" ? 1e-6 : 2 ** -8);
      const before = await numbers(momentum);
      run(decision(0, Number.NaN));
      expect(await numbers(momentum)).toEqual(before);
      expect(await numbers(direction)).toEqual(Array(n).fill(0));
    }
  }
});

it.each(sizes)("updates %i weights, and their bf16 copies", async (n) => {
  const [w, u] = [random([n], 3), random([n], 4, { dtype: "bf16" })].map(({ data }) => [...data]);
  const expected = (w as number[]).map((x, i) => x * 0.999 - 0.02 * (u?.[i] as number));
  const run = (weight: Tensor, master: Tensor | null, change: Tensor, chosen: Tensor) =>
    native.muonUpdate(
      weight.native,
      master?.native ?? null,
      change.native,
      chosen.native,
      0.01,
      2,
      0.1,
    );
  const f32 = tensor(w as number[]);
  run(f32, null, tensor(u as number[]), decision(1, 1));
  close(await numbers(f32), expected, 1e-6);
  const [weight, master] = [tensor(w as number[], { dtype: "bf16" }), tensor(w as number[])];
  const change = tensor(u as number[], { dtype: "bf16" });
  run(weight, master, change, decision(1, 1));
  close(await numbers(master), expected, 1e-6);
  expect(await numbers(weight)).toEqual((await numbers(master)).map(roundToBf16));
  const before = await numbers(master);
  run(weight, master, change, decision(0, 1));
  expect(await numbers(master)).toEqual(before);
});

it.each(sizes)("adds %i scaled numbers with one rounding", async (n) => {
  const [x, y] = [random([n], 5, { dtype: "bf16" }), random([n], 6, { dtype: "bf16" })];
  const expected = [...x.data].map((value, i) => -4.775 * value + 2.0315 * (y.data[i] as number));
  for (const dtype of ["f32", "bf16"] as const) {
    const sum = tensor(Float32Array.from(y.data), { dtype });
    const from = tensor(Float32Array.from(x.data), { dtype });
    native.scaleAdd(from.native, sum.native, -4.775, 2.0315);
    close(await numbers(sum), expected, dtype === "f32" ? 1e-6 : 2 ** -8);
  }
});

type Run = (own: { four: Tensor; five: Tensor; bf16: Tensor; chosen: Tensor }) => void;
it.each<[string, RegExp, Run]>([
  [
    "a momentum of another length",
    /muonMomentum.*expected m of 4 elements like grad/s,
    ({ four, five, chosen }) =>
      native.muonMomentum(four.native, five.native, four.native, chosen.native, 0.9),
  ],
  [
    "an update of another dtype",
    /muonUpdate.*expected bf16 for update, got f32/s,
    ({ four, bf16, chosen }) =>
      native.muonUpdate(bf16.native, null, four.native, chosen.native, 0.1, 1, 0),
  ],
  [
    "numbers of two dtypes",
    /scaleAdd.*expected f32 for y, got bf16/s,
    ({ four, bf16 }) => native.scaleAdd(four.native, bf16.native, 1, 1),
  ],
])("refuses %s", async (_, message, run) => {
  const own = {
    four: tensor([1, 2, 3, 4]),
    five: tensor([1, 2, 3, 4, 5]),
    bf16: tensor([1, 2, 3, 4], { dtype: "bf16" }),
    chosen: decision(1, 1),
  };
  run(own);
  await expect(own.four.toArray()).rejects.toThrow(message);
});
