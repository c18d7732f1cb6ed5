import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { native } from "../../lib/core/native.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { uniformSource } from "../support/reference.js";

// docs/faults.md, rows N1 to N5, for the step guard's kernel. Series are scripted, and the state is
// read back byte by byte.

interface Settings {
  window: number;
  clip: number;
  zLoss: number;
  zGradNorm: number;
  minimumHistory: number;
}
const usual: Settings = { window: 128, clip: 1, zLoss: 6, zGradNorm: 6, minimumHistory: 128 };
const [beta1, beta2] = [0.9, 0.95];
const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

const reasons = [
  "applied",
  "loss not finite",
  "gradient not finite",
  "loss spike",
  "gradient spike",
] as const;
interface Decision {
  applied: boolean;
  multiplier: number;
  corrections: [number, number];
  norm: number;
  lossZ: number;
  normZ: number;
  reason: (typeof reasons)[number];
}

class Guard {
  state: Tensor;
  constructor(readonly settings: Settings = usual) {
    this.state = zeros([8 + 2 * settings.window]);
  }

  async step(loss: number, norm: number | readonly number[]): Promise<Decision> {
    const { clip, zLoss, zGradNorm, minimumHistory } = this.settings;
    const squares = tensor((typeof norm === "number" ? [norm] : norm).map((part) => part * part));
    const decision = empty([8]);
    native.stepGuard(
      tensor([loss]).native,
      squares.native,
      this.state.native,
      decision.native,
      clip,
      beta1,
      beta2,
      zLoss,
      zGradNorm,
      minimumHistory,
    );
    const d = (await decision.toArray()) as Float32Array;
    const at = (i: number): number => d[i] as number;
    expect([0, 1]).toContain(at(0));
    return {
      applied: at(0) === 1,
      multiplier: at(1),
      corrections: [at(2), at(3)],
      norm: at(4),
      lossZ: at(5),
      normZ: at(6),
      reason: reasons[at(7)] as (typeof reasons)[number],
    };
  }

  async counts() {
    const s = await this.state.toArray();
    return { filled: s[0], next: s[1], adamStep: s[2], skipsInARow: s[3], skips: s[4] };
  }

  /** The values of the statistics. */
  async history(): Promise<number[]> {
    return [...(await this.state.toArray()).slice(8)];
  }
}

/** A healthy step: loss about 3 ± 0.1, gradient norm about 0.5 ± 0.02. */
function healthy(seed: number): () => [number, number] {
  const uniform = uniformSource(seed);
  return () => [3 + 0.2 * (uniform() - 0.5), 0.5 + 0.04 * (uniform() - 0.5)];
}

async function warm(guard: Guard, steps: number, seed = 1): Promise<() => [number, number]> {
  const next = healthy(seed);
  for (let i = 0; i < steps; i++) expect((await guard.step(...next())).applied).toBe(true);
  return next;
}

describe("N1: what is not finite", () => {
  it.each([
    ["a loss of NaN", nan, 0.5, "loss not finite"],
    ["an infinite loss", inf, 0.5, "loss not finite"],
    ["a loss of minus infinity", -inf, 0.5, "loss not finite"],
    ["a gradient of NaN with a finite loss", 3, nan, "gradient not finite"],
    ["an infinite gradient", 3, inf, "gradient not finite"],
    ["a gradient whose square leaves f32", 3, 1e30, "gradient not finite"],
    ["a NaN in one group of many, as from one rank", 3, [0.3, nan, 0.2], "gradient not finite"],
    ["both", nan, nan, "loss not finite"],
  ] as const)(
    "%s skips the step and leaves the window as it was",
    async (_, loss, norm, reason) => {
      for (const filled of [0, 3, 200]) {
        const guard = new Guard();
        const next = await warm(guard, filled);
        const before = [...(await guard.state.toArray())];
        expect(await guard.step(loss, norm)).toMatchObject({
          applied: false,
          multiplier: 0,
          reason,
          lossZ: 0,
          normZ: 0,
        });
        const after = [...(await guard.state.toArray())];
        expect(after[3]).toBe(1);
        expect(after[4]).toBe((before[4] as number) + 1);
        expect([...after.slice(0, 3), ...after.slice(5)]).toEqual([
          ...before.slice(0, 3),
          ...before.slice(5),
        ]);
        expect((await guard.step(...next())).applied).toBe(true);
      }
    },
  );
});

