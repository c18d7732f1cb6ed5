import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readMetrics } from "../../lib/train/metrics.js";
import { buildLibrary, root } from "./build.js";
import { cliFile, llamaforge } from "./run.js";

// The commands as a user types them, each in its own process, on a model that trains in seconds.
let folder: string;
const tokenizer = join(root, "assets/quickstart/tokenizer.json");
const config = `
name: tiny
out: run
precision: fp32
threads: 1
steps: 12
model: {vocabSize: 4096, hiddenSize: 32, intermediateSize: 64, layers: 1, heads: 2, kvHeads: 1, contextLength: 32}
data: {train: {text: 1}}
batch: {microBatch: 2}
optimizer: {peakLr: 1.0e-3, warmupSteps: 2}
checkpoint: {every: 5}
evaluate: {every: 6, batches: 2}
sample: {every: 12, prompts: ["The people"], maxTokens: 8}
`;

const run = (...args: string[]) => llamaforge(args, { cwd: folder });

beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-"));
  mkdirSync(join(folder, "texts"));
  for (let i = 0; i < 60; i++) {
    const text = `Address ${i}. The people of the United States have a government. `.repeat(20);
    writeFileSync(join(folder, "texts", `${i}.txt`), text + i);
  }
  writeFileSync(join(folder, "tiny.yaml"), config);
  const { code, stdout, stderr } = await run(
    "prepare",
    "texts",
    "--out",
    "text",
    "--tokenizer",
    tokenizer,
  );
  expect(stderr).not.toContain("llamaforge:");
  expect(code).toBe(0);
  expect(stdout).toMatch(/text {2}train: \d+ documents, [\d.]+ kB, [\d,]+ tokens/);
  expect(stdout).toMatch(/text {2}validation: \d+ documents?/);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("train", () => {
  it("trains, measures, writes samples, saves and reports", async () => {
    const { code, stdout, stderr } = await run("train", "tiny.yaml", "--set", "seed=5");
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout).toContain("set seed=5\n");
    expect(stdout).toMatch(
      /^step 1\/12 {2}loss 8\.\d{4} {2}lr 0\.00e\+0 {2}norm [\d.]+ {2}[\d,]+ tok\/s/m,
    );
    expect(stdout).toMatch(
      /^step 6 {2}validation loss \d\.\d+ nats per token, [\d.]+ bits per byte$/m,
    );
    expect(stdout).toContain("done: 768 tokens");
    expect(stdout).toMatch(/^ {2}The people/m);
    expect(stdout).toMatch(/^checkpoint {2}run\/step-0000000012$/m);
    expect(stdout).toMatch(/^report {6}run\/report.html$/m);
    const steps = await readMetrics(join(folder, "run/metrics.jsonl"));
    expect(steps.map(({ step }) => step)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
    expect(steps[11]!.samples![0]!.prompt).toBe("The people");
    expect(readFileSync(join(folder, "run/report.html"), "utf8")).toContain("</html>");
  });

  it("has nothing left to do when it is run again", async () => {
    const { code, stdout } = await run("train", "tiny.yaml", "--set", "seed=5");
    expect(code).toBe(0);
    expect(stdout).toContain("going on from step 12");
    expect(stdout).not.toContain("step 1/12");
  });

  it("refuses to mix a new run with an old one", async () => {
    const { code, stderr } = await run("train", "tiny.yaml", "--resume", "none");
    expect(code).toBe(2);
    expect(stderr).toContain("holds 2 checkpoints of an earlier run");
  });

  it("says which data set is missing, and makes nothing", async () => {
    const { code, stderr } = await run(
      "train",
      "tiny.yaml",
      "--set",
      "data.train={nowhere: 1}",
      "--set",
      "out=no",
    );
    expect(code).toBe(3);
    expect(stderr).toContain("nowhere");
    expect(existsSync(join(folder, "no"))).toBe(false);
  });

  it("names a GPU that is not there, and makes nothing", async () => {
    const args = ["--set", "device=cuda:998", "--set", "out=no"];
    const { code, stderr } = await run("train", "tiny.yaml", ...args);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^llamaforge: .*(cuda|GPU)/i);
    expect(existsSync(join(folder, "no"))).toBe(false);
  });

  it("stops on SIGTERM with 75, saved, and goes on from there", async () => {
    const args = ["train", "tiny.yaml", "--set", "out=stopped", "--set", "steps=100000"];
    const child = spawn(process.execPath, [cliFile, ...args], { cwd: folder });
    let stdout = "";
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk;
      if (!child.killed && /^step 20\//m.test(stdout)) child.kill("SIGTERM");
    });
    expect(await once(child, "close")).toEqual([75, null]);
    expect(stdout).toContain("SIGTERM: finishing the step and saving");
    const step = Number(/stopped after step (\d+) of 100000/.exec(stdout)![1]);
    expect(step).toBeGreaterThanOrEqual(20);
    expect(readdirSync(join(folder, "stopped"))).toContain(
      `step-${String(step).padStart(10, "0")}`,
    );
    expect(existsSync(join(folder, "stopped/report.html"))).toBe(true);

    // Both runs need the same configuration, so this run is stopped as well.
    const again = spawn(process.execPath, [cliFile, ...args], { cwd: folder });
    let output = "";
    again.stdout.on("data", (chunk: Buffer) => {
      output += chunk;
      if (!again.killed && /^step \d+\//m.test(output)) again.kill("SIGINT");
    });
    expect(await once(again, "close")).toEqual([75, null]);
    expect(output).toContain(`going on from step ${step}\n`);
    const steps = await readMetrics(join(folder, "stopped/metrics.jsonl"));
    expect(steps.map((record) => record.step)).toEqual(steps.map((_, i) => i + 1));
  });

  it("trains to its end when nobody reads its output", async () => {
    const command = '"$0" "$1" train tiny.yaml --set out=pipe | head -1';
    const child = spawn("bash", ["-c", `set -o pipefail; ${command}`, process.execPath, cliFile], {
      cwd: folder,
    });
    expect(await once(child, "close")).toEqual([0, null]);
    expect(existsSync(join(folder, "pipe/step-0000000012/manifest.json"))).toBe(true);
  });
});

