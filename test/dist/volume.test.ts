import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { planGroup } from "../../lib/nn/group.js";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { expectCodes, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

const shape = {
  vocabSize: 4096,
  hiddenSize: 64,
  intermediateSize: 128,
  layers: 6,
  heads: 2,
  kvHeads: 1,
  contextLength: 32,
};

/** Elements of each group, with the padding that a division into `parts` brings. */
function groupSizes(parts: number): number[] {
  const model = new Llama(
    llamaConfig({
      ...shape,
      tieEmbeddings: false,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
    }),
  );
  return model.parameterGroups().map((spec, index) => planGroup(spec, index, parts).size);
}

const sum = (sizes: readonly number[]) => sizes.reduce((all, size) => all + size, 0);

async function run(worldSize: number, parallel: string, steps: number, accumulation: number) {
  const { file, out } = await writeConfig(folder, data, worldSize, {
    parallel,
    steps,
    model: shape,
    batch: { microBatch: 1, accumulation },
    optimizer: { peakLr: 1e-3, warmupSteps: 1, decaySteps: 10 },
    checkpoint: { every: 0 },
    evaluate: { every: 0, batches: 1 },
  });
  expectCodes(await runToEnd(file, { worldSize, perHost: 2 }), 0);
  const log = await readFile(join(out, "logs", "rank-1.log"), "utf8");
  const sent = Number(/sent (\d+) bytes/.exec(log)?.[1]);
  return { sent, deviceBytes: (await stepsOf(out)).at(-1)?.deviceBytes as number };
}

describe("what a rank sends in a step is what theory says", () => {
  const bytes = 4; // f32 weights and gradients
  /** Loss and stop flag of all ranks. */
  const figures = (ranks: number) => (2 * 2 * bytes * (ranks - 1)) / ranks;
  const squares = (groups: number, ranks: number) => (2 * groups * bytes * (ranks - 1)) / ranks;

  test.each([
    ["replicated", 2],
    ["zero1", 2],
    ["full_shard", 2],
    ["hybrid_shard", 4],
  ] as const)("%s, %i ranks, two micro-batches", async (parallel, ranks) => {
    const accumulation = 2;
    const [short, long] = [
      await run(ranks, parallel, 2, accumulation),
      await run(ranks, parallel, 4, accumulation),
    ];
    const sizes = groupSizes(parallel === "replicated" ? 1 : 2);
    const all = sum(sizes) * bytes;
    const part = 1 / 2; // (W - 1) / W of the two ranks of a group
    // Backward reads the weights of all groups but the embedding's. Forward has left the last two
    // gathered.
    const readAgain = sum(sizes.slice(1, -2)) * bytes;
    // A backward pass leaves the first block's weights gathered for the next forward pass, until
    // the step changes them.
    const kept = (accumulation - 1) * part * (sizes[1] as number) * bytes;
    const sharded =
      accumulation * part * (all + readAgain + all) -
      kept +
      squares(sizes.length, 2) +
      figures(ranks);
    const theory = {
      replicated: 2 * part * all + figures(2),
      zero1: part * (all + all) + squares(sizes.length, 2) + figures(2),
      full_shard: sharded,
      hybrid_shard: sharded + (2 * part * all) / 2,
    }[parallel];
    expect((long.sent - short.sent) / 2).toBe(theory);
  });
});

describe("full_shard's memory", () => {
  test("falls as one over the ranks, beside the two groups that are whole", async () => {
    for (const ranks of [2, 4]) {
      const { deviceBytes } = await run(ranks, "full_shard", 2, 1);
      const sizes = groupSizes(ranks);
      const perParameter = 4 + 4 + 8; // weights, gradients, moments
      const slots = [0, 1].map((parity) => Math.max(...sizes.filter((_, i) => i % 2 === parity)));
      const state = (perParameter * sum(sizes)) / ranks + 8 * sum(slots);
      expect(deviceBytes / state).toBeGreaterThan(0.98);
      // The CPU's allocator has size classes, up to an eighth larger than the request.
      expect(deviceBytes / state).toBeLessThan(1.1);
    }
  });
});
