import { describe, expect, it } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { argmax, type SampleOptions, sample } from "../../lib/ops/sample.js";
import { toTensor } from "../support/float-ops.js";
import { random } from "../support/reference.js";

const inf = Number.POSITIVE_INFINITY;

describe("argmax", () => {
  it.each([1, 7, 16, 31, 33, 257])("finds the first maximum in rows of %i", async (n) => {
    const rows = 300;
    const x = random([3, rows / 3, n], 1, { dtype: "bf16" }); // bf16: many ties
    const expected = Array.from({ length: rows }, (_, row) => {
      const values = [...x.data.slice(row * n, (row + 1) * n)];
      return values.indexOf(Math.max(...values));
    });
    for (const dtype of ["f32", "bf16"] as const) {
      const index = argmax(toTensor(x, dtype));
      expect([index.dtype, index.shape]).toEqual(["i32", [3, rows / 3]]);
      expect([...(await index.toArray())]).toEqual(expected);
    }
  });

  it("counts NaN as the largest, wherever it stands, and knows infinities and integers", async () => {
    for (const position of [0, 5, 16, 34, 39]) {
      const row = Array.from({ length: 40 }, (_, i) => (i === 38 ? inf : i));
      row[position] = Number.NaN;
      if (position < 39) row[39] = Number.NaN;
      expect(await argmax(tensor(row)).item()).toBe(position);
    }
    expect(await argmax(full([33], -inf)).item()).toBe(0);
    expect(await argmax(tensor([-0, 0, -1])).item()).toBe(0);
    expect(await argmax(tensor(Int32Array.of(16777216, 16777217, -5))).item()).toBe(1);
  });

  it("refuses a scalar", () => {
    expect(() => argmax(zeros([]))).toThrow(ShapeError);
    expect(() => argmax({} as never)).toThrow(ArgumentError);
  });
});

/** The frequency of each token over many rows with the same logits. */
async function frequencies(
  logits: readonly number[],
  options: Partial<SampleOptions>,
  rows = 20_000,
) {
  const data = Float32Array.from(
    { length: rows * logits.length },
    (_, i) => logits[i % logits.length] as number,
  );
  const ids = await sample(tensor(data, { shape: [rows, logits.length] }), {
    seed: 7,
    ...options,
  }).toArray();
  const counts = logits.map(() => 0);
  for (const id of ids) counts[id] = (counts[id] ?? 0) + 1;
  return counts.map((count) => count / rows);
}

function softmax(logits: readonly number[], temperature = 1): number[] {
  const e = logits.map((v) => Math.exp((v - Math.max(...logits)) / temperature));
  const sum = e.reduce((a, b) => a + b);
  return e.map((v) => v / sum);
}

function expectNear(actual: readonly number[], expected: readonly number[]) {
  expect(actual).toHaveLength(expected.length);
  // For 20,000 draws, 4.5 standard deviations of the likeliest token are 0.016. Excluded tokens
  // must never come.
  actual.forEach((value, id) => {
    if (expected[id] === 0) expect(value, `token ${id}`).toBe(0);
    else expect(Math.abs(value - (expected[id] as number)), `token ${id}`).toBeLessThan(0.016);
  });
}

