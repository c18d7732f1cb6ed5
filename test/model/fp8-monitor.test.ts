import { describe, expect, it } from "vitest";
import { scope } from "../../lib/core/scope.js";
import { batchTensors } from "../../lib/model/batch.js";
import { Fp8Monitor } from "../../lib/model/fp8-monitor.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { randomIntegers } from "../support/reference.js";

const products = ["first", "second"];
const layers = 3;

/** Figures of a pass in which everything is in order, with some changed. */
function pass(changes: Record<string, readonly number[]> = {}): number[] {
  const monitor = new Fp8Monitor(layers, products);
  return Array.from({ length: layers }, (_, layer) =>
    monitor.places.map((place) => changes[`${layer} ${place}`] ?? [2, 0.1, 0.001, 0]),
  ).flat(2);
}
const broken = [Number.NaN, 0, 0, 1] as const;

describe("the layer that should leave fp8", () => {
  it.each<[string, Record<string, readonly number[]>, number | null]>([
    ["none, where all is in order", {}, null],
    ["that with the first broken input", { "1 second.input": broken, "2 first.input": broken }, 1],
    ["that before a broken input of a layer", { "1 first.input": broken }, 0],
    ["none, where the model's input is broken", { "0 first.input": broken }, null],
    ["none, where a weight is broken", { "1 first.weight": broken }, null],
    ["none, where the loss's gradient is broken", { "2 second.gradient": broken }, null],
    [
      "that behind a broken gradient of a layer",
      { "1 second.gradient": broken, "1 first.gradient": broken, "0 second.gradient": broken },
      2,
    ],
    [
      "that whose own gradient is the first broken one",
      { "1 first.gradient": broken, "0 second.gradient": broken },
      1,
    ],
    ["that with saturated numbers", { "2 second.input": [2, 0, 0.02, 0] }, 2],
    ["none, where a few numbers are the largest", { "2 second.input": [2, 0, 0.009, 0] }, null],
  ])("is %s", (_, changes, layer) => {
    const monitor = new Fp8Monitor(layers, products);
    expect(monitor.faulty(pass(changes))?.layer ?? null).toBe(layer);
  });

  it("is none that has left it already", () => {
    const monitor = new Fp8Monitor(layers, products);
    monitor.fallBack({ layer: 1, from: 5 });
    monitor.fallBack({ layer: 1, from: 9 });
    expect(monitor.fallbacks).toEqual([{ layer: 1, from: 5 }]);
    const figures = pass({ "1 second.input": broken });
    monitor.beginStep(4);
    expect([0, 1, 2].map((layer) => monitor.uses(layer))).toEqual([true, true, true]);
    expect(monitor.faulty(figures)?.layer).toBe(1);
    monitor.beginStep(5);
    expect([0, 1, 2].map((layer) => monitor.uses(layer))).toEqual([true, false, true]);
    expect(monitor.faulty(figures)).toBe(null);
    expect(monitor.describe(figures)).toMatchObject({
      bf16Layers: [1],
      largest: { "second.input": [2, null, 2] },
      saturated: { "first.gradient": [0.001, null, 0.001] },
    });
  });
});

it("watches every product of a model in the passes in between, and only there", async () => {
  const shape = llamaConfig({
    ...{ vocabSize: 96, hiddenSize: 64, intermediateSize: 112, layers: 3, heads: 4, kvHeads: 2 },
    ...{ contextLength: 32, ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false },
  });
  const model = await Llama.create(shape, { dtype: "bf16", seed: 5 });
  expect(model.fp8Monitor).toBe(null);
  model.fp8 = true;
  const monitor = model.fp8Monitor as Fp8Monitor;
  const ids = Int32Array.from(randomIntegers([64], 3, 0, 96).data);
  const host = { inputs: ids, targets: ids, count: 2, length: 32 };
  const losses: number[] = [];
  for (const recompute of ["none", "ffn", "block"] as const) {
    model.recompute = recompute;
    await scope(async () => {
      monitor.start(model.device);
      const loss = model.loss(batchTensors(host, model.device));
      loss.backward();
      const values = await monitor.stop().toArray();
      losses.push(await loss.item());
      expect(monitor.faulty(values)).toBe(null);
      const { largest, zeros, saturated, bf16Layers } = monitor.describe(values);
      expect(bf16Layers).toBe(undefined);
      expect(Object.keys(largest)).toEqual(
        ["qkv", "output", "gateUp", "down"].flatMap((product) =>
          ["input", "weight", "gradient"].map((role) => `${product}.${role}`),
        ),
      );
      for (const of of Object.values(largest)) for (const x of of) expect(x).toBeGreaterThan(0);
      for (const of of Object.values(zeros)) for (const x of of) expect(x).toBeLessThan(0.5);
      for (const of of Object.values(saturated)) for (const x of of) expect(x).toBeLessThan(0.01);
    });
    model.store.zeroGrad();
  }
  // What nobody watches stays as it was, and a watched pass computes what any other does.
  const loss = model.loss(batchTensors(host, model.device));
  expect(await loss.item()).toBe(losses[0]);
  expect(losses).toEqual(Array(3).fill(losses[0]));

  // A layer in bf16 gives another loss, and all layers that of a model in bf16.
  monitor.fallBack({ layer: 1, from: 2 });
  monitor.beginStep(2);
  const mixed = await model.loss(batchTensors(host, model.device)).item();
  expect(mixed).not.toBe(losses[0]);
  for (const layer of [0, 2]) monitor.fallBack({ layer, from: 0 });
  const all = await model.loss(batchTensors(host, model.device)).item();
  model.fp8 = false;
  expect(await model.loss(batchTensors(host, model.device)).item()).toBe(all);
  model.dispose();
});
