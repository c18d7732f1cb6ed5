/** A window of several documents beside the documents alone. */
import { describe, expect, test } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { documentStarts } from "../../lib/data/windows.js";
import type { Context, Recompute } from "../../lib/model/language-model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { relativeError } from "../support/reference.js";

const vocabSize = 50;
const config = llamaConfig({
  vocabSize,
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  contextLength: 160,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
});

const end = 2;
/** Documents of these lengths, each with its end; ids from 3 on elsewhere. */
const documents = [70, 1, 64, 15].map((length, document) =>
  Int32Array.from({ length }, (_, t) =>
    t === length - 1 ? end : 3 + ((t * 17 + document * 31 + ((t * t) % 7)) % (vocabSize - 3)),
  ),
);
const window = Int32Array.from(documents.flatMap((ids) => [...ids]));
const time = window.length;
const inputs = () => tensor(window, { shape: [1, time], dtype: "i32" });
const starts = documentStarts(Int32Array.from([...window, 3]), time, () => ({
  startId: null,
  endId: end,
}));
const firstKey = () => tensor(starts, { shape: [1, time], dtype: "i32" });
const positions = () =>
  tensor(
    starts.map((start, t) => t - start),
    { shape: [1, time], dtype: "i32" },
  );

async function logits(model: Llama, ids: Int32Array): Promise<number[]> {
  return scope(() =>
    noGrad(() => model.forward(tensor(ids, { shape: [1, ids.length], dtype: "i32" })).toArray()),
  ).then((values) => [...values]);
}

async function gradients(model: Llama): Promise<Map<string, number[]>> {
  const values = new Map<string, number[]>();
  for (const [name, parameter] of model.namedParameters()) {
    values.set(name, [...((await parameter.tensor.grad?.toArray()) ?? [])]);
  }
  return values;
}

const targetsOf = (ids: Int32Array) =>
  tensor(
    Int32Array.from(ids, (_, t) => (t + 1 < ids.length ? (ids[t + 1] as number) : -100)),
    { shape: [1, ids.length], dtype: "i32" },
  );

const apart = () => ({ inputs: inputs(), firstKey: firstKey(), positions: positions() });

describe("a window with its documents kept apart", () => {
  test.each([
    ["f32", 2e-6],
    ["bf16", 1e-2],
  ] as const)("has the logits of each document alone, in %s", async (dtype, tolerance) => {
    const model = await Llama.create(config, { dtype, seed: 5 });
    const together = async (context: () => Context): Promise<number[]> => {
      const values = await scope(() =>
        noGrad(() => model.forward(inputs(), undefined, context()).toArray()),
      );
      return [...values];
    };
    const alone = (await Promise.all(documents.map((ids) => logits(model, ids)))).flat();
    const apart = await together(() => ({ firstKey: firstKey(), positions: positions() }));
    expect(relativeError(apart, alone)).toBeLessThan(tolerance);
    // Rotary positions are relative: without the reset the same up to rounding, not in the same bits.
    expect(relativeError(await together(() => ({ firstKey: firstKey() })), alone)).toBeLessThan(
      dtype === "f32" ? 1e-5 : 3e-2,
    );
    // Either half of it is something else: the options do something.
    const seen = await together(() => ({}));
    expect(seen).toEqual(await logits(model, window));
    expect(relativeError(seen, alone)).toBeGreaterThan(0.1);
    const reset = await together(() => ({ positions: positions() }));
    expect(relativeError(reset, seen)).toBeGreaterThan(0.01);
    model.dispose();
  });

  test("has the gradient of the documents' losses added up", async () => {
    const model = await Llama.create(config, { seed: 6 });
    const tokens = window.length - documents.length;
    for (const ids of documents) {
      if (ids.length === 1) continue; // it predicts nothing
      using _ = scope();
      const options = { scale: (ids.length - 1) / tokens };
      model
        .loss({
          inputs: tensor(ids, { shape: [1, ids.length], dtype: "i32" }),
          targets: targetsOf(ids),
        })
        .backward(options);
    }
    const alone = await gradients(model);
    model.store.zeroGrad();
    const targets = targetsOf(window);
    const values = Int32Array.from(await targets.toArray(), (id, t) =>
      window[t] === end ? -100 : id,
    );
    {
      using _ = scope();
      const masked = tensor(values, { shape: [1, time], dtype: "i32" });
      model.loss({ ...apart(), targets: masked }).backward();
    }
    for (const [name, value] of await gradients(model)) {
      expect(relativeError(value, alone.get(name) as number[]), name).toBeLessThan(1e-5);
    }
    model.dispose();
  });

  test.each(["f32", "bf16"] as const)("has the same bits recomputed, in %s", async (dtype) => {
    const results: Map<string, number[]>[] = [];
    for (const recompute of ["none", "ffn", "block"] as Recompute[]) {
      using _ = scope();
      const model = await Llama.create(config, { dtype, seed: 7 });
      model.recompute = recompute;
      model.loss({ ...apart(), targets: targetsOf(window) }).backward();
      results.push(await gradients(model));
      model.dispose();
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  test("is refused where the options do not fit", async () => {
    using _ = scope();
    const model = await Llama.create(config, { seed: 8 });
    const run = (fields: object) => () =>
      model.loss({ inputs: inputs(), targets: inputs(), ...fields });
    expect(run({})).not.toThrow();
    for (const field of ["firstKey", "positions"]) {
      expect(run({ [field]: zeros([1, time]) })).toThrow(DTypeError);
      expect(run({ [field]: zeros([1, 4], { dtype: "i32" }) })).toThrow(ShapeError);
      expect(run({ [field]: 1 })).toThrow(ArgumentError);
    }
    expect(run({ first_key: firstKey() })).toThrow(/first_key/);
    model.dispose();
  });
});
