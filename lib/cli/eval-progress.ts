import { Presets, SingleBar } from "cli-progress";
import { visible } from "../core/visible.js";
import type { EvaluationProgress } from "../eval/run-tasks.js";
import { formatDuration } from "../plan/format.js";

/** Shows an evaluation's progress: a bar on a terminal, one line for each task anywhere else. */
export class EvaluationDisplay {
  readonly #stream: NodeJS.WriteStream;
  readonly #bar: SingleBar | null;
  #task: string | null = null;
  #started = 0;

  constructor(stream: NodeJS.WriteStream = process.stderr) {
    this.#stream = stream;
    this.#bar = stream.isTTY
      ? new SingleBar(
          {
            stream,
            format: "{bar} {value}/{total} {text}",
            barsize: 20,
            hideCursor: true,
            gracefulExit: false,
            clearOnComplete: true,
          },
          Presets.shades_classic,
        )
      : null;
  }

  /** Shows that requests are done. */
  update({ task, done, requests, finishedTasks, tasks }: EvaluationProgress): void {
    const number = finishedTasks + 1;
    if (task !== this.#task) {
      this.#task = task;
      this.#started = performance.now();
      this.#bar?.stop();
      this.#bar?.start(requests, done, { text: "" });
      if (!this.#bar) this.#print(`${task} (${number} of ${tasks}): ${requests} requests`);
    }
    const seconds = (performance.now() - this.#started) / 1000;
    const left = done > 0 ? `  ETA ${formatDuration((seconds / done) * (requests - done))}` : "";
    this.#bar?.update(done, { text: visible(`${task} (${number} of ${tasks})${left}`) });
  }

  stop(): void {
    this.#bar?.stop();
  }

  #print(text: string): void {
    this.#stream.write(`${visible(text)}\n`);
  }
}