describe("sample", () => {
  const logits = [1, 3, 0.5, 2, -1, 2.5];
  const by = (p: readonly number[], kept: readonly number[]) => {
    const mass = kept.reduce((sum, id) => sum + (p[id] as number), 0);
    return p.map((v, id) => (kept.includes(id) ? v / mass : 0));
  };

  it("draws with the probabilities of the softmax, at any temperature", async () => {
    for (const temperature of [0.5, 1, 2]) {
      expectNear(await frequencies(logits, { temperature }), softmax(logits, temperature));
    }
  });

  it("keeps the top k, of equals the lower ids", async () => {
    expectNear(await frequencies(logits, { topK: 1 }), [0, 1, 0, 0, 0, 0]);
    expectNear(await frequencies(logits, { topK: 3 }), by(softmax(logits), [1, 5, 3]));
    expectNear(await frequencies(logits, { topK: 99 }), softmax(logits));
    expectNear(await frequencies([2, 2, 2, 2], { topK: 2 }), [0.5, 0.5, 0, 0]);
  });

  it("keeps the fewest tokens that hold top p, and always one", async () => {
    const p = softmax(logits); // ids by probability: 1, 5, 3, 0, 2, 4
    const sums = [1, 5, 3, 0, 2, 4].map((_, i, ids) =>
      ids.slice(0, i + 1).reduce((sum, id) => sum + (p[id] as number), 0),
    );
    expectNear(await frequencies(logits, { topP: 1e-9 }), by(p, [1]));
    expectNear(await frequencies(logits, { topP: (sums[0] as number) + 1e-6 }), by(p, [1, 5]));
    expectNear(await frequencies(logits, { topP: (sums[2] as number) - 1e-6 }), by(p, [1, 5, 3]));
    // Top p applies to the tokens that top k kept: 1 and 5 hold 1 / (1 + e^-0.5) = 0.62 and 0.38 of
    // their mass.
    expectNear(await frequencies(logits, { topK: 2, topP: 0.5 }), by(p, [1]));
    expectNear(await frequencies(logits, { topK: 2, topP: 0.7 }), by(p, [1, 5]));
  });

  it("takes the most likely at temperature 0, and almost always at one near 0", async () => {
    expectNear(
      await frequencies(logits, { temperature: 0, topK: 3, topP: 0.1 }, 100),
      [0, 1, 0, 0, 0, 0],
    );
    expectNear(await frequencies(logits, { temperature: 1e-300 }, 100), [0, 1, 0, 0, 0, 0]);
  });

  it("never chooses what is masked by -inf", async () => {
    expectNear(await frequencies([-inf, 1, -inf, 1], {}), [0, 0.5, 0, 0.5]);
    expectNear(await frequencies([-inf, -inf, 0, -inf], { topK: 3, topP: 0.9 }, 100), [0, 0, 1, 0]);
  });

  it("gives row b the number offset + b: the same however the rows are split", async () => {
    const x = random([64, 1000], 3, { low: -3, high: 3 });
    for (const options of [{}, { topK: 40 }, { topP: 0.9 }] as const) {
      const all = await sample(toTensor(x), { seed: 9, offset: 100, ...options }).toArray();
      expect(new Set(all).size).toBeGreaterThan(30);
      const tail = { shape: [30, 1000], data: x.data.slice(34_000) };
      const part = await sample(toTensor(tail), { seed: 9, offset: 134, ...options }).toArray();
      expect([...part]).toEqual([...all.slice(34)]);
    }
    const other = await sample(toTensor(x), { seed: 10, offset: 100 }).toArray();
    expect([...other]).not.toEqual([
      ...(await sample(toTensor(x), { seed: 9, offset: 100 }).toArray()),
    ]);
  });

  it("reads bf16 and any number of leading axes", async () => {
    const ids = sample(zeros([2, 3, 5], { dtype: "bf16" }), { seed: 1 });
    expect([ids.dtype, ids.shape]).toEqual(["i32", [2, 3]]);
    expect((await ids.toArray()).every((id) => id >= 0 && id < 5)).toBe(true);
    expect(sample(zeros([5]), { seed: 1 }).shape).toEqual([]);
  });

  it.each([
    [[0, Number.NaN, 1], "logit 1 of row 0 is nan"],
    [[0, 1, inf], "logit 2 of row 0 is inf"],
    [[-inf, -inf], "all logits of row 0 are -inf"],
  ])("refuses to speak from broken logits: %j", async (row, message) => {
    for (const temperature of [0, 1]) {
      const failure = await sample(tensor([row]), { seed: 1, temperature })
        .toArray()
        .catch((e: unknown) => e);
      expect(failure).toMatchObject({ code: "ERR_NON_FINITE" });
      expect((failure as Error).message).toContain(message);
    }
  });

  it.each([
    ["no options", () => sample(zeros([2]), undefined as never), ArgumentError, "seed"],
    [
      "a negative temperature",
      () => sample(zeros([2]), { seed: 1, temperature: -1 }),
      ArgumentError,
      "temperature",
    ],
    [
      "an infinite temperature",
      () => sample(zeros([2]), { seed: 1, temperature: inf }),
      ArgumentError,
      "temperature",
    ],
    ["a fractional top k", () => sample(zeros([2]), { seed: 1, topK: 1.5 }), ArgumentError, "topK"],
    ["a top p of 0", () => sample(zeros([2]), { seed: 1, topP: 0 }), ArgumentError, "topP"],
    ["a top p above 1", () => sample(zeros([2]), { seed: 1, topP: 1.01 }), ArgumentError, "topP"],
    [
      "a top p of NaN",
      () => sample(zeros([2]), { seed: 1, topP: Number.NaN }),
      ArgumentError,
      "topP",
    ],
    [
      "an unknown option",
      () => sample(zeros([2]), { seed: 1, top_k: 1 } as never),
      ArgumentError,
      "top_k",
    ],
    ["integers", () => sample(zeros([2], { dtype: "i32" }), { seed: 1 }), DTypeError, "logits"],
    ["a scalar", () => sample(zeros([]), { seed: 1 }), ShapeError, "1 axis"],
  ])("refuses %s", (_, call, type, message) => {
    expect(call).toThrow(type);
    expect(call).toThrow(message);
  });
});
