import { describe, expect, it } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import {
  promptToken,
  type RowSampling,
  type SampleTables,
  sampleRows,
} from "../../lib/ops/sample.js";
import { toTensor } from "../support/float-ops.js";
import { random } from "../support/reference.js";

const inf = Number.POSITIVE_INFINITY;
const logits = [2, 1.5, 1, 0.5, 0, -1];
const draws = 5000;

/** Probabilities of logits at temperature 1. */
function probabilities(values: readonly number[]): number[] {
  const weights = values.map((x) => Math.exp(x - Math.max(...values)));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((x) => x / sum);
}

/** How often each token comes in draws of equal logits with numbers 0, 1, 2, ... of one seed. */
async function counted(
  settings: Omit<RowSampling, "seed">,
  tables: SampleTables = {},
  of = logits,
) {
  const data = Float32Array.from(
    { length: draws * of.length },
    (_, i) => of[i % of.length] as number,
  );
  const rows = Array.from({ length: draws }, (_, offset) => ({ ...settings, seed: 7, offset }));
  const { ids } = sampleRows(tensor(data, { shape: [draws, of.length] }), rows, tables);
  const counts = of.map(() => 0);
  for (const id of await ids.toArray()) counts[id] = (counts[id] as number) + 1;
  return counts;
}

/** Pearson's chi-square of counts; tokens of probability 0 must not come at all. */
function expectDistribution(counts: readonly number[], expected: readonly number[]): void {
  let chi = 0;
  for (const [id, probability] of expected.entries()) {
    if (probability === 0) expect(counts[id]).toBe(0);
    else chi += ((counts[id] as number) - draws * probability) ** 2 / (draws * probability);
  }
  // With up to 5 degrees of freedom, a right sampler exceeds 25.7 once in 10,000 seeds.
  expect(chi).toBeLessThan(25.7);
}

const only = (keep: readonly number[], values = logits) =>
  probabilities(values.map((x, id) => (keep.includes(id) ? x : -inf)));

describe("draws have the probabilities of", () => {
  it("the softmax, at any temperature", async () => {
    for (const temperature of [0.5, 1, 2]) {
      const expected = probabilities(logits.map((x) => x / temperature));
      expectDistribution(await counted({ temperature }), expected);
    }
  });

  it("top-k, top-p of top-k, and min-p", async () => {
    expectDistribution(await counted({ topK: 3 }), only([0, 1, 2]));
    // The probabilities are 0.39, 0.24, 0.14, 0.09, 0.05, 0.02 (rounded), in all 0.93 of 1.
    expectDistribution(await counted({ topP: 0.6 }), only([0, 1]));
    expectDistribution(await counted({ topP: 0.7 }), only([0, 1, 2]));
    expectDistribution(await counted({ topK: 3, topP: 0.7 }), only([0, 1]));
    expectDistribution(await counted({ minP: 0.3 }), only([0, 1, 2]));
  });

  it("ties in favour of the lower ids", async () => {
    const ties = [1, 3, 3, 3, 0];
    expectDistribution(await counted({ topK: 2 }, {}, ties), only([1, 2], ties));
    expectDistribution(await counted({ topP: 0.4 }, {}, ties), only([1, 2], ties));
  });

  it("a bias, which also bans", async () => {
    const bias = tensor(Float32Array.of(0, 0, 0, 0, 0, 0, -inf, 1, 0, 0, 2, 0), { shape: [2, 6] });
    expectDistribution(await counted({ bias: 0 }, { bias }), probabilities(logits));
    const expected = probabilities([-inf, 2.5, 1, 0.5, 2, -1]);
    expectDistribution(await counted({ bias: 1 }, { bias }), expected);
  });

  it("penalties of the prompt's and the output's tokens", async () => {
    // Each draw has its own row of counts, since draws are counted.
    const seen = [promptToken, 2, 0, 0, 0, promptToken + 1];
    const data = Int32Array.from({ length: draws * 6 }, (_, i) => seen[i % 6] as number);
    const run = async (settings: object, expected: readonly number[]) => {
      const counts = tensor(data, { shape: [draws, 6] });
      const values = tensor(
        Float32Array.from({ length: draws * 6 }, (_, i) => logits[i % 6] as number),
        { shape: [draws, 6] },
      );
      const rows = Array.from({ length: draws }, (_, i) => ({
        ...settings,
        seed: 3,
        offset: i,
        counts: i,
      }));
      const { ids } = sampleRows(values, rows, { counts });
      const result = [0, 0, 0, 0, 0, 0];
      const chosen = await ids.toArray();
      for (const id of chosen) result[id] = (result[id] as number) + 1;
      expectDistribution(result, probabilities(expected));
      const after = await counts.toArray();
      expect(
        after.every(
          (x, i) => x === (data[i] as number) + (chosen[Math.floor(i / 6)] === i % 6 ? 1 : 0),
        ),
      ).toBe(true);
    };
    await run({ repetitionPenalty: 2 }, [1, 0.75, 1, 0.5, 0, -2]);
    await run({ presencePenalty: 0.5 }, [2, 1, 1, 0.5, 0, -1.5]);
    await run({ frequencyPenalty: 0.25 }, [2, 1, 1, 0.5, 0, -1.25]);
  });
});

