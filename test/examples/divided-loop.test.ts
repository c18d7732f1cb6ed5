/** Runs examples/divided-loop.ts as a user does: several processes with the built library. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import ts from "typescript";
import { beforeAll, expect, test } from "vitest";
import { freePort } from "../../lib/dist/free-port.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary, root } from "../cli/build.js";
import { torchrun } from "../dist/ranks.js";
import { tinyData, tinyModel } from "../support/tiny-run.js";

let folder: string;
let options: Record<string, unknown>;
beforeAll(async () => {
  buildLibrary();
  const prepared = await tinyData();
  folder = prepared.folder;
  const config = llamaConfig({
    ...tinyModel,
    tieEmbeddings: false,
    ropeTheta: 10_000,
    rmsNormEps: 1e-5,
  });
  options = { data: { [prepared.data]: 1 }, config, steps: 6, accumulation: 2 };
  const library = JSON.stringify(pathToFileURL(join(root, "dist/index.js")).href);
  const source = readFileSync(join(root, "examples/divided-loop.ts"), "utf8");
  const { outputText } = ts.transpileModule(source.replace('"llamaforge"', library), {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
  });
  writeFileSync(join(folder, "divided-loop.mjs"), outputText);
  writeFileSync(
    join(folder, "main.mjs"),
    `import { cpu } from ${library};
    import { trainTogether } from "./divided-loop.mjs";
    const { failAt, ...options } = JSON.parse(process.env.OPTIONS);
    const report = (step, loss, norm) => {
      if (step === failAt) throw new Error("this program's own trouble");
      console.log(JSON.stringify([loss, norm]));
    };
    await trainTogether({ ...options, device: cpu, report }).catch((error) => {
      console.error(error.message);
      process.exit(error.exitCode ?? 1);
    });`,
  );
});

interface Ended {
  code: number | null;
  stderr: string;
  /** Loss and norm of each step, as reported. */
  figures: [number, number][];
}

async function run(worldSize: number, more: Record<string, unknown>): Promise<Ended[]> {
  const port = await freePort();
  const ranks = Array.from({ length: worldSize }, async (_, rank) => {
    const world = worldSize === 1 ? {} : torchrun(rank, worldSize, port);
    const given = { OPTIONS: JSON.stringify({ ...options, ...more }), LLAMAFORGE_THREADS: "1" };
    const child = spawn(process.execPath, [join(folder, "main.mjs")], {
      env: { ...process.env, ...world, ...given },
    });
    let [said, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      said += chunk;
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk;
    });
    const [code] = (await once(child, "close")) as [number | null];
    return {
      code,
      stderr,
      figures: said
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line)),
    };
  });
  return await Promise.all(ranks);
}

test("the losses of one process, whatever is divided", async () => {
  const alone = (await run(1, { strategy: "replicated", microBatch: 4 }))[0] as Ended;
  expect(alone).toMatchObject({ code: 0, stderr: "" });
  expect(alone.figures).toHaveLength(6);
  expect(alone.figures[5]?.[0]).toBeLessThan(alone.figures[0]?.[0] as number);
  for (const strategy of ["zero1", "full_shard"]) {
    const [first, second] = await run(2, { strategy, microBatch: 2 });
    expect(second).toEqual({ code: 0, stderr: "", figures: [] });
    expect(first).toMatchObject({ code: 0, stderr: "" });
    for (const [step, [loss, norm]] of (first?.figures ?? []).entries()) {
      const [expected, expectedNorm] = alone.figures[step] as [number, number];
      expect(Math.abs(loss / expected - 1), `${strategy}, loss of step ${step}`).toBeLessThan(2e-5);
      expect(Math.abs(norm / expectedNorm - 1)).toBeLessThan(4e-4);
    }
    expect(first?.figures).toHaveLength(6);
  }
}, 180_000);

test("a program that fails on one process ends the others, with its words", async () => {
  const [first, second] = await run(2, { strategy: "replicated", microBatch: 2, failAt: 3 });
  expect(first?.code).toBe(1);
  expect(first?.figures).toHaveLength(3);
  expect(second?.code).toBe(6);
  expect(second?.stderr).toContain("Rank 0 gave up: this program's own trouble");
}, 120_000);