describe("N2: spikes", () => {
  it("skips a loss far above the window, and says how far", async () => {
    const guard = new Guard();
    const next = await warm(guard, 128);
    const decision = await guard.step(3.9, 0.5); // deviation 0.058: z about 15
    expect(decision).toMatchObject({ applied: false, reason: "loss spike" });
    expect(decision.lossZ).toBeGreaterThan(13);
    expect(decision.lossZ).toBeLessThan(18);
    expect(await guard.history()).not.toContain(Math.fround(3.9));
    expect((await guard.step(...next())).applied).toBe(true);
  });

  it("skips a gradient norm far above the window", async () => {
    const guard = new Guard();
    await warm(guard, 128);
    expect(await guard.step(3, 0.8)).toMatchObject({ applied: false, reason: "gradient spike" });
    expect(await guard.step(3, [0.3, 0.4])).toMatchObject({ applied: true, norm: 0.5 });
  });

  it("lets pass what lies below the mean, and what is near it", async () => {
    const guard = new Guard();
    await warm(guard, 128);
    const below = await guard.step(0.1, 0.01);
    expect(below.applied).toBe(true);
    expect(below.lossZ).toBeLessThan(-6);
    expect((await guard.step(3.2, 0.55)).applied).toBe(true);
  });

  it("does not skip before the minimum history, and from there on does", async () => {
    for (const minimumHistory of [0, 2, 10]) {
      const guard = new Guard({ ...usual, minimumHistory });
      const needed = Math.max(2, minimumHistory);
      const next = healthy(3);
      for (let i = 0; i < needed - 1; i++) {
        expect((await guard.step(...next())).applied).toBe(true);
      }
      const copy = new Guard(guard.settings);
      copy.state = tensor((await guard.state.toArray()) as Float32Array);
      expect(await copy.step(1000, 0.5)).toMatchObject({ applied: true, lossZ: 0, normZ: 0 });
      await guard.step(...next());
      expect(await guard.step(1000, 0.5)).toMatchObject({ applied: false, reason: "loss spike" });
    }
  });

  it("does not call a flicker after a constant series a spike", async () => {
    const guard = new Guard({ ...usual, minimumHistory: 16 });
    for (let i = 0; i < 40; i++) await guard.step(2.5, 0.25);
    expect(await guard.step(100, 50)).toMatchObject({ applied: true, lossZ: 0, normZ: 0 });
    // The values move by one unit in the last place. The deviation is rounding, not spread.
    const rounding = new Guard({ ...usual, minimumHistory: 16 });
    for (let i = 0; i < 40; i++) await rounding.step(2.5 + (i % 2) * 2 ** -22, 0.25);
    expect(await rounding.step(2.5001, 0.25)).toMatchObject({ applied: true, lossZ: 0 });
  });

  it("does not skip on a ramp", async () => {
    const guard = new Guard({ ...usual, minimumHistory: 16 });
    for (let i = 0; i < 400; i++)
      expect((await guard.step(2 + 0.01 * i, 0.5 + 0.001 * i)).applied).toBe(true);
  });

  it("counts a step change as skips in a row, for the trainer to end the run", async () => {
    const guard = new Guard();
    const next = await warm(guard, 300);
    for (let i = 1; i <= 50; i++) {
      const [loss, norm] = next();
      expect(await guard.step(loss + 4, norm)).toMatchObject({ reason: "loss spike" });
      expect(await guard.counts()).toMatchObject({ skipsInARow: i, skips: i, adamStep: 300 });
    }
  });

  it("can be turned off, each by itself, and still tells the z-scores", async () => {
    const off = new Guard({ ...usual, zLoss: 0, zGradNorm: -1 });
    await warm(off, 128);
    const decision = await off.step(30, 5);
    expect(decision.applied).toBe(true);
    expect(decision.lossZ).toBeGreaterThan(100);
    expect(decision.normZ).toBeGreaterThan(100);
    const half = new Guard({ ...usual, zLoss: 0 });
    await warm(half, 128);
    expect((await half.step(30, 0.5)).applied).toBe(true);
    expect((await half.step(3, 5)).reason).toBe("gradient spike");
  });
});

