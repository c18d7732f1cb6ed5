// One process of run.mjs: runs the Trainer as EVENT_LOOP_BENCH says (JSON, see run.mjs), with a
// timer in the same process. Writes its measurements into the folder named there.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { benchConfig } from "../../dist/bench/through-trainer.js";
import { cpu, presets, Trainer } from "../../dist/index.js";
import { deviceOfRank, worldOfRun } from "../../dist/train/join.js";
import { describeDevice } from "../../dist/train/machine.js";
import { meanHost } from "../../dist/train/run-times.js";
import { Ticks } from "./ticks.mjs";

const { mode, preset, folder, device, parallel, warmup, ...options } = JSON.parse(
  process.env.EVENT_LOOP_BENCH,
);
/** The extra work of a run besides training, and the number of steps that it then needs. */
const modes = {
  training: { steps: options.steps },
  validating: { steps: 2, evaluate: { every: 1, batches: options.batches } },
  saving: { steps: 4, checkpoint: { every: 2, keepLast: 2 } },
  generating: {
    steps: 2,
    sample: { every: 1, prompts: ["the people"], maxTokens: options.tokens, temperature: 1 },
  },
};
const { steps, ...more } = modes[mode];
const shape = {
  ...options,
  model: presets[preset],
  device: cpu,
  steps,
  warmup,
  out: join(folder, "run"),
};
const config = benchConfig(shape, { device, parallel, ...more });
const trainer = await Trainer.create(config, { checkpoints: mode === "saving" });
let ticks;
const measured = [];
for await (const step of trainer.run()) {
  if (step.step > warmup) measured.push(step);
  if (step.step === warmup) ticks = new Ticks();
}
const ended = ticks.stop();
trainer.dispose();
const { activeMs, minor, major } = meanHost(measured.map(({ host }) => host));
const times = measured.map(({ stepMs }) => stepMs).sort((a, b) => a - b);
const rank = worldOfRun()?.rank ?? 0;
const result = {
  rank,
  device: await describeDevice(deviceOfRank(device, worldOfRun())),
  ...ended,
  stepMs: Number(times[times.length >> 1].toFixed(1)),
  javascriptMsPerStep: Number(activeMs.toFixed(1)),
  collectionsPerStep: { minor: minor.count, major: major.count, ms: minor.ms + major.ms },
};
writeFileSync(join(folder, `rank-${rank}.json`), JSON.stringify(result));
