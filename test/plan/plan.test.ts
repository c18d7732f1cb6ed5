import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { loadConfig, parseConfig, resolveConfig } from "../../lib/config/index.js";
import { presets } from "../../lib/model/presets.js";
import { formatBytes } from "../../lib/plan/format.js";
import { withTotal } from "../../lib/plan/memory.js";
import { planRun } from "../../lib/plan/plan.js";
import { formatPlan } from "../../lib/plan/text.js";

const tinyllama = loadConfig("configs/tinyllama-1.1b.yaml");
const measuredPlans = JSON.parse(
  readFileSync(new URL("../../bench/results/plan-nvidia-h100.json", import.meta.url), "utf8"),
) as {
  preset: keyof typeof presets;
  recompute: "none" | "ffn" | "block";
  microBatch: number;
  /** Peak bytes of live tensors during the training. */
  peak: number;
  /** The head's part of the plan of that day, whose chunks of logits had 512 MiB. */
  plan: { lossHead: number };
}[];
const measuredPrecisions = JSON.parse(
  readFileSync(new URL("../../bench/results/parity-fp8-nvidia-h200.json", import.meta.url), "utf8"),
) as Record<"fp8" | "bf16", { memory: { peakBytes: number } }>;

describe("the plan of TinyLlama-1.1B", () => {
  const plan = planRun(tinyllama, { tokensPerSecond: 24_000 });

  it("trains on 3 trillion tokens", () => {
    expect(plan.tokensPerStep).toBe(2_097_152);
    expect(plan.tokens / 1e12).toBeCloseTo(3, 5);
  });

  it("takes about the 3,456 A100-hours per 300 billion tokens that its authors say", () => {
    const [measured] = plan.estimates;
    expect(measured!.seconds / 86_400).toBeCloseTo(1446.8, 1);
    expect(measured!.hoursPer300B / 3456).toBeCloseTo(1, 1);
    expect(measured!.deviceHours).toBeCloseTo(measured!.seconds / 3600, 6);
  });

  it("derives tokens/s from TFLOP/s", () => {
    const [given, a100, h100] = planRun(tinyllama, { tflops: 400 }).estimates;
    expect(given!.tokensPerSecond).toBeCloseTo(400e12 / 6.76e9, -2);
    expect(a100!.tokensPerSecond).toBeCloseTo(24_000, -2);
    expect(h100!.tokensPerSecond).toBeCloseTo(70_794, -3);
  });

  it("holds 18 bytes per parameter in bf16 and 16 in fp32", () => {
    const states = ({ memory }: typeof plan) =>
      memory.weights + memory.masterWeights + memory.gradients + memory.moments;
    expect(states(plan)).toBe(18 * plan.parameters.total);
    expect(states(planRun({ ...tinyllama, precision: "fp32" }))).toBe(16 * plan.parameters.total);
  });

  it("is within 2% of every peak measured on an H100 (bench/results/plan-nvidia-h100.json)", () => {
    expect(measuredPlans.length).toBeGreaterThan(5);
    for (const { preset, recompute, microBatch, peak, plan: then } of measuredPlans) {
      const { total: _, ...memory } = planRun({
        ...tinyllama,
        model: presets[preset],
        batch: { microBatch, accumulation: 4 },
        recompute,
      }).memory;
      const planned = withTotal({ ...memory, lossHead: then.lossHead }).total;
      const name = `${preset} ${recompute} ${microBatch}`;
      expect(Math.abs(planned / peak - 1), name).toBeLessThan(0.02);
    }
  });

  it("is within 1% of the peaks in bf16 and fp8 measured on an H200", () => {
    const batch = { microBatch: 16, accumulation: 4 };
    for (const precision of ["bf16", "fp8"] as const) {
      const { total } = planRun({ ...tinyllama, batch, precision }).memory;
      const peak = measuredPrecisions[precision].memory.peakBytes;
      expect(Math.abs(total / peak - 1), precision).toBeLessThan(0.01);
    }
  });

  it("is less with recomputation", () => {
    const total = (recompute: "none" | "ffn" | "block") => {
      const batch = { microBatch: 16, accumulation: 4 };
      return planRun({ ...tinyllama, batch, recompute }).memory.total;
    };
    expect(total("ffn")).toBeLessThan(0.7 * total("none"));
    expect(total("block")).toBeLessThan(0.75 * total("ffn"));
  });

  it("reads well", () => {
    const text = formatPlan(tinyllama, plan);
    expect(text).toContain("1,100,048,384");
    expect(text).toMatch(/causal .*6\.760 GFLOP/);
    expect(text).toMatch(/full attention .*7\.314 GFLOP/);
    expect(text).toMatch(/TinyLlama-1.1B +3,456/);
    expect(text).toMatch(/as measured +24,000 +1446d \d\d:\d\d:\d\d/);
    for (const line of text.split("\n")) expect(line.length).toBeLessThanOrEqual(120);
  });
});

it("compares only TinyLlama's own shape with published hours", () => {
  const quickstart = loadConfig("configs/quickstart.yaml");
  const text = formatPlan(quickstart, planRun(quickstart));
  expect(text).not.toContain("Pythia");
  expect(text).not.toContain("A100");
  expect(text).toContain("not known: give --tokens-per-second");
  const measured = formatPlan(quickstart, planRun(quickstart, { tokensPerSecond: 9000 }));
  expect(measured).toMatch(/as measured +9,000 +1:54/);
});

it("activations grow with the micro-batch, the loss's head does not", () => {
  const config = parseConfig("steps: 9\nmodel: {preset: tinyllama-120m}\ndata: {train: {a: 1}}");
  const small = planRun(config).memory;
  const large = planRun(
    resolveConfig({ ...config, batch: { ...config.batch, microBatch: 16 } }),
  ).memory;
  expect(large.activations).toBe(2 * small.activations);
  expect(large.lossHead).toBe(small.lossHead);
});

it.each([
  [0, "0 B"],
  [999, "999 B"],
  [1000, "1.00 kB"],
  [999_600, "1.00 MB"],
  [1.5e9, "1.50 GB"],
])("%d bytes are %s", (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text);
});
