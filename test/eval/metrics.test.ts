import { describe, expect, it } from "vitest";
import { aggregate, argmax, choiceValues, textValues } from "../../lib/eval/metrics.js";
import { PythonRandom } from "../../lib/eval/python-random.js";
import { groupError, groupMean, preciseExp } from "../../lib/eval/statistics.js";
import type { ChoiceTask } from "../../lib/eval/task.js";

// Expected numbers were printed by lm_eval.api.metrics 0.4.13 under Python 3.11.

const likelihood = (logLikelihood: number) => ({ logLikelihood, isGreedy: false, cutTokens: 0 });
const logLikelihoods = [-1.25, -0.5, -3.125, -7.0001, -0.1, -2.62, -3.3333333];

describe("Python's random numbers", () => {
  it("have CPython's bits", () => {
    const random = new PythonRandom(7);
    expect(random.random()).toBe(0.32383276483316237);
    expect(Array.from({ length: 5 }, () => Math.floor(random.random() * 10))).toEqual([
      1, 6, 0, 5, 3,
    ]);
    expect(new PythonRandom(2 ** 40 + 3).random()).toBe(0.21978710637116716);
  });

  it("choose CPython's samples, of small and of large populations", () => {
    const random = new PythonRandom(1234);
    const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);
    expect(random.sample(upTo(1000), 5)).toEqual([989, 796, 451, 119, 7]);
    expect(random.sample(upTo(20), 7)).toEqual([2, 18, 1, 19, 3, 12, 5]);
    expect(random.random()).toBe(0.23680977536311776);
  });
});

describe("scores and standard errors", () => {
  it("of a mean", async () => {
    const values = [1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1];
    expect(await aggregate("mean", values, 100_000)).toEqual({
      value: 0.5454545454545454,
      error: 0.1574591643244434,
    });
    expect((await aggregate("mean", values, 0)).error).toBe(null);
    expect((await aggregate("mean", [1], 100_000)).error).toBe(null);
  });

  it("of a perplexity, by the bootstrap", async () => {
    expect(await aggregate("perplexity", logLikelihoods, 3000)).toEqual({
      value: 12.951411225403678,
      error: 22.445077564033763,
    });
  });

  it("of a text, per word, byte and token", async () => {
    const task = { metrics: ["word_perplexity", "bits_per_byte", "token_perplexity"] } as const;
    const pairs = [
      textValues(task, -10.5, " a text\nof words ", 7),
      textValues(task, -3.25, "ö", 2),
    ];
    const score = async (metric: "word_perplexity" | "bits_per_byte" | "token_perplexity") => {
      const aggregation = metric === "bits_per_byte" ? "bits_per_byte" : "weighted_perplexity";
      const values = pairs.map((pair) => pair[metric] as readonly [number, number]);
      return (await aggregate(aggregation, values, 1000)).value;
    };
    expect(await score("word_perplexity")).toBe(7.129818043720088);
    expect(await score("bits_per_byte")).toBe(1.0440556216959604);
    expect(await score("token_perplexity")).toBe(4.6079256016029415);
  });

  it("of a group, weighted or not", () => {
    const members = [
      { value: 0.25, error: 0.0123, size: 111 },
      { value: 0.31, error: 0.0456, size: 57 },
      { value: 0.77, error: 0.0061, size: 1000 },
    ];
    expect(groupMean(members, true)).toBe(0.6981335616438356);
    expect(groupMean(members, false)).toBe(0.44333333333333336);
    expect(groupError(members, true)).toBe(0.0057925661835467705);
    expect(groupError(members, false)).toBe(0.0158740179048798);
    expect(groupError([...members, { value: 1, error: null, size: 1 }], true)).toBe(null);
  });
});

it("exp is the C library's in the last digit", () => {
  expect([-0.3, 2.575_245_2, 11.1, 1, 0, -20.25, 700.5].map(preciseExp)).toEqual([
    0.7408182206817179,
    13.134537352236896,
    66171.16016837658,
    Math.E,
    1,
    1.6052280551856116e-9,
    1.6721859620674984e304,
  ]);
});

describe("a choice", () => {
  const task = { metrics: ["acc", "acc_norm"] } as unknown as ChoiceTask;

  it("is the most likely one, or the most likely one per character", () => {
    // Characters are code points: 𝒳 is one, and so the second choice wins per character.
    const texts = ["no", "𝒳𝒳𝒳"];
    const said = [likelihood(-2), likelihood(-2.9)];
    expect(choiceValues(task, 0, texts, said)).toEqual({ acc: 1, acc_norm: 0 });
    expect(choiceValues(task, 1, texts, said)).toEqual({ acc: 0, acc_norm: 1 });
  });

  it("is the first one of equals, and NaN before all others, as in NumPy", () => {
    expect(argmax([-3, -1, -1])).toBe(1);
    expect(argmax([-3, Number.NaN, -1])).toBe(1);
    expect(argmax([Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY])).toBe(0);
  });
});
