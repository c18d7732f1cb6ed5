/** The mean over the targets of all processes, however they are spread over the processes. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { freePort } from "../../lib/dist/free-port.js";
import { buildLibrary, root } from "../cli/build.js";
import { torchrun } from "./ranks.js";

const folder = mkdtempSync(join(tmpdir(), "masked-"));
const program = join(folder, "main.mjs");
afterAll(() => rmSync(folder, { recursive: true }));
beforeAll(() => {
  buildLibrary();
  const library = JSON.stringify(pathToFileURL(join(root, "dist/index.js")).href);
  writeFileSync(
    program,
    `import { AdamW, Cluster, cpu, Llama, presets, readWorld, trainStep } from ${library};
    const { strategy, counts } = JSON.parse(process.env.OPTIONS);
    const world = readWorld();
    const waits = { timeoutMs: 30_000, startTimeoutMs: 60_000 };
    const cluster =
      world && (await Cluster.connect(world, { device: cpu, strategy, reduce: "fp32", ...waits }));
    const small = { vocabSize: 32, hiddenSize: 32, intermediateSize: 32, heads: 1, kvHeads: 1 };
    const shape = { ...presets.quickstart, ...small, layers: 1, headSize: 32, contextLength: 8 };
    const shared = cluster ? { parallel: cluster.strategy } : {};
    const model = await Llama.create(shape, { device: cpu, seed: 4, ...shared });
    const optimizer = new AdamW(model.store);
    const batches = counts.map((count, seed) => {
      const inputs = Int32Array.from({ length: 16 }, (_, i) => (i * 7 + seed * 13) % 32);
      return { inputs, targets: inputs.map((id, i) => (i < count ? id : -100)), count: 2 };
    });
    const { rank, worldSize } = world ?? { rank: 0, worldSize: 1 };
    const own = batches.filter((_, i) => Math.floor((i * worldSize) / batches.length) === rank);
    const nextBatch = async () => own.shift();
    const options = { accumulation: own.length, lr: 1e-3, clip: 0, masked: true };
    const { loss, decision } =
      await (await trainStep({ model, optimizer, nextBatch, ...options })).figures;
    console.log(JSON.stringify({ loss, applied: decision[0], norm: decision[4] }));
    await cluster?.close();`,
  );
});

interface Step {
  loss: number | null;
  applied: number;
  norm: number;
}

/** A step on micro-batches of these numbers of targets, half of them on each process. */
async function step(worldSize: number, counts: readonly number[], strategy = "replicated") {
  const port = await freePort();
  const ranks = Array.from({ length: worldSize }, async (_, rank) => {
    const world = worldSize === 1 ? {} : torchrun(rank, worldSize, port);
    const given = { OPTIONS: JSON.stringify({ strategy, counts }), LLAMAFORGE_THREADS: "1" };
    const child = spawn(process.execPath, [program], {
      env: { ...process.env, ...world, ...given },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => {
      said += chunk;
    });
    await once(child, "close");
    return JSON.parse(said) as Step;
  });
  return await Promise.all(ranks);
}

test.each(["replicated", "zero1", "full_shard"])(
  "a process without any target adds nothing to the step of the others (%s)",
  async (strategy) => {
    const counts = [16, 4, 0, 0];
    const [alone] = (await step(1, counts)) as [Step];
    expect(alone.applied).toBe(1);
    for (const { loss, applied, norm } of await step(2, counts, strategy)) {
      expect(applied).toBe(1);
      expect(loss).toBeCloseTo(alone.loss as number, 5);
      expect(norm).toBeCloseTo(alone.norm, 4);
    }
  },
);

test("no target on any process skips the step, with a loss that is not a number", async () => {
  for (const { loss, applied } of await step(2, [0, 0])) {
    expect([loss, applied]).toEqual([null, 0]);
  }
});
