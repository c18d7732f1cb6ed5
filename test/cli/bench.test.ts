import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { DecodeResult } from "../../lib/bench/decode.js";
import { parityFigures } from "../../lib/bench/figures.js";
import type { KernelsResult } from "../../lib/bench/kernels.js";
import { candidateMicroBatches, fastestMicroBatch } from "../../lib/bench/micro-batch.js";
import type { ParityResult } from "../../lib/bench/parity.js";
import type { ServeResult } from "../../lib/bench/serve.js";
import { syntheticDataset } from "../../lib/bench/synthetic-data.js";
import { cpu, cuda } from "../../lib/core/device.js";
import { OutOfMemoryError } from "../../lib/core/errors.js";
import { Mixture } from "../../lib/data/mixture.js";
import { flopsPerToken, presets } from "../../lib/index.js";
import { buildLibrary } from "./build.js";
import { llamaforge } from "./run.js";

const folder = mkdtempSync(join(tmpdir(), "llamaforge-bench-test-"));
beforeAll(() => buildLibrary());
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const small = ["--preset", "quickstart", "--device", "cpu", "--sequence-length", "64"];
const few = [
  ...small,
  "--micro-batch",
  "2",
  "--accumulation",
  "2",
  "--steps",
  "2",
  "--warmup",
  "1",
];

/** A peer that reports its arguments. */
function peer(name: string, body: string): string {
  const file = join(folder, `${name}.mjs`);
  writeFileSync(file, `import { parseArgs } from "node:util";\n${body}\n`);
  return file;
}

test("bench decode writes tokens with an engine and tells their share of the limit", async () => {
  const file = join(folder, "decode.json");
  const place = ["--preset", "quickstart", "--device", "cpu", "--precision", "fp32"];
  const sizes = ["--batch", "1,3", "--prompt", "8", "--tokens", "6", "--runs", "1"];
  const { code, stdout, stderr } = await llamaforge([
    ...["bench", "decode", ...place, ...sizes, "--json", file],
  ]);
  expect(code, stderr).toBe(0);
  const result = JSON.parse(readFileSync(file, "utf8")) as DecodeResult;
  expect(result).toMatchObject({ benchmark: "decode", run: { promptTokens: 8, tokens: 6 } });
  expect(result.rows.map(({ batch }) => batch)).toEqual([1, 3]);
  for (const { tokensPerSecond, limit, share } of result.rows) {
    expect(tokensPerSecond).toBeGreaterThan(0);
    expect(share).toBeCloseTo(tokensPerSecond / limit, 10);
  }
  expect(stdout).toContain("sequences   tokens/s   of the limit");
  const wrong = await llamaforge(["bench", "decode", ...place, "--batch", "1,x"]);
  expect(wrong.code).toBe(2);
  expect(wrong.stderr).toContain("Expected integers from 1 to 4096");
});

