/**
 * A failure on a GPU is a typed error that says what to do, and unaffected work continues. Needs
 * LLAMAFORGE_TEST_DEVICE=cuda:0. Tests without a GPU are in plugin.test.ts.
 */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { zeros } from "../../lib/core/create.js";
import { cpu, cuda, defaultDevice } from "../../lib/core/device.js";
import { DeviceError, OutOfMemoryError } from "../../lib/core/errors.js";
import { memory, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { attention } from "../../lib/ops/attention.js";
import { add } from "../../lib/ops/binary.js";
import { linear } from "../../lib/ops/linear.js";
import { matmul } from "../../lib/ops/matmul.js";
import { randn } from "../../lib/ops/random.js";
import { AdamW } from "../../lib/optim/adamw.js";
import { trainStep } from "../../lib/train/step.js";
import { onGpu } from "../support/device.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const library = pathToFileURL(join(root, "dist/index.js")).href;

/** Parses a program's output as JSON. */
function answerOf(program: string, environment: Record<string, string> = {}) {
  const args = [
    "--input-type=module",
    "-e",
    `import * as lf from ${JSON.stringify(library)};${program}`,
  ];
  const env = { ...process.env, ...environment };
  return JSON.parse(execFileSync(process.execPath, args, { cwd: root, env }).toString());
}

/** The error of the first tensor on a GPU, in a process of its own. */
const firstError = (environment: Record<string, string>) =>
  answerOf(
    `try { lf.zeros([2], { device: lf.cuda(0) }); console.log("{}"); }
     catch ({ name, code, message }) { console.log(JSON.stringify({ name, code, message })); }`,
    environment,
  );

const usual = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false };

const hasTwo = () => {
  try {
    zeros([1], { device: cuda(1) }).dispose();
    return true;
  } catch {
    return false;
  }
};

