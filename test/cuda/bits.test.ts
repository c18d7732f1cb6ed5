/**
 * Compares the kernels of csrc/cuda with those of csrc/cpu, on the inputs of
 * test/support/kernel-bits.mjs. Values agree, random numbers have equal bits, and a second run on
 * the GPU has equal bits.
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parseDevice } from "../../lib/core/device.js";
import { rand, randn } from "../../lib/ops/random.js";
import { onGpu } from "../support/device.js";
import { relativeError, tolerances } from "../support/reference.js";

interface Report {
  results: Record<string, { dtype: "f32" | "bf16" | "i32"; hash: string; values: number[] }>;
}

function run(program: string, device: string): unknown {
  const file = fileURLToPath(new URL(`../support/${program}.mjs`, import.meta.url));
  const env = { ...process.env, LLAMAFORGE_TEST_DEVICE: device };
  return JSON.parse(execFileSync(process.execPath, [file], { env, maxBuffer: 1e8 }).toString());
}

describe.runIf(onGpu())("kernels on a GPU", () => {
  const gpu = process.env.LLAMAFORGE_TEST_DEVICE as string;

  it.each(["kernel-bits", "kernel-hashes", "thread-bits"])(
    "give the same bits in two runs: %s",
    (program) => {
      expect(run(program, gpu)).toEqual(run(program, gpu));
    },
    120_000,
  );

  it("agree with those of the CPU", () => {
    const [ours, theirs] = [run("kernel-bits", gpu), run("kernel-bits", "cpu")] as [Report, Report];
    expect(Object.keys(ours.results).length).toBeGreaterThan(80);
    const wrong: string[] = [];
    for (const [name, { dtype, values }] of Object.entries(ours.results)) {
      const allowed = dtype === "i32" ? 0 : tolerances[dtype].forward;
      const error = relativeError(values, theirs.results[name]?.values ?? []);
      if (!(error <= allowed)) wrong.push(`${name}: ${error}`);
    }
    expect(wrong).toEqual([]);
  }, 120_000);

  it.each([
    ["f32", 4_000_003, 0],
    ["f32", 70_001, 3],
    ["f32", 300_000, 2 ** 34 - 150_001],
    ["bf16", 1_000_001, 0],
    ["bf16", 70_001, 2],
  ] as const)(
    "make the CPU's random numbers to the bit: %s, %i from %i",
    async (dtype, count, offset) => {
      for (const make of [rand, randn]) {
        const [ours, theirs] = await Promise.all(
          [gpu, "cpu"].map((name) =>
            make([count], { seed: 7, offset, dtype, device: parseDevice(name) }).toArray(),
          ),
        );
        const bits = (values: ArrayLike<number>) => Buffer.from(Float32Array.from(values).buffer);
        expect(bits(ours as Float32Array).equals(bits(theirs as Float32Array))).toBe(true);
      }
    },
  );
});