describe("N3: one NaN, then healthy steps", () => {
  it("stays awake: 1,000 finite z-scores, and a spike of 50 is seen 200 steps later", async () => {
    const guard = new Guard();
    const next = await warm(guard, 200);
    expect((await guard.step(nan, nan)).applied).toBe(false);
    for (let i = 1; i <= 1000; i++) {
      if (i === 200) {
        const spike = await guard.step(50, 0.5);
        expect(spike).toMatchObject({ applied: false, reason: "loss spike" });
        expect(spike.lossZ).toBeGreaterThan(100);
      }
      const decision = await guard.step(...next());
      expect(Number.isFinite(decision.lossZ) && decision.lossZ !== 0).toBe(true);
      expect(decision.applied).toBe(true);
    }
    expect((await guard.history()).every(Number.isFinite)).toBe(true);
    expect(await guard.counts()).toMatchObject({ adamStep: 1200, skips: 2, skipsInARow: 0 });
  });

  it("refuses none of the 128 healthy steps behind the NaN", async () => {
    const guard = new Guard();
    const next = await warm(guard, 130);
    await guard.step(3, nan);
    for (let i = 0; i < 128; i++) expect((await guard.step(...next())).reason).toBe("applied");
  });
});

describe("N4: counting", () => {
  it("counts skips in a row and in all; Adam's step counts applied steps alone", async () => {
    const guard = new Guard();
    const script = [1, 0, 0, 1, 1, 0, 0, 0, 1]; // 1: healthy
    const expected: [number, number, number][] = [
      [1, 0, 0],
      [1, 1, 1],
      [1, 2, 2],
      [2, 0, 2],
      [3, 0, 2],
      [3, 1, 3],
      [3, 2, 4],
      [3, 3, 5],
      [4, 0, 5],
    ];
    for (const [i, good] of script.entries()) {
      const decision = await guard.step(good ? 3 : nan, 0.5);
      const [adamStep, skipsInARow, skips] = expected[i] as [number, number, number];
      expect(await guard.counts()).toMatchObject({
        adamStep,
        skipsInARow,
        skips,
        filled: adamStep,
      });
      if (good) {
        expect(decision.corrections[0]).toBe(Math.fround(1 / (1 - beta1 ** adamStep)));
        expect(decision.corrections[1]).toBe(Math.fround(1 / (1 - beta2 ** adamStep)));
      }
    }
  });
});

describe("N5: over a resume", () => {
  it("decides as the unbroken run, wherever it was cut, also while the window wraps", async () => {
    const settings = { ...usual, window: 7, minimumHistory: 4, zLoss: 2.5, zGradNorm: 2.5 };
    const next = healthy(5);
    const series = Array.from({ length: 40 }, (_, i): [number, number] =>
      i % 9 === 8 ? [9, 0.5] : i % 13 === 12 ? [3, nan] : i === 20 ? [3, 4] : next(),
    );
    const run = async (from: Guard, steps: [number, number][]) => {
      const decisions: Decision[] = [];
      for (const step of steps) decisions.push(await from.step(...step));
      return decisions;
    };
    const whole = await run(new Guard(settings), series);
    expect(new Set(whole.map(({ reason }) => reason)).size).toBe(4);
    for (let cut = 0; cut <= series.length; cut++) {
      const first = new Guard(settings);
      const before = await run(first, series.slice(0, cut));
      const second = new Guard(settings);
      second.state = tensor((await first.state.toArray()) as Float32Array);
      expect([...before, ...(await run(second, series.slice(cut)))]).toEqual(whole);
    }
  });
});