describe.runIf(onGpu())("on a GPU", () => {
  it("a library that is not there is an error with the place that was tried", () => {
    const file = "/nowhere/libcublasLt.so.13";
    const error = firstError({ LLAMAFORGE_CUBLASLT: file });
    expect(error).toMatchObject({ name: "DeviceError", code: "ERR_DEVICE" });
    expect(error.message).toContain(file);
    expect(error.message).toContain("cuBLASLt");
  });

  it("a library that is another one is an error, too", () => {
    const error = firstError({ LLAMAFORGE_CUBLASLT: "libm.so.6" });
    expect(error).toMatchObject({ code: "ERR_DEVICE" });
    expect(error.message).toContain("libm.so.6");
  });

  it("a head size for which no kernel has the shared memory is an error that names it", async () => {
    using _ = scope();
    const attend = (size: number) => attention(zeros([1, 4, 3 * size]), { heads: 1 });
    await expect(attend(4096).toArray()).rejects.toThrow(/attention.* head size 4096 is too large/);
    expect((await attend(256).toArray()).every((value) => value === 0)).toBe(true);
  });

  it("no memory for the model: an error, nothing left behind, and a smaller one fits", async () => {
    const config = llamaConfig({
      vocabSize: 1000,
      hiddenSize: 512,
      intermediateSize: 1024,
      layers: 4,
      heads: 8,
      kvHeads: 2,
      contextLength: 64,
      ...usual,
    });
    await synchronize();
    const before = memory().bytes;
    setMemoryLimit(before + (16 << 20));
    const failed = await Llama.create(config, { dtype: "bf16", seed: 1 }).then(
      async (model) => {
        const error = await synchronize().catch((reason) => reason);
        model.dispose();
        return error;
      },
      (reason) => reason,
    );
    setMemoryLimit(0);
    expect(failed).toBeInstanceOf(OutOfMemoryError);
    await synchronize();
    expect(memory().bytes).toBe(before);
    const model = await Llama.create({ ...config, layers: 1 }, { dtype: "bf16", seed: 1 });
    await synchronize();
    model.dispose();
  });

  it("no memory in the middle of a run: an error, and with less the same run goes on", async () => {
    const config = llamaConfig({
      vocabSize: 1000,
      hiddenSize: 256,
      intermediateSize: 512,
      layers: 4,
      heads: 4,
      kvHeads: 2,
      contextLength: 256,
      ...usual,
    });
    const model = await Llama.create(config, { dtype: "bf16", seed: 1 });
    const optimizer = new AdamW(model.store);
    const step = async (count: number) => {
      const ids = Int32Array.from({ length: count * 256 }, (_, i) => (i * 31) % 1000);
      const batch = { inputs: ids, targets: ids, count };
      const options = { accumulation: 1, lr: 1e-3, clip: 1, nextBatch: async () => batch };
      return (await (await trainStep({ model, optimizer, ...options })).figures).loss;
    };
    const first = await step(1);
    const before = memory().bytes;
    setMemoryLimit(before + (64 << 20));
    const failure = await step(64).catch((error) => error);
    setMemoryLimit(0);
    expect(failure).toBeInstanceOf(OutOfMemoryError);
    expect(failure.message).toMatch(/^\[\w+\] .*needs \d+ bytes more.*micro-batch/s);
    await synchronize();
    expect(memory().bytes).toBe(before);
    expect(await step(1)).toBeLessThan(first);
    optimizer.dispose();
    model.dispose();
  });

  it("a worker thread computes on the same GPU beside this one, with the same bits", async () => {
    const code = `
      import { parentPort } from "node:worker_threads";
      const { cuda, randn, matmul, scope } = await import(${JSON.stringify(library)});
      const results = [];
      for (let round = 0; round < 20; round++) {
        using _ = scope();
        const x = randn([256, 256], { seed: 3, device: cuda(${defaultDevice().index}) });
        results.push(Buffer.from(await matmul(x, x).toBytes()).toString("base64"));
      }
      parentPort.postMessage(results);`.replace("using _ = scope();", "const turn = scope();");
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`));
    const message = once(worker, "message");
    using _ = scope();
    const x = randn([256, 256], { seed: 3 });
    const mine = async () => Buffer.from(await matmul(x, x).toBytes()).toString("base64");
    const ours = new Set<string>();
    for (let round = 0; round < 20; round++) ours.add(await mine());
    const [theirs] = (await message) as [string[]];
    expect(new Set([...ours, ...theirs]).size).toBe(1);
    expect((await once(worker, "exit"))[0]).toBe(0);
  });

  it("a kernel that faults: every later call says that the GPU is lost, and the CPU goes on", () => {
    const answer = answerOf(
      `const say = async (work) => {
         try { await work(); return { code: "none" }; }
         catch ({ code, message }) { return { code, message }; }
       };
       const device = lf.cuda(0);
       const config = { vocabSize: 64, hiddenSize: 64, intermediateSize: 64, layers: 1, heads: 1, kvHeads: 1,
         contextLength: 16, ropeTheta: 1e4, rmsNormEps: 1e-5, tieEmbeddings: false };
       const model = await lf.Llama.create(lf.llamaConfig(config), { device, seed: 1 });
       const optimizer = new lf.AdamW(model.store);
       const ids = new Int32Array(16);
       const batch = { inputs: ids, targets: ids, count: 1 };
       const options = { accumulation: 1, lr: 1e-3, clip: 1, nextBatch: async () => batch };
       const step = async () => (await lf.trainStep({ model, optimizer, ...options })).figures;
       const answers = [await say(step), await say(step)];
       answers.push(await say(async () => lf.ones([4], { device }).toArray()));
       answers.push(await say(() => lf.synchronize(device)));
       console.log(JSON.stringify({ answers, cpu: [...await lf.ones([2]).toArray()] }));
       process.exit(0);`,
      { LLAMAFORGE_CUDA_TRAP: "1" },
    );
    for (const { code, message } of answer.answers) {
      expect(code).toBe("ERR_DEVICE_LOST");
      expect(message).toContain("start it again from the last checkpoint");
    }
    expect(answer.cpu).toEqual([1, 1]);
  });
});

describe.runIf(onGpu() && hasTwo())("two GPUs in one process", () => {
  it("have memory of their own, and refuse to mix in one operation", async () => {
    using _ = scope();
    const [a, b] = [zeros([1000], { device: cuda(0) }), zeros([1000], { device: cuda(1) })];
    expect(() => add(a, b)).toThrow(DeviceError);
    const before = memory(cuda(0)).bytes;
    zeros([1 << 20], { device: cuda(1) });
    expect(memory(cuda(0)).bytes).toBe(before);
  });

  it("compute side by side with the same bits, and the CPU's random numbers", async () => {
    using _ = scope();
    const results: string[] = [];
    const work = [0, 1, 0, 1].map(async (index) => {
      const options = { seed: 7, device: cuda(index), dtype: "bf16" } as const;
      const [x, w] = [randn([512, 256], options), randn([384, 256], options)];
      for (let round = 0; round < 10; round++) {
        results.push(Buffer.from(await linear(x, w).toBytes()).toString("base64"));
      }
    });
    await Promise.all(work);
    expect(new Set(results).size).toBe(1);
    const [there, here] = [cuda(1), cpu].map((device) => randn([1031], { seed: 9, device }));
    expect(await there?.toArray()).toEqual(await here?.toArray());
  });
});
