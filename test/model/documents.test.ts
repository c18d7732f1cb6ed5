/** Compares a window of several documents with each document alone. */
import { describe, expect, test } from "vitest";
import { noGrad } from "../../lib/core/autograd.js";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import { documentStarts } from "../../lib/data/windows.js";
import { llamaConfig } from "../../lib/model/config.js";
import { Llama, type Recompute } from "../../lib/model/llama.js";
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
/** Documents of these lengths, each with its end id. Other ids are 3 and up. */
const documents = [70, 1, 64, 15].map((length, document) =>
  Int32Array.from({ length }, (_, t) =>
    t === length - 1 ? end : 3 + ((t * 17 + document * 31 + ((t * t) % 7)) % (vocabSize - 3)),
  ),
);
const window = Int32Array.from(documents.flatMap((ids) => [...ids]));
const time = window.length;
const inputs = () => tensor(window, { shape: [1, time], dtype: "i32" });
const starts = () =>
  tensor(
    documentStarts(Int32Array.from([...window, 3]), time, () => ({ startId: null, endId: end })),
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

describe("a window with its documents kept apart", () => {
  test.each([
    ["f32", 2e-6],
    ["bf16", 1e-2],
  ] as const)("has the logits of each document alone, in %s", async (dtype, tolerance) => {
    const model = await Llama.create(config, { dtype, seed: 5 });
    const together = async (options: object): Promise<number[]> => {
      const values = await scope(() =>
        noGrad(() =>
          model.forward(inputs(), undefined, { documentStarts: starts(), ...options }).toArray(),
        ),
      );
      return [...values];
    };
    const alone = (await Promise.all(documents.map((ids) => logits(model, ids)))).flat();
    const apart = await together({ resetPositions: true });
    expect(relativeError(apart, alone)).toBeLessThan(tolerance);
    // Rotary positions are relative. Without the reset the values are equal up to rounding, not bit
    // for bit.
    expect(relativeError(await together({}), alone)).toBeLessThan(dtype === "f32" ? 1e-5 : 3e-2);
    // Each option alone gives other values, so both have an effect.
    const seen = await together({ maskDocuments: false });
    expect(seen).toEqual(await logits(model, window));
    expect(relativeError(seen, alone)).toBeGreaterThan(0.1);
    const reset = await together({ maskDocuments: false, resetPositions: true });
    expect(relativeError(reset, seen)).toBeGreaterThan(0.01);
    model.dispose();
  });

  test("has the gradient of the documents' losses added up", async () => {
    const model = await Llama.create(config, { seed: 6 });
    const tokens = window.length - documents.length;
    for (const ids of documents) {
      if (ids.length === 1) continue; // one token predicts nothing
      using _ = scope();
      const options = { scale: (ids.length - 1) / tokens };
      model
        .loss(tensor(ids, { shape: [1, ids.length], dtype: "i32" }), targetsOf(ids))
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
      model.loss(inputs(), masked, { documentStarts: starts(), resetPositions: true }).backward();
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
      model
        .loss(inputs(), targetsOf(window), { documentStarts: starts(), resetPositions: true })
        .backward();
      results.push(await gradients(model));
      model.dispose();
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  test("is refused where the options do not fit", async () => {
    using _ = scope();
    const model = await Llama.create(config, { seed: 8 });
    const run = (options: object) => () => model.loss(inputs(), inputs(), options);
    expect(run({ maskDocuments: true })).toThrow(ArgumentError);
    expect(run({ resetPositions: true })).toThrow(/need documentStarts/);
    expect(run({ maskDocuments: false })).not.toThrow();
    expect(run({ documentStarts: zeros([1, time]) })).toThrow(DTypeError);
    expect(run({ documentStarts: zeros([1, 4], { dtype: "i32" }) })).toThrow(ShapeError);
    expect(run({ documentStarts: starts(), maskDocuments: 1 })).toThrow(ArgumentError);
    expect(run({ document_starts: starts() })).toThrow(/document_starts/);
    const cache = model.createCache(1);
    expect(() => model.forward(inputs(), cache, { documentStarts: starts() })).toThrow(/cache/);
    model.dispose();
  });
});
