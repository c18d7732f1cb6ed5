import { MultiBar, Presets, type SingleBar } from "cli-progress";
import { visible } from "../core/visible.js";
import { isShare } from "../eval/published.js";
import { formatDuration } from "../plan/format.js";
import type { StepMetrics } from "../train/metrics.js";

export interface ProgressOptions {
  /** Number of steps of the whole run. */
  steps: number;
  /** Step at which the run starts or continues. */
  from?: number;
  stream?: NodeJS.WriteStream;
  /** Without a terminal, one line is printed every so many steps. */
  every?: number;
}

/** Shows a run's progress: a bar on a terminal, plain lines anywhere else. */
export class ProgressDisplay {
  readonly #steps: number;
  readonly #every: number;
  readonly #stream: NodeJS.WriteStream;
  readonly #bars: MultiBar | null;
  readonly #bar: SingleBar | null;
  /** Smoothed time of a step, from which the remaining time is estimated. */
  #stepMs: number | null = null;
  /** Number of steps shown. */
  #seen = 0;

  constructor({ steps, from = 0, stream = process.stdout, every = 10 }: ProgressOptions) {
    this.#steps = steps;
    this.#every = every;
    this.#stream = stream;
    if (!stream.isTTY) {
      this.#bars = this.#bar = null;
      return;
    }
    this.#bars = new MultiBar(
      {
        stream,
        format: "{bar} {value}/{total} {text}",
        barsize: 20,
        hideCursor: true,
        gracefulExit: false,
      },
      Presets.shades_classic,
    );
    this.#bar = this.#bars.create(steps, from, { text: "" });
  }

  /** Shows a step. */
  step(metrics: StepMetrics): void {
    // The first step of a process warms up caches, and is slower than the steps to be predicted.
    this.#seen++;
    if (this.#stepMs === null || this.#seen === 2) this.#stepMs = metrics.stepMs;
    this.#stepMs += 0.05 * (metrics.stepMs - this.#stepMs);
    const left = formatDuration(((this.#steps - metrics.step) * this.#stepMs) / 1000);
    const text = `${describeStep(metrics)}  ETA ${left}`;
    this.#bar?.update(metrics.step, { text });
    if (metrics.skipped !== undefined)
      this.note(`step ${metrics.step} skipped: ${metrics.skipped}`);
    const due =
      metrics.step % this.#every === 0 || metrics.step === 1 || metrics.step === this.#steps;
    if (this.#bar === null && due) this.#print(`step ${metrics.step}/${this.#steps}  ${text}`);

    const { validation, samples, scores } = metrics;
    if (validation !== undefined)
      this.note(`step ${metrics.step}  ${describeValidation(validation)}`);
    if (scores !== undefined && scores.length > 0)
      this.note(`step ${metrics.step}  ${describeScores(scores)}`);
    for (const { prompt, text: continuation } of samples ?? []) {
      this.note(`step ${metrics.step}  sample: ${printable(prompt + continuation)}`);
    }
  }

  /** Prints a line, on a terminal above the bar. */
  note(text: string): void {
    if (this.#bars === null) this.#print(text);
    else this.#bars.log(`${visible(text)}\n`);
  }

  /** Leaves the bar in its last state on the screen and restores the cursor. */
  stop(): void {
    // Notes wait for the next redraw, and stopping would drop them.
    this.#bars?.update();
    this.#bars?.stop();
  }

  #print(text: string): void {
    this.#stream.write(`${visible(text)}\n`);
  }
}

export function describeStep(metrics: StepMetrics): string {
  const { loss, lr, gradNorm, tokensPerSecond, figures } = metrics;
  const speed = Math.round(tokensPerSecond).toLocaleString("en-US");
  return (
    `loss ${loss.toFixed(4)}  ${figures ? `${describeFigures(figures)}  ` : ""}` +
    `lr ${lr.toExponential(2)}  norm ${gradNorm.toPrecision(3)}  ${speed} tok/s`
  );
}

export function describeValidation(validation: NonNullable<StepMetrics["validation"]>): string {
  const { loss, bitsPerByte, figures } = validation;
  if (figures) return `validation loss ${loss.toFixed(4)}  ${describeFigures(figures)}`;
  const bits = bitsPerByte === null ? "" : `, ${bitsPerByte.toFixed(3)} bits per byte`;
  return `validation loss ${loss.toFixed(4)} nats per token${bits}`;
}

/** The two figures of preferences that tell most: `margin 0.512  preferred 87%`. */
function describeFigures(figures: NonNullable<StepMetrics["figures"]>): string {
  const { "rewards/margins": margin = 0, "rewards/accuracies": share = 0 } = figures;
  return `margin ${margin.toFixed(3)}  preferred ${(100 * share).toFixed(0)}%`;
}

/** Scores on tasks in one line: `arc_easy 25.13%, wikitext 1.234 bits_per_byte`. */
export function describeScores(scores: NonNullable<StepMetrics["scores"]>): string {
  const each = scores.map((score) =>
    isShare(score)
      ? `${score.task} ${(100 * score.value).toFixed(2)}%`
      : `${score.task} ${score.value.toFixed(3)} ${score.metric}`,
  );
  return `scores: ${each.join(", ")}`;
}

/** Formats model output as one line, without control characters that could steer a terminal. */
export function printable(text: string): string {
  return text.replace(/\s+/g, " ").replace(/\p{Cc}|\p{Cf}/gu, "\u{fffd}");
}
