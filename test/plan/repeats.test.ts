// The number of passes over the data, which a run prints before it starts.
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { planRun } from "../../lib/plan/plan.js";
import { plannedRepeats, repeatNotes } from "../../lib/plan/repeats.js";
import { formatPlan } from "../../lib/plan/text.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  place = await tinyData();
});
afterAll(() => rmSync(place.folder, { recursive: true, force: true }));

test("train says it of a data set that is smaller than the run, plan of all", async () => {
  const { folder, data } = place;
  const config = (steps: number) => tinyConfig(data, join(folder, `run-${steps}`), { steps });
  const windows = (steps: number) => steps * 4;
  const [short] = (await plannedRepeats(config(12), windows(12))) as { epochs: number }[];
  const epochs = short?.epochs as number;
  expect(epochs).toBeGreaterThan(0);
  expect(epochs).toBeLessThan(1);
  const steps = Math.ceil((12 * 3.3) / epochs);
  const repeats = await plannedRepeats(config(steps), windows(steps));
  const times = ((epochs * steps) / 12).toFixed(2);
  const [note] = repeatNotes(repeats as never);
  expect(note).toContain(`the run reads it ${times} times`);
  const plan = { ...planRun(config(steps)), data: repeats };
  expect(formatPlan(config(steps), plan)).toContain(`tokens, read ${times} times`);

  for (const [count, expected] of [
    [steps, [note]],
    [12, []],
  ] as const) {
    const notices: string[] = [];
    const onNotice = (message: string) => void notices.push(message);
    const trainer = await Trainer.create(config(count), { onNotice });
    expect(notices.filter((text) => text.includes("the run reads it"))).toEqual(expected);
    trainer.stop();
    for await (const _ of trainer.run());
    trainer.dispose();
  }
});

test("plan says why it is not known where the data is not there", async () => {
  const config = tinyConfig(join(place.folder, "none"), join(place.folder, "out"));
  const repeats = await plannedRepeats(config, 100);
  expect(repeats).toMatch(/cannot read .*none/);
  expect(formatPlan(config, { ...planRun(config), data: repeats })).toContain("not known: ");
});
