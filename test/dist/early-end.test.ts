/**
 * Runs of several ranks that end before their last step by themselves. After too many skipped steps
 * (docs/faults.md, row N4) all ranks end alike once the state is saved, however long that takes.
 * The other case is a program that leaves its loop.
 */
import { rmSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { beforeAll, expect, test } from "vitest";
import { verifyCheckpoint } from "../../lib/checkpoint/manifest.js";
import { freePort } from "../../lib/dist/free-port.js";
import { buildShim, preload, temporaryFolder } from "../checkpoint/support/harness.js";
import { buildLibrary, root } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import {
  expectCodes,
  figures,
  newestStep,
  runToEnd,
  startRank,
  stepsOf,
  torchrun,
  writeConfig,
} from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

test("too many skipped steps: all save, and the saved run goes on with equal bits", async () => {
  const recipe = {
    parallel: "full_shard",
    steps: 24,
    precision: "bf16",
    batch: { microBatch: 2 },
    checkpoint: { every: 0 },
    // The limit is so low that some steps count as spikes.
    guard: {
      window: 8,
      minimumHistory: 2,
      zLoss: 100,
      zGradNorm: 0.01,
      maxSkipsPerWindow: 1,
      maxConsecutiveSkips: 7,
    },
  };
  const { file, out } = await writeConfig(folder, data, 2, recipe);
  const place = temporaryFolder();
  const shim = buildShim(place.path);
  // Each file of the checkpoint takes 0.7 s. Together they take longer than a rank lives after
  // another rank's failure.
  const slow = { LD_PRELOAD: preload(shim), FAULT_DIR: out, FAULT_DELAY: "700" };
  const results = await runToEnd(file, {
    worldSize: 2,
    env: (rank): Record<string, string> => (rank === 0 ? slow : {}),
  });
  rmSync(place.path, { recursive: true });
  expectCodes(results, 5);
  for (const { stderr } of results) expect(stderr).toMatch(/steps (in a row )?were skipped/);
  const steps = await stepsOf(out);
  const newest = await newestStep(out);
  expect(newest).toBe(steps.at(-1)?.step);
  const name = `step-${String(newest).padStart(10, "0")}`;
  await verifyCheckpoint(join(out, name), { hashes: true });

  // With a higher limit the run continues like a run that had this limit from the start.
  const patience = { ...recipe.guard, maxSkipsPerWindow: 7 };
  const patient = await writeConfig(folder, data, 2, { ...recipe, guard: patience });
  expectCodes(await runToEnd(patient.file, { worldSize: 2 }), 0);
  const resumed = await writeConfig(folder, data, 2, { ...recipe, guard: patience, out });
  expectCodes(await runToEnd(resumed.file, { worldSize: 2 }), 0);
  expect(figures(await stepsOf(out))).toEqual(figures(await stepsOf(patient.out)));
}, 120_000);

test("a program that leaves its loop on one rank ends the others, and says so", async () => {
  const { file } = await writeConfig(folder, data, 2, { steps: 1000 });
  const program = join(folder, "leaves.mjs");
  const library = pathToFileURL(join(root, "dist/index.js")).href;
  await writeFile(
    program,
    `import { loadConfig, Trainer } from ${JSON.stringify(library)};
     const trainer = await Trainer.create(loadConfig(${JSON.stringify(file)}, []));
     for await (const { step } of trainer.run()) if (step === 3 && process.env.RANK === "1") break;`,
  );
  const port = await freePort();
  const ranks = [0, 1].map((rank) => startRank([], torchrun(rank, 2, port), [], program));
  const [first] = await Promise.all(ranks.map(({ ended }) => ended));
  expect(first?.code).toBeGreaterThan(0);
  expect(first?.stderr).toContain("Rank 1 gave up: [Trainer.run] its loop was left before the end");
}, 60_000);
