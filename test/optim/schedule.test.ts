import { describe, expect, test } from "vitest";
import { parseConfig } from "../../lib/config/index.js";
import { scheduleOf } from "../../lib/config/schedule.js";
import { ArgumentError, ConfigError } from "../../lib/core/errors.js";
import { cosineSchedule, wsdSchedule } from "../../lib/optim/schedule.js";

const ends = { peakLr: 1, minLr: 0.1, warmupSteps: 10, decaySteps: 100 };

test("cosine: half a cosine after the warm-up", () => {
  const rate = cosineSchedule(ends);
  const rates = [0, 5, 10, 55, 100, 200].map(rate);
  for (const [i, expected] of [0, 0.5, 1, 0.55, 0.1, 0.1].entries()) {
    expect(rates[i]).toBeCloseTo(expected, 12);
  }
});

describe("wsd", () => {
  test.each([
    ["sqrt", [0.1 + 0.9 * 0.5, 0.1 + 0.9 * (1 - Math.sqrt(0.5))]],
    ["linear", [0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.5]],
    ["cosine", [0.1 + 0.45 * (1 + Math.SQRT1_2), 0.1 + 0.45]],
  ] as const)("rises, stays, and falls: %s", (decayShape, [quarter, half]) => {
    const rate = wsdSchedule({ ...ends, decayFrom: 60, decayShape });
    const steps = [0, 5, 10, 59, 60, 70, 80, 100, 1000];
    const expected = [0, 0.5, 1, 1, 1, quarter, half, 0.1, 0.1];
    for (const [i, step] of steps.entries())
      expect(rate(step)).toBeCloseTo(expected[i] as number, 12);
  });

  test("a run that goes on from the stable part has the rates of one with that end", () => {
    const short = wsdSchedule({ ...ends, decayFrom: 60 });
    const long = wsdSchedule({ ...ends, decayFrom: 600, decaySteps: 1000 });
    for (let step = 0; step <= 60; step++) expect(long(step)).toBe(short(step));
  });

  test("refuses steps out of order, and other shapes", () => {
    for (const wrong of [{ decayFrom: 5 }, { decayFrom: 101 }, { decayFrom: -1 }]) {
      expect(() => wsdSchedule({ ...ends, ...wrong })).toThrow(ArgumentError);
    }
    const odd = { ...ends, decayFrom: 60, decayShape: "exp" as never };
    expect(() => wsdSchedule(odd)).toThrow("decayShape");
    expect(() => wsdSchedule(undefined as never)).toThrow(ArgumentError);
  });
});

describe("in a recipe", () => {
  const recipe = (optimizer: string) =>
    parseConfig(
      `steps: 100\nmodel: {preset: quickstart}\ndata: {train: {a: 1}}\noptimizer: ${optimizer}\n`,
    );

  test("wsd decays over the last tenth, unless told otherwise", () => {
    const { optimizer } = recipe("{peakLr: 1.0e-3, warmupSteps: 5, schedule: wsd}");
    expect(optimizer).toMatchObject({ decayFrom: 90, decayShape: "sqrt" });
    const rate = scheduleOf(optimizer);
    expect([rate(5), rate(89), rate(90), rate(100)]).toEqual([1e-3, 1e-3, 1e-3, 1e-4]);
    const own = recipe("{schedule: wsd, decayFrom: 50, decayShape: linear}").optimizer;
    expect(scheduleOf(own)(75)).toBeCloseTo((own.peakLr + own.minLr) / 2, 12);
  });

  test("cosine has no decayFrom, and steps have an order", () => {
    expect(recipe("{}").optimizer).not.toHaveProperty("decayFrom");
    for (const wrong of [
      "{decayFrom: 50}",
      "{schedule: wsd, decayFrom: 100}",
      "{schedule: wsd, warmupSteps: 60, decayFrom: 50}",
      "{schedule: cosin}",
    ]) {
      expect(() => recipe(wrong)).toThrow(ConfigError);
    }
  });
});
