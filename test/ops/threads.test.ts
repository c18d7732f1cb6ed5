import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

type Script = "kernel-hashes.mjs" | "product-hashes.mjs";

function hashes(
  environment: Record<string, string>,
  script: Script = "kernel-hashes.mjs",
): Record<string, string> {
  const file = fileURLToPath(new URL(`../support/${script}`, import.meta.url));
  const output = execFileSync(process.execPath, [file], {
    env: { ...process.env, ...environment },
    maxBuffer: 2 ** 24,
  });
  return JSON.parse(output.toString()) as Record<string, string>;
}

describe("results do not depend on the machine's load or size", () => {
  const one = hashes({ LLAMAFORGE_THREADS: "1" });

  it("has results to compare, no two alike", () => {
    const values = Object.values(one);
    expect(values.length).toBeGreaterThan(30);
    expect(new Set(values).size).toBe(values.length);
  });

  it.each(["2", "3", "5"])("gives the same bits with %s threads as with 1", (threads) => {
    expect(hashes({ LLAMAFORGE_THREADS: threads })).toEqual(one);
  });

  it.runIf(process.arch === "x64")(
    "draws the same random numbers with every instruction set",
    () => {
      const random = ([name]: [string, string]): boolean => name.startsWith("random");
      const v3 = hashes({ LLAMAFORGE_THREADS: "2", LLAMAFORGE_CPU_ISA: "x86-64-v3" });
      expect(Object.entries(v3).filter(random)).toEqual(Object.entries(one).filter(random));
    },
  );
});

// Products of every kind: wide and narrow, short and long sums, plain and transposed, in batches,
// and added to existing values. Libraries divide long sums between threads if the result is small.
describe("products do not depend on the number of threads", () => {
  const one = hashes({ LLAMAFORGE_THREADS: "1" }, "product-hashes.mjs");

  it("has products to compare", () => {
    expect(Object.keys(one).length).toBeGreaterThan(1700);
  });

  it.each(["2", "3", "4"])("gives the same bits with %s threads as with 1", (threads) => {
    expect(hashes({ LLAMAFORGE_THREADS: threads }, "product-hashes.mjs")).toEqual(one);
  });
});
