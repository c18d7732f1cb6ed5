import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { beforeAll, expect, it } from "vitest";
import { relativeError } from "../support/reference.js";

interface Report {
  threads: number;
  instructionSet: string;
  results: Record<string, { dtype: "f32" | "bf16"; hash: string; values: number[] }>;
}

const program = fileURLToPath(new URL("../support/kernel-bits.mjs", import.meta.url));

function run(environment: Record<string, string>): Report {
  const env = { ...process.env, ...environment };
  return JSON.parse(execFileSync(process.execPath, [program], { env, maxBuffer: 1e8 }).toString());
}

const hashes = (report: Report) =>
  Object.fromEntries(Object.entries(report.results).map(([name, { hash }]) => [name, hash]));

let one: Report;
beforeAll(() => {
  one = run({ LLAMAFORGE_THREADS: "1" });
});

it("gives the same bits with one, two and three threads", () => {
  expect(one.threads).toBe(1);
  expect(Object.keys(one.results).length).toBeGreaterThan(80);
  for (const threads of [2, 3]) {
    const more = run({ LLAMAFORGE_THREADS: String(threads) });
    expect(more.threads).toBe(threads);
    expect(hashes(more)).toEqual(hashes(one));
  }
}, 120_000);

it.skipIf(process.arch !== "x64")(
  "agrees between the instruction sets",
  () => {
    const lower = run({ LLAMAFORGE_CPU_ISA: "x86-64-v3" });
    expect(lower.instructionSet).toContain("v3");
    for (const [name, { dtype, values }] of Object.entries(one.results)) {
      const other = lower.results[name]?.values ?? [];
      expect(values.every(Number.isFinite) || name === "pow", name).toBe(true);
      const numbers = values.flatMap((value, i) =>
        Number.isNaN(value) ? [] : [[value, other[i]]],
      );
      const error = relativeError(
        numbers.map(([value]) => value as number),
        numbers.map(([, value]) => value as number),
      );
      // One rounding to bf16 may go the other way.
      expect(error, name).toBeLessThanOrEqual(dtype === "f32" ? 1e-6 : 1e-3);
      expect(other.map(Number.isNaN), name).toEqual(values.map(Number.isNaN));
    }
  },
  120_000,
);
