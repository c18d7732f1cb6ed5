/** What shows a run while it goes on: the live page and TensorBoard's files. */
import { join } from "node:path";
import type { Dashboard } from "../report/dashboard.js";
import type { TensorBoardWriter } from "../report/tensorboard.js";
import { readMetrics, readRunInfo, runFiles, type StepMetrics } from "../train/metrics.js";
import type { Trainer } from "../train/trainer.js";
import { print } from "./terminal.js";

export interface WatchOptions {
  /** Serves the live page: at a port, or at a free one. */
  dashboard?: true | number;
  /** Writes event files for TensorBoard. */
  tensorboard?: true;
}

/** The watchers of a run. A watcher that fails is a notice: it never ends or delays the run. */
export class Watchers {
  readonly #dashboard: Dashboard | null;
  readonly #tensorboard: TensorBoardWriter | null;

  private constructor(dashboard: Dashboard | null, tensorboard: TensorBoardWriter | null) {
    this.#dashboard = dashboard;
    this.#tensorboard = tensorboard;
  }

  static async open(
    trainer: Trainer,
    { dashboard, tensorboard }: WatchOptions,
    run: { stop: (why: string) => void; onNotice: (message: string) => void },
  ): Promise<Watchers | null> {
    if (dashboard === undefined && !tensorboard) return null;
    const { out } = trainer.config;
    const page =
      dashboard === undefined
        ? null
        : await openDashboard(trainer, dashboard === true ? 0 : dashboard, run);
    if (page) print(`dashboard  ${page.url}\n`);
    let writer: TensorBoardWriter | null = null;
    if (tensorboard) {
      const { TensorBoardWriter } = await import("../report/tensorboard.js");
      const folder = join(out, "tensorboard");
      writer = await TensorBoardWriter.open(folder, run.onNotice);
      if (writer) print(`for TensorBoard: tensorboard --logdir ${folder}\n`);
    }
    return new Watchers(page, writer);
  }

  /** Shows a step. Returns at once. */
  step(metrics: StepMetrics): void {
    this.#dashboard?.step(metrics);
    this.#tensorboard?.step(metrics);
  }

  async close(outcome: string): Promise<void> {
    await Promise.all([this.#dashboard?.close(outcome), this.#tensorboard?.close()]);
  }
}

async function openDashboard(
  trainer: Trainer,
  port: number,
  { stop, onNotice }: { stop: (why: string) => void; onNotice: (message: string) => void },
): Promise<Dashboard | null> {
  try {
    const { Dashboard } = await import("../report/dashboard.js");
    const { out } = trainer.config;
    const earlier =
      trainer.startStep === 0
        ? []
        : (await readMetrics(join(out, runFiles.metrics))).filter(
            ({ step }) => step <= trainer.startStep,
          );
    const actions = {
      save: () => {
        trainer.save();
        return "saving after this step";
      },
      stop: () => {
        stop("asked by the dashboard");
        return "finishing the step and saving";
      },
    };
    return await Dashboard.open(await readRunInfo(out), earlier, actions, port);
  } catch (error) {
    onNotice(`no dashboard: ${(error as Error).message}`);
    return null;
  }
}