describe("generate", () => {
  it("continues a prompt from a run's newest checkpoint, the same for the same seed", async () => {
    const options = ["--max-tokens", "12", "--seed", "3"];
    const first = await run("generate", "run", "The people", ...options);
    expect(first.stderr).toBe("");
    expect(first.code).toBe(0);
    expect(first.stdout).toMatch(/^The people[\s\S]+\n$/);
    expect(await run("generate", "run/step-0000000012", "The people", ...options)).toEqual(first);
    const other = await run("generate", "run", "The people", "--max-tokens", "12", "--seed", "4");
    expect(other.stdout).not.toBe(first.stdout);
  });

  it("takes a prompt that begins with dashes after --", async () => {
    const { code, stdout } = await run("generate", "--max-tokens", "1", "--", "run", "--set");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^--set/);
  });

  it("says what it expects of a folder", async () => {
    const { code, stderr } = await run("generate", "texts", "x");
    expect(code).toBe(2);
    expect(stderr).toContain("expected a folder with config.json, or a run with checkpoints in it");
    mkdirSync(join(folder, "adapter"));
    writeFileSync(join(folder, "adapter", "adapter_config.json"), "{}");
    for (const words of [
      ["generate", "adapter", "x"],
      ["export", "adapter", "--to", "gguf"],
    ]) {
      const refused = await run(...words);
      expect(refused.code).toBe(2);
      expect(refused.stderr).toMatch(
        /adapter holds an adapter, not a whole model: .*merge adapter --out FOLDER/,
      );
    }
  });
});

describe("prepare", () => {
  it("exits with 3 for text that is not there or empty, and leaves nothing", async () => {
    const missing = await run("prepare", "none", "--out", "none-data", "--tokenizer", tokenizer);
    expect(missing.code).toBe(3);
    expect(missing.stderr).toContain("none");
    writeFileSync(join(folder, "empty.txt"), "");
    const empty = await run("prepare", "empty.txt", "--out", "none-data", "--tokenizer", tokenizer);
    expect(empty.code).toBe(3);
    expect(readdirSync(folder).filter((name) => name.startsWith("none-data"))).toEqual([]);
  });

  it("names a tokenizer that is none", async () => {
    const { code, stderr } = await run(
      "prepare",
      "texts",
      "--out",
      "d",
      "--tokenizer",
      "tiny.yaml",
    );
    expect(code).toBe(3);
    expect(stderr).toContain("tiny.yaml");
  });
});

it("report writes where it is told", async () => {
  const { code, stdout } = await run("report", "run", "--out", "charts.html");
  expect(code).toBe(0);
  expect(stdout).toBe("charts.html\n");
  expect(readFileSync(join(folder, "charts.html"), "utf8")).toContain("tiny");
});

it("doctor says what is here", async () => {
  const { code, stdout } = await run("doctor");
  expect(code).toBe(0);
  for (const part of [process.version, "logical cores", "native addon", "CUDA"]) {
    expect(stdout).toContain(part);
  }
});
