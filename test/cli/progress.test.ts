import { Writable } from "node:stream";
import { describe, expect, it } from "vitest";
import { ProgressDisplay, printable } from "../../lib/cli/progress.js";
import { formatDuration } from "../../lib/plan/format.js";
import type { StepMetrics } from "../../lib/train/metrics.js";

const base: StepMetrics = {
  step: 1,
  tokens: 2048,
  loss: 8.31782,
  lr: 1.98e-3,
  gradNorm: 1.23456,
  tokensPerSecond: 9123.4,
  stepMs: 200,
  dataWaitMs: 0,
  deviceBytes: 0,
  rssBytes: 0,
  time: "",
};

function capture(isTTY: boolean) {
  let text = "";
  const stream = new Writable({
    write(chunk, _, done) {
      text += chunk;
      done();
    },
  });
  Object.assign(stream, { isTTY, columns: 120, cursorTo() {}, clearLine() {}, moveCursor() {} });
  return { stream: stream as unknown as NodeJS.WriteStream, text: () => text };
}

describe("without a terminal", () => {
  it("prints plain lines: the first step, every tenth and the last", () => {
    const { stream, text } = capture(false);
    const progress = new ProgressDisplay({ steps: 25, stream });
    for (let step = 1; step <= 25; step++) progress.step({ ...base, step });
    progress.stop();
    const lines = text().trimEnd().split("\n");
    expect(lines.map((line) => line.split("  ")[0])).toEqual([
      "step 1/25",
      "step 10/25",
      "step 20/25",
      "step 25/25",
    ]);
    expect(lines[1]).toBe("step 10/25  loss 8.3178  lr 1.98e-3  norm 1.23  9,123 tok/s  ETA 0:03");
    expect(text()).not.toContain("\u001b");
  });

  it("prints skips, validation and samples when they happen", () => {
    const { stream, text } = capture(false);
    const progress = new ProgressDisplay({ steps: 25, stream });
    progress.step({
      ...base,
      step: 7,
      loss: Number.NaN,
      skipped: "loss is not finite",
      validation: { loss: 4.25, bitsPerByte: 1.5 },
      samples: [{ prompt: "My fellow", text: " citizens,\n\u001b[2Jred" }],
    });
    expect(text()).toBe(
      "step 7 skipped: loss is not finite\n" +
        "step 7  validation loss 4.2500 nats per token, 1.500 bits per byte\n" +
        "step 7  sample: My fellow citizens, \u{fffd}[2Jred\n",
    );
  });
});

it("draws a bar on a terminal, with notes above it", () => {
  const { stream, text } = capture(true);
  const progress = new ProgressDisplay({ steps: 25, from: 5, stream });
  progress.step({ ...base, step: 6 });
  progress.note("saved step 6");
  progress.stop();
  expect(text()).toContain("saved step 6\n");
  expect(text()).toContain("6/25 loss 8.3178  lr 1.98e-3  norm 1.23  9,123 tok/s  ETA 0:04");
  expect(text()).toContain("█");
});

it.each([
  [0, "0:00"],
  [65.4, "1:05"],
  [3600, "1:00:00"],
  [3 * 86_400 + 61, "3d 00:01:01"],
  [Number.NaN, "?"],
])("%d s is %s", (seconds, text) => {
  expect(formatDuration(seconds)).toBe(text);
});

it("keeps model output from steering the terminal", () => {
  expect(printable("a\u0007\u009b b\u202e\tc")).toBe("a\u{fffd}\u{fffd} b\u{fffd} c");
});
