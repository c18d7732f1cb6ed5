/** Runs of tests that compare the strategies of several ranks. */
import { join } from "node:path";
import { beforeAll, expect } from "vitest";
import { openCheckpoint } from "../../lib/checkpoint/load.js";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { expectCodes, figures, runToEnd, stepsOf, writeConfig } from "./ranks.js";

let folder: string;
let data: string;

/** Prepares the data of the file's runs. */
export function prepareRuns(): void {
  beforeAll(async () => {
    buildLibrary();
    ({ folder, data } = await tinyData());
  });
}

/** Writes the configuration of a run. */
export const writeRun = (worldSize: number, overrides: Record<string, unknown>) =>
  writeConfig(folder, data, worldSize, overrides);

/** Relative difference of losses between world sizes and strategies: f32 sums in another order. */
export const bound = 2e-5;
/** The reduction in bf16 rounds each gradient once: 2^-9 relative. */
export const bf16Bound = 2e-3;

export type Figures = ReturnType<typeof figures>;

export function expectClose(measured: Figures, reference: Figures, limit = bound): void {
  expect(measured.map(({ step, lr, tokens }) => [step, lr, tokens])).toEqual(
    reference.map(({ step, lr, tokens }) => [step, lr, tokens]),
  );
  for (const [index, { loss, gradNorm }] of measured.entries()) {
    const expected = reference[index] as Figures[number];
    const error = Math.abs(loss / expected.loss - 1);
    const normError = Math.abs(gradNorm / expected.gradNorm - 1);
    expect(error, `loss of step ${index + 1}: ${loss}, not ${expected.loss}`).toBeLessThan(limit);
    expect(normError, `norm of step ${index + 1}`).toBeLessThan(20 * limit);
  }
}

export interface Trained {
  file: string;
  out: string;
  stdout: string[];
  steps: Figures;
  validation: number;
}

export async function train(
  worldSize: number,
  overrides: Record<string, unknown> = {},
  perHost = worldSize,
): Promise<Trained> {
  const { file, out } = await writeRun(worldSize, overrides);
  return await trainIn(file, out, worldSize, perHost);
}

export async function trainIn(file: string, out: string, worldSize: number, perHost = worldSize) {
  const results = await runToEnd(file, { worldSize, perHost });
  expectCodes(results, 0);
  const steps = await stepsOf(out);
  const stdout = results.map((result) => result.stdout);
  const validation = steps.at(-1)?.validation?.loss as number;
  return { file, out, stdout, steps: figures(steps), validation };
}

export async function tensorsOf(
  out: string,
  step: number,
  file: string,
): Promise<Map<string, Buffer>> {
  const { tensors } = await openCheckpoint(join(out, `step-${String(step).padStart(10, "0")}`));
  const bytes = new Map<string, Buffer>();
  for (const [name, tensor] of tensors.get(file)?.tensors ?? []) {
    bytes.set(name, Buffer.from(await tensor.readBytes()));
  }
  return bytes;
}

export const weightsFile = "model.safetensors";
export const stateFile = "optimizer-state.safetensors";
