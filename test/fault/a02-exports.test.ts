// docs/faults.md, rows A1 and A2. Every exported function and class is called with wrong values in
// each argument. The result is a typed error or an answer, never a raw TypeError, a hang or a
// crash. Batches of calls have their own processes, so a crash ends only its batch.
import { spawn } from "node:child_process";
import { cp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary, root } from "../cli/build.js";
import { tinyData, tinyModel } from "../support/tiny-run.js";

const batches = 4;
/** A call that takes longer than this hangs. */
const silenceMs = 60_000;

let folder: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder } = await tinyData());
  await cp(join(root, "assets/quickstart"), join(folder, "tokenizer"), { recursive: true });
  const shape = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false };
  const model = await Llama.create(llamaConfig({ ...tinyModel, ...shape, layers: 1 }));
  await saveModel(join(folder, "saved"), model);
  await writeFile(join(folder, "run.yaml"), "out: out\nsteps: 2\n");
  await writeFile(join(folder, "own.txt"), "A short text.\n");
}, 120_000);
afterAll(() => rm(folder, { recursive: true, force: true }));

/** The results of a batch: the faults, and the last call if the process crashed or hung. */
function faultsOf(batch: number): Promise<{ calls: number; faults: unknown[] }> {
  const script = join(root, "test/fault/exports/child.mjs");
  const args = [script];
  const child = spawn(process.execPath, [...args, folder, String(batch), String(batches)], {
    env: { ...process.env, LLAMAFORGE_THREADS: "2" },
  });
  const faults: unknown[] = [];
  let calls = 0;
  let last = "";
  let rest = "";
  let errors = "";
  let timer = setTimeout(() => {}, 0);
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(() => child.kill("SIGKILL"), silenceMs);
  };
  watch();
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors = (errors + text).slice(-2000);
  });
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    watch();
    const lines = (rest + text).split("\n");
    rest = lines.pop() as string;
    for (const line of lines) {
      const said: unknown = JSON.parse(line);
      if (typeof said !== "string") faults.push(said);
      else {
        last = said;
        calls++;
      }
    }
  });
  return new Promise((resolve) => {
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (last !== "end") faults.push({ ended: signal ?? code, during: last, errors });
      resolve({ calls, faults });
    });
  });
}

test.each(Array.from({ length: batches }, (_, batch) => batch))(
  "wrong arguments are typed errors (part %i)",
  async (batch) => {
    const { calls, faults } = await faultsOf(batch);
    expect(faults).toEqual([]);
    expect(calls).toBeGreaterThan(1000);
  },
  600_000,
);