describe("bench decode --peer", () => {
  const place = ["--preset", "quickstart", "--device", "cpu", "--precision", "fp32"];
  const sizes = ["--batch", "1,2", "--prompt", "4", "--tokens", "4", "--runs", "1"];
  const run = (script: string, file: string) =>
    llamaforge([
      ...["bench", "decode", ...place, ...sizes, "--json", file],
      ...["--peer", process.execPath, "--peer-script", script],
    ]);
  const reads = `const names = ["model", "batches", "context", "tokens", "runs", "device", "precision"];
    const { values } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });`;

  test("has the peer decode the same and prints the ratio", async () => {
    const script = peer(
      "decodes",
      `${reads}
       const rows = values.batches.split(",").map((batch) => ({ batch: Number(batch), tokensPerSecond: 10 * batch }));
       console.log(JSON.stringify({ program: "Peer", version: "1.2", tokensPerSecond: 10, rows, values }));`,
    );
    const file = join(folder, "decode-peer.json");
    const { code, stdout, stderr } = await run(script, file);
    expect(code, stderr).toBe(0);
    const result = JSON.parse(readFileSync(file, "utf8")) as DecodeResult;
    const rows = [1, 2].map((batch) => ({ batch, tokensPerSecond: 10 * batch }));
    expect(result.peer).toMatchObject({ program: "Peer", version: "1.2", rows });
    expect(result.peer?.command).toContain("--batches 1,2 --context 8 --tokens 4 --runs 1");
    expect(stdout).toMatch(
      /Peer 1\.2 beside it:\n +1 +10 {3}LlamaForge makes [\d.]+ times as many/,
    );
  });

  test("keeps the path of its own program without the machine's folders", async () => {
    const interpreter = peer(
      "interpreter",
      `console.log(JSON.stringify({ tokensPerSecond: 10, rows: [1, 2].map((batch) => ({ batch, tokensPerSecond: 10 })) }));`,
    );
    const executable = join(folder, "interpreter");
    writeFileSync(executable, `#!/bin/sh\nexec "${process.execPath}" "${interpreter}"\n`, {
      mode: 0o755,
    });
    const file = join(folder, "decode-own.json");
    const { code, stderr } = await llamaforge([
      ...["bench", "decode", ...place, ...sizes, "--json", file, "--peer", executable],
    ]);
    expect(code, stderr).toBe(0);
    const { peer: kept } = JSON.parse(readFileSync(file, "utf8")) as DecodeResult;
    expect(kept?.command).toContain(`${executable} bench/peer/torch_decode.py --model `);
  });

  test("keeps its own figures if the peer leaves a batch out", async () => {
    const script = peer(
      "forgets",
      `console.log(JSON.stringify({ tokensPerSecond: 10, rows: [{ batch: 1, tokensPerSecond: 10 }] }));`,
    );
    const file = join(folder, "decode-forgets.json");
    const { code, stderr } = await run(script, file);
    expect(code).toBe(2);
    expect(stderr).toContain("the peer's result has no tokensPerSecond for 2 sequences");
    expect(JSON.parse(readFileSync(file, "utf8"))).toHaveProperty("rows.1.tokensPerSecond");
  });
});

test("bench serve tells latencies of requests at random, and the rate of streams beside the engine's", async () => {
  const file = join(folder, "serve.json");
  const place = ["--preset", "quickstart", "--device", "cpu", "--precision", "fp32"];
  const sizes = ["--rate", "20,40", "--requests", "4", "--streams", "3", "--prompt", "8"];
  const { code, stdout, stderr } = await llamaforge([
    ...["bench", "serve", "--tokens", "5", ...place, ...sizes, "--json", file],
  ]);
  expect(code, stderr).toBe(0);
  const result = JSON.parse(readFileSync(file, "utf8")) as ServeResult;
  expect(result.rows.map(({ rate }) => rate)).toEqual([20, 40]);
  for (const { answered, failures, tokensPerSecond, firstMs, betweenMs, wholeMs } of result.rows) {
    expect([answered, failures]).toEqual([4, []]);
    expect(tokensPerSecond).toBeGreaterThan(0);
    for (const { p50, p99 } of [firstMs, betweenMs, wholeMs]) {
      expect(p50).toBeGreaterThan(0);
      expect(p99).toBeGreaterThanOrEqual(p50);
    }
    expect(wholeMs.p50).toBeGreaterThanOrEqual(firstMs.p50);
  }
  expect(stdout).toContain("requests/s   tokens/s   first token");
  const [row, ...others] = result.streams;
  expect(others).toEqual([]);
  expect(row).toMatchObject({ streams: 3, eventsPerToken: expect.any(Number) });
  const { engineTokensPerSecond = 0, httpTokensPerSecond = 0, ratio } = row ?? {};
  expect(ratio).toBeCloseTo(httpTokensPerSecond / engineTokensPerSecond);
  expect(row?.eventsPerToken).toBeLessThanOrEqual(1.2);
  expect(row?.javascriptUsPerToken).toBeGreaterThan(0);
  expect(stdout).toContain("streams   engine alone   HTTP");
});

