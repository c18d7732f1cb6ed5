// docs/faults.md, row R1: a run goes back to an older checkpoint. Its later checkpoints move aside,
// complete, and the saves of the new branch stay.
import { cp, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { openNewest } from "../../lib/checkpoint/load.js";
import { verifyCheckpoint } from "../../lib/checkpoint/manifest.js";
import { UsageError } from "../../lib/core/errors.js";
import { Trainer } from "../../lib/train/trainer.js";
import { buildLibrary } from "../cli/build.js";
import { fault, outcome, train, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

const saved = async (folder: string) =>
  (await readdir(folder)).filter((name) => /^step-|^abandoned-/.test(name)).sort();
const name = (step: number) => `step-${`${step}`.padStart(10, "0")}`;
/** Keeps all checkpoints, to have old ones to go back to. */
const options = { checkpoint: { every: 2, keepLast: 2, keepEvery: 4 }, steps: 12 };

async function finished(out: string) {
  const config = tinyConfig(place.data, join(place.folder, out), options);
  for await (const _ of (await Trainer.create(config)).run());
  return config;
}

test("its new saves are not deleted for the old ones, which stay beside with their records", async () => {
  const config = await finished("back");
  expect(await saved(config.out)).toEqual([4, 8, 10, 12].map(name));
  const records = await readFile(join(config.out, "metrics.jsonl"), "utf8");
  const notices: string[] = [];
  // Another learning rate, as after a divergence.
  const other = { ...config, optimizer: { ...config.optimizer, peakLr: 4e-3 } };
  const trainer = await Trainer.create(other, {
    resume: join(config.out, name(4)),
    onNotice: (text) => notices.push(text),
  });
  const abandoned = join(config.out, "abandoned-1");
  expect(notices).toEqual([
    expect.stringContaining("optimizer.peakLr: 0.005 in the checkpoint, 0.004 now"),
    `the run goes back to step 4: what it had saved after that is in ${abandoned} now`,
  ]);
  for await (const { step } of trainer.run()) if (step === 7) trainer.stop();
  const { step } = trainer.result;
  expect(await saved(config.out)).toEqual(["abandoned-1", ...[4, 6, step].map(name)]);
  expect((await openNewest(config.out))?.step).toBe(step);
  expect(await saved(abandoned)).toEqual([8, 10, 12].map(name));
  expect(await readFile(join(abandoned, "metrics.jsonl"), "utf8")).toBe(records);
  for (const old of [8, 10, 12])
    await verifyCheckpoint(join(abandoned, name(old)), { hashes: true });

  // The same command continues the new branch. A second return gets its own folder.
  for await (const _ of (await Trainer.create(other)).run());
  const again = await Trainer.create(other, { resume: join(config.out, name(4)) });
  expect(again.startStep).toBe(4);
  expect((await saved(config.out)).slice(0, 2)).toEqual(["abandoned-1", "abandoned-2"]);
  for await (const _ of again.run());
});

test("from the newest one nothing is set aside; from another run's, not over checkpoints", async () => {
  const config = await finished("newest");
  const newest = await Trainer.create(
    { ...config, steps: 14 },
    { resume: join(config.out, name(12)) },
  );
  for await (const _ of newest.run());
  expect(await saved(config.out)).toEqual([4, 8, 12, 14].map(name));

  const elsewhere = join(place.folder, "elsewhere");
  await cp(config.out, elsewhere, { recursive: true });
  await expect(Trainer.create(config, { resume: join(elsewhere, name(4)) })).rejects.toThrow(
    UsageError,
  );
  const fresh = { ...config, out: join(place.folder, "fresh") };
  const branch = await Trainer.create(fresh, { resume: join(elsewhere, name(8)) });
  for await (const _ of branch.run());
  expect(await saved(fresh.out)).toEqual([10, 12].map(name));
});

test("a run that is refused leaves everything where it was", async () => {
  const config = await finished("refused");
  const before = await saved(config.out);
  const other = { ...config, seed: 6 };
  await expect(Trainer.create(other, { resume: join(config.out, name(4)) })).rejects.toThrow(
    /seed/,
  );
  expect(await saved(config.out)).toEqual(before);
});

test("supervised, restarts go on with the new branch", async () => {
  const { file, out } = await writeConfig(place, "supervised", options);
  expect(await train(file).ended).toMatchObject({ code: 0 });
  const expected = await outcome(out, 12);
  // Each process ends at its second save.
  const command = ["--supervise", "--max-restarts", "1", "--resume", join(out, name(4))];
  const { code, stderr } = await train(file, command, fault("save:2:segv")).ended;
  expect(code, stderr).toBe(0);
  expect(stderr.match(/was ended by SIGSEGV/g)).toHaveLength(3);
  expect(await outcome(out, 12)).toEqual(expected);
  expect(await saved(out)).toEqual(["abandoned-1", ...[4, 8, 10, 12].map(name)]);
}, 120_000);
