// docs/faults.md, rows R2, S2 and C2: kills and signals at the most harmful places. The same
// command then continues with the bits of an unbroken run. A storm of kills at random moments
// reports where they hit.
import { readdirSync } from "node:fs";
import { beforeAll, expect, test } from "vitest";
import { buildLibrary } from "../cli/build.js";
import { fault, lastStep, outcome, train, until, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
let whole: Awaited<ReturnType<typeof outcome>>;
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
  const { file, out } = await writeConfig(place, "whole");
  expect(await train(file).ended).toMatchObject({ code: 0 });
  whole = await outcome(out, 12);
}, 120_000);

test.each([
  ["init:1:kill", 0],
  ["step:5:kill", 0], // the step whose save is due
  ["step:8:kill", 7],
  ["save:2:kill", 9],
  ["saving:2:kill", 9], // the writer has just begun
  ["saving:1:abort", 4],
])(
  "killed at %s, it repeats from its last save with the same losses",
  async (plan, atMost) => {
    const { file, out } = await writeConfig(place, plan.replaceAll(":", "-"));
    const { signal } = await train(file, [], fault(plan)).ended;
    expect(signal).toMatch(/SIGKILL|SIGABRT/);
    expect(await lastStep(out)).toBeLessThanOrEqual(Math.max(atMost, 11));
    expect(await train(file).ended).toMatchObject({ code: 0 });
    expect(await outcome(out, 12)).toEqual(whole);
  },
  60_000,
);

test("SIGTERM while it is starting ends it at once by that signal, and nothing is left in the way", async () => {
  const { file, out } = await writeConfig(place, "starting");
  const { child, ended } = train(file);
  // The lock file appears before the model is built, so the signal arrives in between.
  await until(() => {
    try {
      return readdirSync(out).includes("run.lock");
    } catch {
      return false;
    }
  }, child);
  child.kill("SIGTERM");
  const { code, signal } = await ended;
  expect(signal ?? code).toBe("SIGTERM");
  expect(await train(file).ended).toMatchObject({ code: 0 });
  expect(await outcome(out, 12)).toEqual(whole);
}, 60_000);

const kills = Number(process.env.LLAMAFORGE_STORM ?? 6);

test(`a storm of ${kills} kills at random moments of saving after every step`, async () => {
  const checkpoint = { every: 1 };
  const calm = await writeConfig(place, "calm", { steps: 60, checkpoint });
  const started = performance.now();
  expect(await train(calm.file).ended).toMatchObject({ code: 0 });
  const took = performance.now() - started;
  const histogram = { beforeTheFirstStep: 0, duringASave: 0, betweenSaves: 0 };
  let seed = 7;
  for (let count = 0; count < kills; ) {
    const { file, out } = await writeConfig(place, `storm-${count}`, { steps: 60, checkpoint });
    for (;;) {
      const from = await lastStep(out);
      const { child, ended } = train(file);
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      // The delay lets most kills hit a run that is training.
      await until(async () => count >= kills || (await lastStep(out)) > from, child);
      const timer = setTimeout(
        () => {
          if (count < kills) child.kill("SIGKILL");
        },
        (seed / 2 ** 32) * took * 0.1,
      );
      const { signal, code } = await ended;
      clearTimeout(timer);
      if (signal === null) {
        expect(code).toBe(0);
        break;
      }
      count++;
      const saving = readdirSync(out).some((name) => name.endsWith(".tmp"));
      const moved = (await lastStep(out)) > from;
      histogram[saving ? "duringASave" : moved ? "betweenSaves" : "beforeTheFirstStep"]++;
    }
    expect(await outcome(out, 60)).toEqual(await outcome(calm.out, 60));
  }
  console.log(`kills landed: ${JSON.stringify(histogram)}`);
  // A storm without a kill during a save would prove nothing.
  expect(histogram.duringASave).toBeGreaterThan(0);
}, 600_000);
