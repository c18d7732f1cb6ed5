import { describe, expect, it } from "vitest";
import { inputRows, prefixGroups } from "../../lib/eval/prefix-groups.js";
import { type PassLimits, scoreBatches, tokensOf } from "../../lib/eval/score-batches.js";
import type { TokenRequest } from "../../lib/eval/token-requests.js";

/** A request whose tokens are `prompt` and `continuation`. */
const request = (prompt: number[], continuation: number[]): TokenRequest => ({
  tokens: Int32Array.from([...prompt, ...continuation]),
  scored: continuation.length,
  cutTokens: 0,
});

/** `count` tokens that depend on a seed. */
const text = (seed: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => (seed * 7919 + i * 104_729 + i * i * 31) % 5003);

const limits: PassLimits = {
  ...{ tokens: 600, rows: 50, cacheTokens: 2000, passCost: 16 },
};

describe("rows", () => {
  it("serve all choices of one token, and equal requests, once", () => {
    const prompt = text(1, 20);
    const requests = [[1], [2], [1], [3]].map((choice) => request(prompt, choice));
    const rows = inputRows(requests);
    expect(rows.length).toBe(1);
    expect([...(rows[0]?.ids ?? [])]).toEqual(prompt);
    const indices = rows[0]?.uses.map((use) => use.indices.toSorted());
    expect(indices?.toSorted()).toEqual([[0, 2], [1], [3]]);
    expect(rows[0]?.firstScored).toBe(19);
  });

  it("serve a text that another one continues", () => {
    const requests = [
      request(text(1, 9), [4]),
      request(text(1, 9).slice(0, 5), text(1, 9).slice(5)),
      request(text(1, 3), [9]),
      request([77], [4, 5]),
    ];
    const rows = inputRows(requests);
    expect(rows.map(({ uses }) => uses.length).toSorted()).toEqual([1, 3]);
    const long = rows.find(({ uses }) => uses.length === 3);
    expect(long?.ids.length).toBe(9);
    expect(long?.firstScored).toBe(2);
  });
});

describe("groups", () => {
  it("share what saves the most: a block of examples, or a question", () => {
    const block = text(1, 100);
    const exam = Array.from({ length: 30 }, (_, i) => request([...block, ...text(i + 2, 9)], [1]));
    const questions = Array.from({ length: 8 }, (_, i) =>
      [3, 4, 5].map((choice) => request([1, ...text(50 + i, 40)], [choice, 6, 7, 8])),
    ).flat();
    const groups = prefixGroups(inputRows([...exam, ...questions]));
    const shapes = groups.map(({ prefix, rows }) => `${prefix} x ${rows.length}`);
    expect(shapes.toSorted()).toEqual([
      "100 x 30",
      ...Array.from({ length: 8 }, () => "40 x 3"), // the last token of a prompt is scored
    ]);
  });

  it("end before the first scored token, and leave short beginnings alone", () => {
    const whole = text(1, 60);
    const early = [request(whole.slice(0, 2), [...whole.slice(2), 1]), request(whole, [2, 3])];
    expect(prefixGroups(inputRows(early)).map(({ prefix }) => prefix)).toEqual([0]);
    const apart = [1, 2, 3].map((seed) => request([9, 9, ...text(seed, 30)], [1]));
    expect(prefixGroups(inputRows(apart)).map(({ prefix }) => prefix)).toEqual([0, 0, 0]);
    expect(prefixGroups([])).toEqual([]);
  });
});

describe("batches", () => {
  // Questions of all lengths, with and without a common beginning, some with hundreds of choices.
  const requests = Array.from({ length: 60 }, (_, i) => {
    const prompt = [...(i % 3 === 0 ? text(1, 80) : []), ...text(i + 2, 1 + ((i * 37) % 90))];
    const choices = i === 7 ? 200 : 1 + (i % 4);
    return Array.from({ length: choices }, (_, choice) =>
      request(prompt, text(choice + 100, 1 + ((choice * 5 + i) % 12))),
    );
  }).flat();
  const groups = prefixGroups(inputRows(requests));

  it.each<[string, PassLimits]>([
    ["limits of tokens and cache", limits],
    ["one row a pass", { ...limits, rows: 1 }],
    ["limits below a row", { ...limits, tokens: 1, cacheTokens: 1 }],
    ["no limits", { ...limits, tokens: Number.POSITIVE_INFINITY, rows: 1000 }],
  ])("hold every request once within %s", (_, given) => {
    const batches = scoreBatches(groups, given);
    const seen: number[] = [];
    for (const batch of batches) {
      const none = { prefix: 0, groups: [], passes: [] };
      const { prefix, groups: of, passes } = batch.kind === "shared" ? batch : none;
      const whole = batch.kind === "plain" ? batch.passes[0] : [];
      const rows = [...whole, ...passes.flat().map(({ row }) => row)];
      seen.push(...rows.flatMap(({ uses }) => uses.flatMap(({ indices }) => indices)));
      const lengths = passes.map((pass) => pass.map(({ row }) => row.ids.length - prefix));
      const capacity = prefix + Math.max(0, ...lengths.flat());
      for (const sizes of [
        whole.map(({ ids }) => ids.length),
        of.map(() => prefix),
        ...lengths,
      ].filter(({ length }) => length > 1)) {
        expect(sizes.length).toBeLessThanOrEqual(given.rows);
        expect(sizes.length * Math.max(...sizes)).toBeLessThanOrEqual(given.tokens);
        if (whole.length === 0) {
          expect(sizes.length * capacity).toBeLessThanOrEqual(given.cacheTokens);
        }
      }
      for (const { row, group } of passes.flat()) {
        const { prefix: shared, rows } = of[group] as (typeof of)[number];
        expect(shared).toBeGreaterThanOrEqual(prefix);
        expect(row.firstScored).toBeGreaterThanOrEqual(prefix);
        expect(row.ids.subarray(0, prefix)).toEqual(rows[0]?.ids.subarray(0, prefix));
      }
    }
    expect(seen.toSorted((a, b) => a - b)).toEqual(requests.map((_, index) => index));
  });

  it("compute fewer tokens than the requests have, with little padding", () => {
    const batches = scoreBatches(groups, { ...limits, tokens: 4000, cacheTokens: 20_000 });
    const tokens = batches.reduce((sum, batch) => sum + tokensOf(batch), 0);
    const all = requests.reduce((sum, { tokens }) => sum + tokens.length - 1, 0);
    expect(tokens).toBeLessThan(0.5 * all);
    const padded = batches.reduce((sum, batch) => {
      const most = (lengths: number[]) => lengths.length * Math.max(...lengths);
      if (batch.kind === "plain") return sum + most(batch.passes[0].map(({ ids }) => ids.length));
      const { prefix, groups: of, passes } = batch;
      const suffixes = passes.map((pass) => most(pass.map(({ row }) => row.ids.length - prefix)));
      return sum + of.length * prefix + suffixes.reduce((a, b) => a + b, 0);
    }, 0);
    expect(padded).toBeLessThan(1.3 * tokens);
  });
});
