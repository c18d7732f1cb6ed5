// docs/faults.md, row N7: one flipped bit in weights or in the values of a pass ends the run with
// exit code 6, and the error names step, rank and parameter group. Without a flip the canary
// changes nothing.
import { readdirSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { outvoted } from "../../lib/train/canary.js";
import { buildLibrary } from "../cli/build.js";
import { endRanks, runRanks } from "../dist/comm-ranks.js";
import { runToEnd } from "../dist/ranks.js";
import { fault, outcome, train, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

afterAll(endRanks);

const batch = { microBatch: 2, accumulation: 2 };

test("a run that is checked at every step has the bits of one that is not", async () => {
  const plain = await writeConfig(place, "plain", { batch });
  const checked = await writeConfig(place, "checked", { batch, canary: { every: 1 } });
  expect(await train(plain.file).ended).toMatchObject({ code: 0 });
  expect(await train(checked.file).ended).toMatchObject({ code: 0 });
  expect(await outcome(checked.out, 12)).toEqual(await outcome(plain.out, 12));
}, 60_000);

test.each([
  ["gradients", "bf16", /step 7, rank 0: the same micro-batch gave other gradients .*in .*head/],
  ["gradients", "fp32", /step 7, rank 0: the same micro-batch gave other gradients .*in .*head/],
  [
    "weights",
    "bf16",
    /step 7, rank 0: bf16 weights are not their rounded master weights .*in .*embed/,
  ],
])(
  "a bit that flips in step 7 (%s, %s)",
  async (point, precision, message) => {
    const name = `flip-${point}-${precision}`;
    const { file, out } = await writeConfig(place, name, {
      batch,
      precision,
      canary: { every: 1 },
    });
    const { code, stderr } = await train(file, [], fault(`${point}:7:flip`)).ended;
    expect(stderr).toMatch(message);
    expect(code).toBe(6);
    // The last checkpoint is older than the flip. The end of the run saved nothing.
    expect(readdirSync(out).filter((entry) => entry.startsWith("step-"))).toEqual([
      "step-0000000005",
    ]);
  },
  60_000,
);

test("it is looked for at the interval only, and a fault nobody asked to inject does not happen", async () => {
  const { file } = await writeConfig(place, "rare", { canary: { every: 4 } });
  expect(await train(file, [], fault("weights:4:flip")).ended).toMatchObject({ code: 0 });
  const { LLAMAFORGE_TEST_FAULTS: _, ...unarmed } = fault("weights:1:flip");
  expect(await train(file, [], unarmed).ended).toMatchObject({ code: 0 });
}, 60_000);

test("the rank that stands against the most is named; without a majority, all", () => {
  expect(outvoted(["a", "a", "a"])).toEqual([]);
  expect(outvoted(["a", "b", "a", "a"])).toEqual([1]);
  expect(outvoted(["a", "b", "a", "c"])).toEqual([1, 3]);
  expect(outvoted(["a", "b"])).toEqual([0, 1]);
});

test.each([
  // In fp32 one rank alone cannot find the flip. The ranks compare their weights, and two have no
  // majority.
  ["fp32", 2, /step 3: the weights of the ranks differ; no two agree/],
  ["fp32", 3, /step 3: the weights of the ranks differ; against most of them stand the ranks 1\./],
  ["bf16", 2, /step 3, rank 1: bf16 weights are not their rounded master weights .*in .*embed/],
])(
  "a bit that flips in rank 1's weights alone (%s, %i ranks)",
  async (precision, worldSize, message) => {
    const { file, out } = await writeConfig(place, `ranks-${precision}-${worldSize}`, {
      batch: { microBatch: 1 },
      checkpoint: { every: 2 },
      evaluate: { every: 0 },
      precision,
      canary: { every: 1 },
    });
    const env = (rank: number) => (rank === 1 ? fault("weights:3:flip") : {});
    const results = await runToEnd(file, { worldSize, env });
    const said = results.map(({ stderr }) => stderr).join("\n");
    expect(said).toMatch(message);
    expect(results.map(({ code }) => code)).toEqual(Array(worldSize).fill(6));
    expect(readdirSync(out).filter((entry) => entry.startsWith("step-"))).toEqual([
      "step-0000000002",
    ]);
  },
  120_000,
);

test("zero1's new weights that are still on their way are no corruption", async () => {
  const results = await runRanks("canary", 2, { options: { lateMs: 1000 } });
  for (const { code, said, stderr } of results) {
    expect({ code, said, stderr }).toEqual({ code: 0, said: ["equal"], stderr: "" });
  }
});
