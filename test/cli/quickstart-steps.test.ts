import { describe, expect, it } from "vitest";
import { overridesFor, secondsOf, stepsWithin } from "../../lib/cli/quickstart-steps.js";
import { loadConfig } from "../../lib/config/index.js";

describe("the quickstart's number of steps", () => {
  it("fits the time, and leaves some for validation, samples and saves", () => {
    for (const stepSeconds of [0.05, 0.14, 0.37, 1.2]) {
      const steps = stepsWithin(180, stepSeconds);
      expect(steps * stepSeconds).toBeLessThan(180);
      expect(secondsOf(steps, stepSeconds)).toBeLessThanOrEqual(180);
      expect(secondsOf(steps, stepSeconds)).toBeGreaterThan(160);
    }
  });

  it("is 40 on the slowest machine and 4,000 on the fastest", () => {
    expect(stepsWithin(180, 60)).toBe(40);
    expect(stepsWithin(180, 1e-3)).toBe(4000);
  });

  it.each([1, 2, 3, 40, 137, 4000])("makes a valid recipe of %d steps", (steps) => {
    const config = loadConfig("configs/quickstart.yaml", overridesFor(steps));
    expect(config.steps).toBe(steps);
    expect(config.optimizer.decaySteps).toBe(steps);
    expect(config.optimizer.warmupSteps).toBeLessThan(steps);
  });
});