describe("bench parity", () => {
  test("measures a model on the CPU, prints it and writes it as JSON", async () => {
    const file = join(folder, "deep/er/parity.json");
    const { code, stdout, stderr } = await llamaforge(["bench", "parity", ...few, "--json", file]);
    expect(code, stderr).toBe(0);
    const result = JSON.parse(readFileSync(file, "utf8")) as ParityResult;
    expect(result.run).toMatchObject({ microBatch: 2, accumulation: 2, tokensPerStep: 256 });
    expect(result.tokensPerSecond).toBeCloseTo(256 / (result.stepMs.median / 1000), 3);
    const { fastest, median, slowest } = result.stepMs;
    expect(fastest).toBeLessThanOrEqual(median);
    expect(median).toBeLessThanOrEqual(slowest);
    const { input, forward, backward, optimizer } = result.partsMs;
    for (const part of [input, forward, backward, optimizer]) expect(part).toBeGreaterThan(0);
    expect(result.memory.peakBytes).toBeGreaterThan(18 * result.model.parameters);
    // The model learns the frequencies of random words at once. There is nothing more to learn.
    expect(result.loss.first).toBeLessThan(Math.log(4096) + 0.5);
    expect(result.loss.last).toBeGreaterThan(4);
    const flops = flopsPerToken(presets.quickstart, 64);
    expect(result.figures.causal).toMatchObject({ gflopPerToken: flops.causal / 1e9, mfu: null });
    expect(result.figures.peak).toHaveProperty("unknown");
    expect(result.figures.published).toBe(null);
    expect(result.device.id).toBe("cpu");
    // The result also has the bare loop on the same windows, and the main thread's times in both.
    const { bare, host, trainOfBare, waitMs } = result;
    expect(bare.tokensPerSecond).toBeCloseTo(256 / (bare.stepMs.median / 1000), 3);
    expect(trainOfBare).toBeCloseTo(result.tokensPerSecond / bare.tokensPerSecond, 6);
    for (const { forwardMs, backwardMs, activeMs, minor, major } of [host, bare.host]) {
      for (const ms of [forwardMs, backwardMs, activeMs]) expect(ms).toBeGreaterThan(0);
      for (const { count, ms } of [minor, major]) expect(ms > 0).toBe(count > 0);
    }
    expect(host.metricsMs).toBeGreaterThan(0);
    expect(waitMs.ofMs).toBeGreaterThan(2 * fastest - 1e-3);
    expect(stdout).toMatch(/train \/ bare +\d\.\d{3} /);
    expect(stdout).toContain("the device waited");
    expect(stdout).toContain("JavaScript");
    expect(stdout).toContain(result.device.name);
    expect(stdout).toContain("not known, so no MFU");
    expect(stdout).not.toContain("MFU ");
    expect(result).not.toHaveProperty("peer");
  });

  test("runs a peer with the same run and prints the ratio", { timeout: 120_000 }, async () => {
    const script = peer(
      "good",
      `const names = ["model", "sequence-length", "micro-batch", "accumulation", "steps", "warmup", "device", "precision"];
       const { values } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
       console.error("compiling");
       console.log(JSON.stringify({ program: "Peer", version: "1.2", tokensPerSecond: 1000, peakBytes: 5e6, values }));`,
    );
    const file = join(folder, "peer.json");
    const args = [...few, "--peer", process.execPath, "--peer-script", script, "--json", file];
    const { code, stdout, stderr } = await llamaforge(["bench", "parity", ...args]);
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("peer: compiling");
    const result = JSON.parse(readFileSync(file, "utf8")) as ParityResult;
    expect(result.peer?.ratio).toBeCloseTo(result.tokensPerSecond / 1000, 6);
    expect(stdout).toContain("Peer 1.2: 1,000 tokens/s, 5.00 MB at the peak");
    const { values } = (result.peer as NonNullable<ParityResult["peer"]>).output as {
      values: Record<string, string>;
    };
    expect(values).toMatchObject({ "micro-batch": "2", accumulation: "2", device: "cpu" });
    expect(values).toMatchObject({ steps: "2", warmup: "1", precision: "bf16" });
    expect(JSON.parse(values.model as string)).toEqual({ ...presets.quickstart });
  });

  test("a peer that fails, or says nothing, ends the benchmark", { timeout: 120_000 }, async () => {
    const failing = peer("failing", `console.error("no module named torch"); process.exit(3);`);
    const silent = peer("silent", `console.log("done");`);
    const run = (script: string, ...more: string[]) =>
      llamaforge(["bench", "parity", ...few, "--peer-script", script, ...more]);
    const file = join(folder, "failed-peer.json");
    const failed = await run(failing, "--peer", process.execPath, "--json", file);
    expect(failed.code).toBe(2);
    expect(failed.stderr).toContain("the peer failed with exit code 3");
    expect(failed.stderr).toContain("| no module named torch");
    // A failed peer does not lose our own figures.
    expect(failed.stdout).toContain("tokens/s");
    expect(JSON.parse(readFileSync(file, "utf8"))).not.toHaveProperty("peer");
    const dumb = await run(silent, "--peer", process.execPath, "--peer-args", "--quick 1");
    expect(dumb.code).toBe(2);
    expect(dumb.stderr).toContain("printed no JSON object with tokensPerSecond above 0");
    expect(dumb.stderr).toContain("silent.mjs --quick 1");
    const absent = await run(silent, "--peer", "no-such-python");
    expect(absent.code).toBe(2);
    expect(absent.stderr).toContain("the peer cannot be started");
  });

  test.each([
    [["--preset", "llama-9"], "Allowed choices are tinyllama-1.1b"],
    [["--preset", "quickstart", "--config", "x.yaml"], "cannot be used with option '--config"],
    [["--micro-batch", "0"], "Expected an integer from 1"],
    [[...small, "--sequence-length=4096"], "given more than once"],
    [["--sequence-length", "4096"], "more than the model's context of 2048"],
    [["--peer-script", "x.py"], "need '--peer <python>'"],
    [["--peer", "python3", "--recompute", "block"], "the peer recomputes nothing"],
    [["--device", "gpu"], 'expected "cpu", "cuda" or "cuda:N"'],
    [["--json", "package.json/x.json", "--device", "cpu"], "cannot be written"],
    [[...small, "--data", "/nowhere"], "/nowhere"],
  ])("refuses %j", async (args, message) => {
    const { code, stderr } = await llamaforge(["bench", "parity", ...args]);
    expect(stderr).toContain(message);
    expect([2, 3]).toContain(code);
  });

  test("a GPU that is not there is an error, not a run on the CPU", async () => {
    const { code, stdout, stderr } = await llamaforge(["bench", "parity", "--device", "cuda:99"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/CUDA was asked for|there is no cuda:99/);
    expect(stdout).toBe("");
  });
});

describe("synthetic data", () => {
  test.each([300, 4096, 6000])(
    "has a tokenizer of %d tokens that it was made with",
    async (vocabSize) => {
      const made = await syntheticDataset(join(folder, `synthetic-${vocabSize}`), {
        vocabSize,
        tokens: 2000,
      });
      const mixture = await Mixture.open(made, { sequenceLength: 64 });
      expect(mixture.vocabSize).toBe(vocabSize);
      const ids = await mixture.read(0, 20);
      // The ids contain no unknown token, and many different ones.
      expect(ids.includes(0)).toBe(false);
      expect(new Set(ids).size).toBeGreaterThan(30);
      await mixture.close();
    },
  );

  test("is refused where no tokenizer is so small", async () => {
    const out = join(folder, "too-small");
    await expect(syntheticDataset(out, { vocabSize: 100, tokens: 10 })).rejects.toThrow(
      /no tokenizer of 100 tokens .* give a data set with --data/,
    );
  });
});

describe("the figures", () => {
  test("of TinyLlama on an A100 are those that its authors published", () => {
    const model = presets["tinyllama-1.1b"];
    const figures = parityFigures(model, 2048, "bf16", "NVIDIA A100-SXM4-40GB", 24_000);
    expect(figures.causal.gflopPerToken).toBeCloseTo(6.76, 3);
    expect(figures.fullAttention.gflopPerToken).toBeCloseTo(7.314, 3);
    expect(figures.fullAttention.mfu).toBeCloseTo(0.563, 3);
    expect(figures.per300B.deviceHours).toBeCloseTo(3472, 0);
    expect(figures.per300B.a100Hours).toBeCloseTo(3472, 0);
    expect(figures.published?.a100HoursPer300B.map(({ hours }) => hours)).toEqual([
      3456, 4830, 7920,
    ]);
  });

  test("have no MFU where the peak is not known, or is of another precision", () => {
    const model = presets["tinyllama-1.1b"];
    for (const [precision, device] of [
      ["bf16", "NVIDIA GeForce 256"],
      ["fp32", "NVIDIA H100 80GB HBM3"],
    ] as const) {
      const { causal, peak, per300B } = parityFigures(model, 2048, precision, device, 1000);
      expect(causal.mfu).toBe(null);
      expect(per300B.a100Hours).toBe(null);
      expect(peak).toHaveProperty("unknown");
    }
  });
});

describe("the micro-batch that nobody chose", () => {
  const shape = {
    model: presets["tinyllama-1.1b"],
    data: { sequenceLength: 2048 },
    precision: "bf16",
    recompute: "none",
  } as const;

  test("is planned to fit", () => {
    expect(candidateMicroBatches(shape, cuda(0), 84.5e9)).toEqual([16, 8]);
    expect(candidateMicroBatches({ ...shape, recompute: "block" }, cuda(0), 84.5e9)).toEqual([
      32, 16,
    ]);
    expect(candidateMicroBatches(shape, cuda(0), 1e9)).toEqual([1]);
  });

  test("is the fastest of those that fit, or half of it until one does", async () => {
    const tried: number[] = [];
    const choose = (rates: Record<number, number>, candidates: number[]) => {
      tried.length = 0;
      return fastestMicroBatch(candidates, cpu, async (microBatch) => {
        tried.push(microBatch);
        const rate = rates[microBatch];
        if (rate === undefined) throw new OutOfMemoryError("too much");
        return rate;
      });
    };
    expect(await choose({ 16: 10, 8: 11 }, [16, 8])).toBe(8);
    expect(await choose({ 8: 11 }, [16, 8])).toBe(8);
    expect(await choose({ 2: 1 }, [16, 8])).toBe(2);
    expect(tried).toEqual([16, 8, 4, 2]);
    await expect(choose({}, [2])).rejects.toThrow("too much");
  });
});

describe("bench kernels", () => {
  test("times every kernel of a training step beside its floor", { timeout: 180_000 }, async () => {
    const file = join(folder, "kernels.json");
    const sizes = [...small, "--micro-batch", "1", "--runs", "1", "--json", file];
    const { code, stdout, stderr } = await llamaforge(["bench", "kernels", ...sizes]);
    expect(code, stderr).toBe(0);
    const { rows, rates } = JSON.parse(readFileSync(file, "utf8")) as KernelsResult;
    expect(rates.copyGigabytesPerSecond).toBeGreaterThan(0.1);
    for (const row of rows) {
      expect(row.microseconds, row.name).toBeGreaterThan(0);
      const rate = row.gigabytesPerSecond ?? row.tflops;
      if (row.name.includes("latency")) expect(rate).toBe(null);
      else expect(row.ratio, row.name).toBeGreaterThan(0);
      expect(stdout).toContain(row.name);
    }
    const names = rows.map(({ name }) => name).join("\n");
    for (const kernel of ["rms_norm", "rope", "swiglu", "embedding", "linear_cross_entropy"])
      expect(names).toContain(kernel);
    for (const kernel of [
      "adamw",
      "sum_of_squares",
      "step_guard",
      "cast",
      "attention",
      "accumulate",
    ])
      expect(names).toContain(kernel);
    expect(rows.filter(({ group }) => group === "matrix products")).toHaveLength(12);
  });

  test("--only picks by name, and lists the names where there is none", async () => {
    const sizes = [...small, "--micro-batch", "1", "--runs", "1"];
    const one = await llamaforge(["bench", "kernels", ...sizes, "--only", "SWIGLU"]);
    expect(one.code, one.stderr).toBe(0);
    expect(one.stdout.match(/ us /g)).toHaveLength(2);
    const none = await llamaforge(["bench", "kernels", ...sizes, "--only", "softmux"]);
    expect(none.code).toBe(2);
    expect(none.stderr).toContain("layers: swiglu, forward");
  });
});