describe("clipping", () => {
  it.each([
    [1, 0.25, 1],
    [1, 4, Math.fround(1 / (4 + 1e-6))],
    [0.5, 1, Math.fround(0.5 / (1 + 1e-6))],
    [1, 0, 1],
    [0, 1e6, 1],
    [-1, 1e6, 1],
  ])("to %f of a norm of %f multiplies by %f, as PyTorch", async (clip, norm, multiplier) => {
    const guard = new Guard({ ...usual, clip });
    expect(await guard.step(3, norm)).toMatchObject({ multiplier, norm: Math.fround(norm) });
  });

  it("takes the norm over all groups, in double", async () => {
    const guard = new Guard();
    expect((await guard.step(3, [3, 4, 12])).norm).toBe(13);
    const parts = new Array<number>(200_000).fill(0.01);
    expect((await guard.step(3, [4096, ...parts])).norm).toBe(
      Math.fround(Math.sqrt(4096 ** 2 + 200_000 * Math.fround(1e-4))),
    );
  });
});

it("follows the rule written down in plain numbers, on any series and window", async () => {
  const value = fc.oneof(
    { weight: 20, arbitrary: fc.double({ min: 1, max: 2, noNaN: true }) },
    { weight: 2, arbitrary: fc.double({ min: 0, max: 50, noNaN: true }) },
    { weight: 1, arbitrary: fc.constantFrom(nan, inf) },
  );
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 0, max: 6 }),
      fc.integer({ min: 0, max: 7 }),
      fc.array(fc.tuple(value, value), { maxLength: 30 }),
      async (window, minimumHistory, series) => {
        const guard = new Guard({ window, minimumHistory, clip: 1, zLoss: 3, zGradNorm: 2 });
        const kept: [number, number][] = [];
        for (const [rawLoss, rawNorm] of series) {
          const loss = Math.fround(rawLoss);
          const norm = Math.sqrt(Math.fround(Math.fround(rawNorm * rawNorm)));
          const recent = kept.slice(-window || kept.length);
          const z = (x: number, history: number[]): number => {
            if (history.length < Math.max(2, minimumHistory)) return 0;
            const mean = history.reduce((a, b) => a + b) / history.length;
            const spread = Math.sqrt(
              history.reduce((a, b) => a + (b - mean) ** 2, 0) / (history.length - 1),
            );
            return spread > 1e-6 * mean ? (x - mean) / spread : 0;
          };
          const lossZ = z(
            loss,
            recent.map((pair) => pair[0]),
          );
          const normZ = z(
            norm,
            recent.map((pair) => pair[1]),
          );
          let reason: Decision["reason"] = "applied";
          if (!Number.isFinite(loss)) reason = "loss not finite";
          else if (!Number.isFinite(norm)) reason = "gradient not finite";
          else if (lossZ > 3) reason = "loss spike";
          else if (normZ > 2) reason = "gradient spike";
          expect((await guard.step(loss, rawNorm)).reason).toBe(reason);
          if (reason === "applied" && window > 0) kept.push([loss, Math.fround(norm)]);
        }
      },
    ),
    { numRuns: 60 },
  );
});

describe("bad input", () => {
  it.each([
    ["a state of odd length", [9], {}, "expected state of shape [8 + 2 * window]"],
    ["a state that is too short", [6], {}, "expected state of shape"],
    [
      "a window fuller than it is long",
      [12],
      { 0: 3 },
      "state.filled to be a whole number in 0..2, got 3",
    ],
    [
      "a position outside the window",
      [12],
      { 1: 2 },
      "state.next to be a whole number in 0..1, got 2",
    ],
    ["a position of NaN", [12], { 1: nan }, "state.next"],
    ["a fraction for a count", [12], { 0: 0.5 }, "state.filled"],
  ])("refuses %s and changes nothing", async (_, shape, entries, message) => {
    const values = new Float32Array(shape[0] as number);
    for (const [index, value] of Object.entries(entries)) values[Number(index)] = value as number;
    const guard = new Guard();
    guard.state = tensor(values);
    await expect(guard.step(3, 0.5)).rejects.toThrow(message);
    expect([...(await guard.state.toArray())]).toEqual([...values]);
  });
});
