/**
 * The kernels of csrc/cuda beside those of csrc/cpu, on the inputs of test/support/kernel_bits.mjs: values agree, random
 * numbers to the bit, and a second run on the GPU gives the same bits.
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
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

  it.each(["kernel_bits", "kernel_hashes", "thread_bits"])(
    "give the same bits in two runs: %s",
    (program) => {
      expect(run(program, gpu)).toEqual(run(program, gpu));
    },
    120_000,
  );

  it("agree with those of the CPU", () => {
    const [ours, theirs] = [run("kernel_bits", gpu), run("kernel_bits", "cpu")] as [Report, Report];
    expect(Object.keys(ours.results).length).toBeGreaterThan(80);
    const wrong: string[] = [];
    for (const [name, { dtype, values }] of Object.entries(ours.results)) {
      const allowed = dtype === "i32" ? 0 : tolerances[dtype].forward;
      const error = relativeError(values, theirs.results[name]?.values ?? []);
      if (!(error <= allowed)) wrong.push(`${name}: ${error}`);
    }
    expect(wrong).toEqual([]);
  }, 120_000);
});