describe("a row", () => {
  const size = 300;
  const rows = 64;
  const values = random([rows, size], 5);
  const settings = Array.from(
    { length: rows },
    (_, row): RowSampling => ({
      seed: 1000 * row + 2 ** 40,
      offset: row,
      temperature: row % 4 === 0 ? 0 : 0.3 * (row % 5) + 0.2,
      topK: row % 3 === 0 ? 7 : 0,
      topP: row % 5 === 0 ? 0.8 : 1,
      minP: row % 7 === 0 ? 0.05 : 0,
    }),
  );

  it.each(["f32", "bf16"] as const)(
    "has its token whatever rows are beside it, %s",
    async (dtype) => {
      const all = sampleRows(toTensor(values, dtype), settings);
      const ids = [...(await all.ids.toArray())];
      const logprobs = [...(await all.logprobs.toArray())];
      for (const row of [0, 1, 13, 40, 63]) {
        const own = { data: values.data.slice(row * size, (row + 1) * size), shape: [1, size] };
        const alone = sampleRows(toTensor(own, dtype), [settings[row] as RowSampling]);
        expect([...(await alone.ids.toArray())]).toEqual([ids[row]]);
        expect([...(await alone.logprobs.toArray())]).toEqual([logprobs[row]]);
      }
    },
  );

  it("at temperature 0 has the first largest logit, and log-probabilities are the logits' own", async () => {
    const data = toTensor(values, "f32");
    const { ids, logprobs } = sampleRows(
      data,
      settings.map((own) => ({ ...own, temperature: 0 })),
    );
    const [chosen, given] = [await ids.toArray(), await logprobs.toArray()];
    for (let row = 0; row < rows; row++) {
      const own = [...values.data.slice(row * size, (row + 1) * size)].map(Math.fround);
      expect(chosen[row]).toBe(own.indexOf(Math.max(...own)));
      const expected = Math.log(probabilities(own)[chosen[row] as number] as number);
      expect(given[row]).toBeCloseTo(expected, 5);
    }
  });

  it("draws other numbers for other seeds, above 32 bits and below 0 too", async () => {
    const draw = async (seed: number) => {
      const own = Array.from({ length: 40 }, (_, offset) => ({ seed, offset }));
      return [...(await sampleRows(zeros([40, 50]), own).ids.toArray())];
    };
    const results = await Promise.all([1, 2, 2 ** 32 + 1, -1, -(2 ** 32) - 1].map(draw));
    expect(new Set(results.map(String)).size).toBe(5);
    expect(await draw(1)).toEqual(results[0]);
  });
});

describe("sampleRows refuses", () => {
  it.each([
    ["NaN", [0, Number.NaN], "logit 1 of row 0 is nan"],
    ["+inf", [inf, 0], "logit 0 of row 0 is inf"],
    ["only -inf", [-inf, -inf], "all logits of row 0 are -inf"],
  ])("%s", async (_name, row, message) => {
    const { ids } = sampleRows(tensor(Float32Array.from(row), { shape: [1, 2] }), [{ seed: 0 }]);
    await expect(ids.toArray()).rejects.toThrow(message);
  });

  it("settings out of range, and rows and tables that do not fit", () => {
    const x = zeros([2, 4]);
    const good = { seed: 1 };
    for (const [wrong, kind] of [
      [() => sampleRows(x, [good]), ShapeError],
      [() => sampleRows(x, [good, { seed: 1, minP: 2 }]), ArgumentError],
      [() => sampleRows(x, [good, { seed: 1, repetitionPenalty: 0 }]), ArgumentError],
      [() => sampleRows(x, [good, { seed: 1, counts: 0 }]), ArgumentError],
      [() => sampleRows(x, [good, { seed: 1, top: 1 } as never]), ArgumentError],
      [() => sampleRows(x, [good, undefined as never]), ArgumentError],
      [() => sampleRows(x, [good, good], { bias: zeros([1, 3]) }), ShapeError],
      [() => sampleRows(x, [good, good], { counts: zeros([1, 4]) }), DTypeError],
      [() => sampleRows(full([2], 0), [good, good]), ShapeError],
    ] as const) {
      expect(wrong).toThrow(kind);
    }
  });

  it("one row of counts for two rows of logits", () => {
    const counts = zeros([1, 4], { dtype: "i32" });
    const both = [0, 1].map(() => ({ seed: 1, counts: 0 }));
    expect(() => sampleRows(zeros([2, 4]), both, { counts })).toThrow(ArgumentError);
  });
});
