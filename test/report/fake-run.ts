import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfig, type RunConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { parameterCount } from "../../lib/model/shapes.js";
import { encodeStep, runFiles, type StepMetrics, writeRunInfo } from "../../lib/train/metrics.js";

/** Text that would break the page without escaping. */
export const hostileText =
  "</script><script>window.broken = true</script><!-- <img src=x onerror='window.broken = true'> \u2028 \" & '";

/** Reproducible numbers from 0 to 1. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Steps that look like a quickstart: a falling noisy loss, two skips, validation, samples. */
export function fakeSteps(count: number): StepMetrics[] {
  const random = randomNumbers(7);
  return Array.from({ length: count }, (_, i) => {
    const step = i + 1;
    const noise = random() - 0.5;
    const curve = 3.4 + 5 * Math.exp(-step / 130);
    const skipped = step === 300 || step === 612 ? "loss is 7.3 deviations above" : undefined;
    const validation =
      step % 100 === 0 ? { loss: curve + 0.12, bitsPerByte: (curve + 0.12) / 2.4 } : undefined;
    const samples =
      step % 250 === 0
        ? [
            {
              prompt: "My fellow citizens,",
              text: ` the nation at step ${step} is at peace,\nand so on`,
            },
            { prompt: "export function", text: hostileText },
          ]
        : undefined;
    const warm = Math.min(1, step / 60);
    return {
      step,
      tokens: step * 2048,
      loss: skipped ? curve + 2.5 : curve + 0.5 * noise,
      lr: 2e-3 * (step < 60 ? warm : 0.1 + 0.45 * (1 + Math.cos((Math.PI * step) / count))),
      gradNorm: 0.4 + 4 * Math.exp(-step / 40) + 0.3 * random(),
      tokensPerSecond: 8800 + 900 * noise - (step % 100 === 0 ? 2500 : 0),
      stepMs: 230 - 25 * noise,
      dataWaitMs: 0.4 * random(),
      deviceBytes: 236e6 + 2e6 * random(),
      rssBytes: 420e6 + 1e6 * Math.min(step, 80),
      ...(skipped && { skipped }),
      ...(validation && { validation }),
      ...(samples && { samples }),
      time: new Date(1.78e12 + step * 230).toISOString(),
    };
  });
}

/** A run's folder as the trainer leaves it. */
export async function writeFakeRun(
  folder: string,
  steps: StepMetrics[],
  change: (config: RunConfig) => RunConfig = (config) => config,
): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const config = change(
    decidePrecision(loadConfig("configs/quickstart.yaml", ["steps=950"]), null),
  );
  await writeRunInfo(folder, {
    config,
    deviceName: "AMD EPYC 9554, 2 threads",
    worldSize: 1,
    parameters: parameterCount(config.model),
    versions: { llamaforge: "0.1.0" },
    started: "2026-06-01T09:30:00.000Z",
  });
  writeFileSync(join(folder, runFiles.metrics), steps.map(encodeStep).join(""));
}
