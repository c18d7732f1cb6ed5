/** Compares the memory and traffic that `plan` predicts for a strategy with those of real ranks. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { loadConfig, type RunConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { type Division, planMemory } from "../../lib/plan/memory.js";
import { stepTime } from "../../lib/plan/step-time.js";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { expectCodes, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

/**
 * Whole groups of this model, halves and quarters of them fill the size classes of the CPU's
 * allocator, which may waste an eighth otherwise.
 */
const model = {
  vocabSize: 4607,
  hiddenSize: 128,
  intermediateSize: 383,
  layers: 5,
  heads: 4,
  kvHeads: 2,
  contextLength: 32,
};

const perHost = 2;

/**
 * Trains. Returns the bytes that a rank holds after the last step and the bytes that it sent in
 * all.
 */
async function train(ranks: number, steps: number, options: Record<string, unknown>) {
  const { file, out } = await writeConfig(folder, data, ranks, {
    model,
    batch: { microBatch: 1, accumulation: 2 },
    optimizer: { peakLr: 1e-3, warmupSteps: 1, decaySteps: 10 },
    checkpoint: { every: 0 },
    evaluate: { every: 0, batches: 1 },
    ...options,
    steps,
  });
  expectCodes(await runToEnd(file, { worldSize: ranks, perHost }), 0);
  const log = await readFile(join(out, "logs", "rank-1.log"), "utf8");
  return {
    config: decidePrecision(loadConfig(file), null),
    sent: Number(/sent (\d+) bytes/.exec(log)?.[1]),
    held: (await stepsOf(out)).at(-1)?.deviceBytes as number,
  };
}

function sentByPlan(config: RunConfig, division: Division): number {
  const { parallel, ranks, shardSize } = division;
  const ring = (size: number) => ({ ranks: size, nodes: 1, bandwidth: 1e9 });
  const shard = parallel === "hybrid_shard" ? shardSize : ranks;
  const rings = { world: ring(ranks), shard: ring(shard), replica: ring(ranks / shard) };
  const together = { slowdown: 0, skew: 0 };
  return stepTime(config, division, rings, {
    pass: 1,
    optimizerPerParameter: 0,
    orthogonal: 0,
    together,
  }).sentBytes;
}

const tied = { model: { ...model, tieEmbeddings: true } };
const bf16 = { precision: "bf16", distributed: { reduce: "bf16", timeoutSeconds: 20 } };

describe("plan and ranks agree", () => {
  test.each<[number, RunConfig["parallel"], string, Record<string, unknown>]>([
    [2, "replicated", "in bf16", bf16],
    [2, "zero1", "with a tied head", tied],
    [4, "zero1", "", {}],
    [2, "full_shard", "tied, computing blocks again", { ...tied, recompute: "block" }],
    [4, "full_shard", "in bf16", bf16],
    [4, "hybrid_shard", "", {}],
  ])(
    "%i ranks, %s %s",
    async (ranks, parallel, _, options) => {
      const short = await train(ranks, 2, { ...options, parallel });
      const long = await train(ranks, 4, { ...options, parallel });
      const { config } = long;
      const { reduce } = config.distributed;
      const division = { parallel, ranks, shardSize: perHost, reduce };
      expect((long.sent - short.sent) / 2).toBe(sentByPlan(config, division));

      // After the last step there are no activations and no messages in flight.
      const { weights, masterWeights, gradients, moments, wholeGroups } = planMemory(
        config,
        division,
      );
      const planned = weights + masterWeights + gradients + moments + wholeGroups;
      expect(Math.abs(long.held / planned - 1), `${long.held} of ${planned}`).toBeLessThan(0.05);
    },
    240_000,
  );
});
