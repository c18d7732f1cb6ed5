import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { loadConfig, type RunConfig, resolveConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { planRun } from "../../lib/plan/plan.js";
import { type MachineOptions, planScaling, type ScalingPlan } from "../../lib/plan/scaling.js";
import { collectiveSeconds, sentBytes } from "../../lib/plan/step-queues.js";
import { formatPlan } from "../../lib/plan/text.js";

/**
 * TinyLlama's recipe over 16 GPUs: 8 micro-batches of 8 x 2048 on each, 2,097,152 tokens a step.
 */
const tinyllama = (overrides: string[] = []): RunConfig =>
  decidePrecision(
    loadConfig("configs/tinyllama-1.1b.yaml", ["batch.accumulation=8", ...overrides]),
    null,
  );
const itsMachine = { gpus: 16, gpusPerNode: 8, gpu: "a100-40g" } as const;
const strategyOf = (plan: ScalingPlan, name: string) => {
  const found = plan.strategies.find(({ parallel }) => parallel === name);
  if (!found) throw new Error(`no ${name}`);
  return found;
};

// TinyLlama's groups are the embedding, 22 blocks, and the last norm with the head.
const embedding = 32_000 * 2048;
const block = 44_044_288;
const head = embedding + 2048;
const parameters = 1_100_048_384;

/** Seconds until all channels of a large collective are busy. */
const ramp = 0.1e-3;

describe("collectives on a ring", () => {
  test("an all-reduce on a node sends each byte twice, less the part that is there already", () => {
    const ring = { ranks: 8, nodes: 1, bandwidth: 240e9 };
    expect(sentBytes("allReduce", ring, 800)).toBe(1400);
    // 14 steps of 3.4 us after 8.4 us, two ramps, and 1.75 GB at 240 GB/s.
    const seconds = 8.4e-6 + 14 * 3.4e-6 + 2 * ramp + 1.75e9 / 240e9;
    expect(collectiveSeconds("allReduce", ring, 1e9)).toBeCloseTo(seconds, 12);
    // The ramp at most doubles the time of a small collective.
    expect(collectiveSeconds("allReduce", ring, 800)).toBeCloseTo(
      8.4e-6 + 14 * 3.4e-6 + (2 * 1400) / 240e9,
      12,
    );
  });

  test("over two nodes one step of the fifteen crosses the network, of an all-reduce two of thirty", () => {
    const ring = { ranks: 16, nodes: 2, bandwidth: 200e9 };
    expect(sentBytes("allGather", ring, 1600)).toBe(1500);
    const once = 8.4e-6 + 14 * 3.4e-6 + 14e-6 + ramp + (15 / 16) * (1e9 / 200e9);
    expect(collectiveSeconds("reduceScatter", ring, 1e9)).toBeCloseTo(once, 12);
    const twice = 8.4e-6 + 28 * 3.4e-6 + 28e-6 + 2 * ramp + (15 / 8) * (1e9 / 200e9);
    expect(collectiveSeconds("allReduce", ring, 1e9)).toBeCloseTo(twice, 12);
  });

  test("a rank alone sends nothing and waits for nobody", () => {
    const ring = { ranks: 1, nodes: 1, bandwidth: 1 };
    expect(sentBytes("allReduce", ring, 1e9)).toBe(0);
    expect(collectiveSeconds("allReduce", ring, 1e9)).toBe(0);
  });
});

describe("TinyLlama on its 16 A100-40G, by hand", () => {
  const plan = planScaling(tinyllama(["parallel=full_shard"]), itsMachine);

  test("90 days and the GPU-hours that its authors published", () => {
    expect(plan.rateSource).toContain("24,000 tokens/s");
    expect(plan.seconds / 86_400).toBeCloseTo(90.9, 1);
    expect(plan.gpuHoursPer300B / 3456).toBeGreaterThan(0.99);
    expect(plan.gpuHoursPer300B / 3456).toBeLessThan(1.02);
    expect(plan.gpuHours).toBeCloseTo((plan.seconds * 16) / 3600, 6);
    // 8 x 16,384 tokens at 24,000 a second: 162.2 TFLOP/s are 23,993.5.
    expect(plan.passSeconds).toBeCloseTo(5.463, 3);
  });

  test("full_shard waits at both ends of each pass, and for nothing between", () => {
    const latency = 8.4e-6 + 14 * 3.4e-6 + 14e-6 + ramp;
    const [gather, scatter] = [2, 4].map(
      (bytes) => (elements: number) => latency + (15 / 16) * ((bytes * elements) / 200e9),
    ) as [(n: number) => number, (n: number) => number];
    // The table of the first lookup, and after the last block its own gradients and those of the
    // table. A backward pass leaves the first block's weights gathered, an update does not.
    const ends = scatter(block) + scatter(embedding) + gather(embedding);
    const small = 2 * (8.4e-6 + 28 * 3.4e-6 + 28e-6); // loss and stop flag; squares of the norm
    const { exposedSeconds } = plan.chosen;
    expect(exposedSeconds).toBeCloseTo(8 * ends + gather(block) + small, 6);
    // A block's gather takes 0.58 ms and its reduce-scatter 1.00 ms. Its computation takes 9 and 19
    // ms.
    expect(scatter(block)).toBeCloseTo(0.996e-3, 6);
    // The rate was measured on these GPUs and already contains their effect on each other.
    expect(plan.chosen.slowedSeconds).toBe(0);
  });

  test("what each strategy sends", () => {
    const sent = (name: string) => strategyOf(plan, name).sentBytes;
    const share = 15 / 16;
    const figures = 2 * 8 * share;
    const squares = 2 * 24 * 4 * share;
    expect(sent("replicated")).toBeCloseTo(2 * share * 4 * parameters + figures, 0);
    expect(sent("zero1")).toBeCloseTo(share * (4 + 2) * parameters + figures + squares, 0);
    // Forward gathers all groups. Backward gathers all blocks but the last, which is still there.
    // The first block is still there in the next pass.
    const gathered = 8 * (parameters + 21 * block) - 7 * block;
    const full = share * (2 * gathered + 8 * 4 * parameters);
    expect(sent("full_shard")).toBeCloseTo(full + figures + squares, 0);
    const inNode = (7 / 8) * (2 * gathered + 8 * 4 * parameters) + 2 * 24 * 4 * (7 / 8);
    const between = 2 * (1 / 2) * 4 * (parameters / 8);
    expect(sent("hybrid_shard")).toBeCloseTo(inNode + between + figures, 0);
  });

  test("memory of weights, gradients and optimizer state", () => {
    const state = (name: string) => {
      const { weights, masterWeights, gradients, moments, wholeGroups } = strategyOf(
        plan,
        name,
      ).memory;
      return weights + masterWeights + gradients + moments + wholeGroups;
    };
    expect(state("replicated")).toBe(18 * parameters);
    expect(state("zero1")).toBe(6 * parameters + (12 / 16) * parameters);
    // Weights and gradients of the largest groups at an even and an odd index: the embedding is
    // group 0, the head group 23.
    const slots = (2 + 4) * (embedding + head);
    expect(state("full_shard")).toBe((18 / 16) * parameters + slots);
    expect(state("hybrid_shard")).toBe((18 / 8) * parameters + slots);
  });

  test("reads well, beside the published hours", () => {
    const config = tinyllama(["parallel=full_shard"]);
    const text = formatPlan(config, planRun(config, itsMachine));
    expect(text).toContain("tokens per step          2,097,152");
    expect(text).toContain("On 16 x A100-40G, 2 nodes of 8, full_shard");
    expect(text).toMatch(/GPU-hours for 300 billion tokens +3,4[789]\d\n/);
    expect(text).toMatch(/TinyLlama-1.1B +3,456/);
    expect(text).toMatch(/replicated \(does not fit\) +43\.3 GB/);
    for (const line of text.split("\n")) expect(line.length).toBeLessThanOrEqual(120);
  });
});

describe("a slow network", () => {
  const slow = { ...itsMachine, networkBandwidth: 2.5 };

  test("replicated waits for what its backward pass does not hide", () => {
    const config = tinyllama(["recompute=ffn"]);
    const { chosen, passSeconds } = planScaling(config, { ...slow, tflops: 162.2 });
    const optimizer = (34 * parameters) / (0.82 * 1.555e12);
    const latency = 8.4e-6 + 28 * 3.4e-6 + 28e-6;
    const all = 24 * (latency + 2 * ramp) + (15 / 8) * ((4 * parameters) / 2.5e9);
    // The head's gradients exist when backward begins. Forward is a third of the blocks' FLOPs, and
    // recomputing ffn takes 2 x 3 x 2048 x 5632 per layer again.
    const blocks = 6.760169472e9 - 6 * embedding;
    const again = 22 * 2 * 3 * 2048 * 5632;
    const backward = (((2 / 3) * blocks + again) / (6.760169472e9 + again)) * (passSeconds / 8);
    // A given rate is that of one GPU. Of several GPUs the slowest sets the pace, and collectives
    // run during the whole backward pass.
    const slower = backward * 1.02 * 1.2;
    expect(chosen.exposedSeconds).toBeCloseTo(all + latency - slower, 6);
    expect(chosen.slowedSeconds).toBeCloseTo(0.02 * passSeconds + 0.2 * 1.02 * backward, 6);
    expect(chosen.seconds).toBeCloseTo(
      passSeconds + chosen.slowedSeconds + chosen.exposedSeconds + optimizer,
      9,
    );
  });

  test("accumulation makes the share of communication smaller", () => {
    const of = (accumulation: number) =>
      planScaling(tinyllama([`batch.accumulation=${accumulation}`, "parallel=zero1"]), slow).chosen;
    expect(of(8).sentBytes).toBe(of(1).sentBytes);
    expect(of(8).exposedSeconds).toBeCloseTo(of(1).exposedSeconds, 9);
    expect(of(1).efficiency).toBeLessThan(0.5);
    expect(of(8).efficiency).toBeGreaterThan(0.75);
  });

  test("sharding within the node spares the network", () => {
    const { strategies } = planScaling(tinyllama(["parallel=hybrid_shard"]), slow);
    const [hybrid, full] = ["hybrid_shard", "full_shard"].map((name) =>
      strategies.find(({ parallel }) => parallel === name),
    );
    expect(full?.exposedSeconds).toBeGreaterThan(5 * (hybrid?.exposedSeconds as number));
    // The parts of the two copies are averaged: 2 x 1/2 x 4 bytes x parameters over the node's 2.5
    // GB/s, all exposed.
    expect(hybrid?.exposedSeconds).toBeGreaterThan((4 * parameters) / 2.5e9);
    expect(hybrid?.exposedSeconds).toBeLessThan((4 * parameters) / 2.5e9 + 0.1);
  });
});

describe("one GPU", () => {
  test("takes what was measured, whatever the table says", () => {
    const config = tinyllama(["batch.microBatch=16", "batch.accumulation=4"]);
    const plan = planScaling(config, { gpu: "h100", tokensPerSecond: 83_077.2 });
    expect(plan.chosen.seconds).toBeCloseTo(131_072 / 83_077.2, 9);
    expect(plan.chosen).toMatchObject({ sentBytes: 0, exposedSeconds: 0 });
    expect(plan.chosen.efficiency).toBeCloseTo(1, 12);
    // Its optimizer was measured at 13.4 to 13.6 ms.
    expect(plan.chosen.seconds - plan.passSeconds).toBeCloseTo(0.0136, 4);
    // The rate in the table is this measurement.
    const tabled = planScaling(config, { gpu: "h100" });
    expect(tabled.chosen.seconds / plan.chosen.seconds).toBeCloseTo(1, 3);
  });

  test("computing blocks again takes a third of their time", () => {
    const [none, again] = ["none", "block"].map((recompute) =>
      planScaling(tinyllama([`recompute=${recompute}`]), { gpu: "h100" }),
    ) as [ScalingPlan, ScalingPlan];
    const blocks = (6.760169472e9 - 6 * embedding) / 6.760169472e9;
    expect(again.passSeconds / none.passSeconds).toBeCloseTo(1 + blocks / 3, 9);
  });
});

/** Two runs on different GPUs. `together` and the links of Hopper were fitted to the first. */
describe.each(["-first", ""])("two H200, as measured%s", (which) => {
  const name = `../../bench/results/gpus-2x-nvidia-h200${which}.json`;
  const { base, runs } = JSON.parse(readFileSync(new URL(name, import.meta.url), "utf8"));
  const config = tinyllama(["batch.microBatch=16", "batch.accumulation=1"]);
  const machine = { gpus: 2, gpu: "h200", tokensPerSecond: base.tokensPerSecond };
  const plan = planScaling(config, machine);

  test.each(["replicated", "zero1", "full_shard"])(
    "a step of %s within two percent",
    (parallel) => {
      const measured = runs.find((run: { parallel: string }) => run.parallel === parallel);
      const planned = strategyOf(plan, parallel);
      expect(planned.sentBytes).toBeCloseTo(measured.sentBytesPerStep, 0);
      expect((planned.seconds * 1000) / measured.stepMs.median).toBeGreaterThan(0.98);
      expect((planned.seconds * 1000) / measured.stepMs.median).toBeLessThan(1.02);
      expect(planned.memory.total / measured.peakBytes[0]).toBeGreaterThan(1);
      expect(planned.memory.total / measured.peakBytes[0]).toBeLessThan(1.05);
    },
  );
});

describe("what cannot be planned is said, all at once", () => {
  const fails = (overrides: string[], machine: MachineOptions) => {
    try {
      planRun(tinyllama(overrides), machine);
    } catch (error) {
      return (error as Error).message;
    }
    throw new Error("it was planned");
  };

  test.each<[string, string[], MachineOptions, RegExp[]]>([
    ["an unknown GPU", [], { gpu: "a10" }, [/--gpu: not known: "a10"; expected one of a100-40g/]],
    [
      "a name that every object has",
      [],
      { gpu: "constructor" },
      [/--gpu: not known: "constructor"/],
    ],
    ["no GPU named", [], { gpus: 2 }, [/--gpu: missing; expected one of/]],
    [
      "no GPUs, half a node, no bandwidth",
      [],
      { gpu: "h100", gpus: 0, gpusPerNode: 0.5, networkBandwidth: 0 },
      [
        /--gpus: expected a whole number from 1, got 0/,
        /--gpus-per-node: expected a whole number from 1, got 0.5/,
        /--network-bandwidth: expected GB\/s above 0, got 0/,
      ],
    ],
    [
      "nodes that are not equal",
      [],
      { gpus: 12, gpusPerNode: 8, gpu: "h100" },
      [/--gpus-per-node: 8 do not divide 12 GPUs into equal nodes/],
    ],
    [
      "a node larger than the run",
      [],
      { gpus: 4, gpusPerNode: 8, gpu: "h100" },
      [/--gpus-per-node: 8 are more than the 4 GPUs of the run/],
    ],
    [
      "copies of unequal size",
      ["parallel=hybrid_shard", "distributed.shardSize=5"],
      { ...itsMachine },
      [/distributed.shardSize: 5 ranks do not divide 16 GPUs/],
    ],
    [
      "a GPU without a measured rate or usual links",
      [],
      { gpus: 4, gpusPerNode: 2, gpu: "rtx-4090" },
      [
        /nobody has measured LlamaForge on RTX 4090: give --tokens-per-second/,
        /--node-bandwidth: RTX 4090 has no usual one/,
        /--network-bandwidth: RTX 4090 has no usual one/,
      ],
    ],
    [
      "a CPU, another precision",
      ["device=cpu", "precision=fp32"],
      { gpu: "h100" },
      [/device: cpu has no GPUs/, /precision: the rate of H100 SXM is that of bf16/],
    ],
    [
      "a small model",
      ["model.preset=quickstart", "data.sequenceLength=256"],
      { gpu: "h100" },
      [/model: a model this small does not fill H100 SXM/],
    ],
    [
      "two speeds",
      [],
      { gpu: "h100", tflops: 500, tokensPerSecond: 80_000 },
      [/--tflops: says the same as --tokens-per-second/],
    ],
    [
      "a speed beyond what the optimizer takes",
      ["batch.accumulation=1"],
      { gpu: "h100", tokensPerSecond: 1e7 },
      [/--tokens-per-second: a step of 1.64 ms is shorter than its optimizer, 13.6 ms/],
    ],
  ])("%s", (_, overrides, machine, patterns) => {
    const message = fails(overrides, machine);
    for (const pattern of patterns) expect(message).toMatch(pattern);
  });

  test("too much memory: by how much, and what fits", () => {
    const message = fails([], itsMachine);
    expect(message).toContain("parallel: replicated takes 43.3 GB on each GPU");
    expect(message).toContain("2.39 GB more than the 40.9 GB that A100-40G has for it");
    for (const other of ["zero1 (31.0 GB)", "full_shard (25.6 GB)", "hybrid_shard (26.9 GB)"]) {
      expect(message).toContain(`parallel=${other}`);
    }
    expect(message).toContain("recompute=ffn (31.2 GB)");

    // A small GPU needs two changes at once. One GPU alone can only reduce the micro-batch.
    const given = { tokensPerSecond: 9000, nodeBandwidth: 10 };
    const two = fails([], { gpus: 2, gpu: "rtx-4090", ...given });
    expect(two).toContain("what fits: parallel=zero1 recompute=block (18.2 GB)");
    const alone = fails(["recompute=block", "batch.microBatch=16"], { gpu: "rtx-4090", ...given });
    expect(alone).toMatch(/what fits: batch\.microBatch=\d \(\d\d\.\d GB\)$/m);
    const large = { heads: 64, kvHeads: 8, hiddenSize: 8192, intermediateSize: 28_672, layers: 80 };
    const llama70b = Object.entries(large).map(([field, value]) => `model.${field}=${value}`);
    expect(fails(llama70b, { gpu: "h100" })).toContain("nothing else fits either");
  });
});

test("bf16 gradients halve what is sent for them, and take memory of their own on the way", () => {
  const [fp32, bf16] = ["fp32", "bf16"].map((reduce) =>
    planScaling(tinyllama([`distributed.reduce=${reduce}`, "parallel=zero1"]), itsMachine),
  ) as [ScalingPlan, ScalingPlan];
  const less = fp32.chosen.sentBytes - bf16.chosen.sentBytes;
  expect(less).toBeCloseTo((15 / 16) * 2 * parameters, 0);
  expect(fp32.chosen.memory.inTransit).toBe(0);
  expect(bf16.chosen.memory.inTransit).toBe(2 * (embedding + head + parameters / 16));
});

test("hybrid_shard is offered where there is more than one copy", () => {
  const on = (gpus: number) =>
    planScaling(tinyllama(["parallel=zero1"]), { gpu: "h100", gpus }).strategies.map(
      ({ parallel }) => parallel,
    );
  expect(on(8)).toEqual(["replicated", "zero1", "full_shard"]);
  expect(on(16)).toEqual(["replicated", "zero1", "full_shard", "hybrid_shard"]);
  expect(on(1)).toEqual(["replicated"]);
  const odd = tinyllama(["parallel=zero1", "distributed.shardSize=3"]);
  expect(planScaling(odd, { gpu: "h100", gpus: 16 }).strategies).toHaveLength(3);
});

test("an odd model is padded to equal parts", () => {
  const wider = { ...tinyllama().model, vocabSize: 32_001 };
  const asked = resolveConfig({ ...tinyllama(["parallel=full_shard"]), model: wider });
  const config = decidePrecision(asked, null);
  const { chosen } = planScaling(config, { ...itsMachine });
  expect(Number.isInteger(chosen.memory.weights)).toBe(true);
});
