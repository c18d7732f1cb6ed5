import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { resolveConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { buildLibrary } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

// The addon chooses its kernels when it starts, so each set of kernels needs its own process.
let folder: string;
let recipe: string;
let out: string;

beforeAll(async () => {
  buildLibrary();
  const made = await tinyData();
  folder = made.folder;
  out = join(folder, "run");
  recipe = join(folder, "recipe.yaml");
  writeFileSync(recipe, stringify({ ...tinyConfig(made.data, out), precision: "auto" }));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function llamaforge(isa: string | undefined, ...args: string[]) {
  const { LLAMAFORGE_CPU_ISA: _, ...environment } = process.env;
  const { status, stdout, stderr } = spawnSync(process.execPath, [cliFile, ...args], {
    env: { ...environment, ...(isa && { LLAMAFORGE_CPU_ISA: isa }) },
    encoding: "utf8",
  });
  return { code: status, stdout, stderr };
}

const read = (...path: string[]) =>
  JSON.parse(readFileSync(join(out, ...path), "utf8")) as Record<string, never>;
const hasBothSets = readFileSync("/proc/cpuinfo", "utf8").includes("avx512_bf16");

describe.runIf(process.arch === "x64")("precision: auto without instructions for bf16", () => {
  const v3 = "x86-64-v3";

  it("plan says that it is fp32, and plans that", () => {
    const { code, stdout } = llamaforge(v3, "plan", recipe);
    expect(code).toBe(0);
    expect(stdout).toContain(
      "(fp32 (auto: the kernels for x86-64-v3 have no products in bf16), micro-batch",
    );
    const planned = JSON.parse(llamaforge(v3, "plan", recipe, "--json").stdout);
    const fp32 = JSON.parse(
      llamaforge(v3, "plan", recipe, "--json", "--set", "precision=fp32").stdout,
    );
    expect(planned).toEqual(fp32);
    expect(planned.precision).toBe("fp32");
  });

  it("train says so in its first line, and run.json, the checkpoint and its weights hold fp32", () => {
    const { code, stdout, stderr } = llamaforge(v3, "train", recipe, "--set", "steps=6");
    expect(stderr).toBe("");
    expect(code).toBe(0);
    const first = stdout.split("\n").find((line) => line.includes("parameters"));
    expect(first).toMatch(
      /parameters, fp32 \(auto: the kernels for x86-64-v3 have no products in bf16\)$/,
    );
    expect(read("run.json")).toMatchObject({ config: { precision: "fp32" } });
    expect(read("step-0000000006", "manifest.json")).toMatchObject({
      run: { precision: "fp32" },
    });
  });

  it.runIf(hasBothSets)("a run that goes on where bf16 is native keeps fp32 and says so", () => {
    const { code, stdout } = llamaforge(undefined, "train", recipe);
    expect(code).toBe(0);
    expect(stdout).toContain("fp32 (auto: as the checkpoint; a new run would take bf16 here)");
    expect(stdout).toContain("going on from step 6");
    expect(read("run.json")).toMatchObject({ config: { precision: "fp32" } });
  });
});

it.runIf(hasBothSets)("auto is bf16 on a CPU that computes in it", () => {
  const other = join(folder, "native");
  const { code, stdout } = llamaforge(undefined, "train", recipe, "--set", `out=${other}`);
  expect(code).toBe(0);
  expect(stdout).toMatch(/parameters, bf16 \(auto: this CPU computes in it\)/);
  const { config } = JSON.parse(readFileSync(join(other, "run.json"), "utf8"));
  expect(config.precision).toBe("bf16");
  // The other machine has no bf16 instructions and still keeps the checkpoint's precision.
  const more = llamaforge(
    "x86-64-v3",
    "train",
    recipe,
    "--set",
    `out=${other}`,
    "--set",
    "steps=14",
  );
  expect(more.stdout).toContain("bf16 (auto: as the checkpoint; a new run would take fp32 here)");
});

it("auto on a GPU is bf16, and a precision that is given stays", () => {
  const decide = (device: string, precision: "auto" | "fp32") =>
    decidePrecision({ ...tinyConfig("data", "out"), device, precision }, null).precision;
  expect(decide("cuda:1", "auto")).toBe("bf16");
  expect(decide("cuda", "fp32")).toBe("fp32");
  const minimal = { steps: 1, model: { preset: "quickstart" }, data: { train: { a: 1 } } } as const;
  expect(resolveConfig(minimal).precision).toBe("bf16");
});
