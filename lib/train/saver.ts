import { HostCopies } from "../checkpoint/host-copies.js";
import { CheckpointWriter, type SavedCheckpoint } from "../checkpoint/save.js";
import type { RunConfig } from "../config/index.js";
import { DivergedError, UsageError } from "../core/errors.js";
import { faultPoint } from "../core/faults.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { Cluster } from "../dist/cluster.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import type { LanguageModel } from "../model/language-model.js";
import type { AdamW } from "../optim/adamw.js";
import type { RunChat } from "./chat.js";
import { nonFiniteGroups } from "./finite.js";
import type { Progress, Saver } from "./parts.js";
import { snapshot } from "./snapshot.js";

export interface SavedRun {
  config: RunConfig;
  model: LanguageModel;
  optimizer: AdamW;
  tokenizer: Tokenizer;
  mixture: Mixture;
  /** Form of the chats that the run trains on; null for text. */
  chat: RunChat | null;
  cluster: Cluster | null;
  /** The run's folder; null on a process that writes nothing. */
  identity: FolderIdentity | null;
  /** Checkpoint that the run resumes from. */
  checkpoint: string | null;
  onNotice: (message: string) => void;
}

/**
 * Writes the checkpoints of a recipe's run: weights, optimizer and progress, each in a folder
 * `step-N` of the run's folder.
 */
export class RunSaver implements Saver {
  readonly every: number;
  /** Called with each complete checkpoint, one call after the other. Its error ends the run. */
  onCheckpoint: (folder: string, step: number) => unknown = () => {};
  readonly #run: SavedRun;
  readonly #writer: CheckpointWriter;
  readonly #copies = new HostCopies();
  #checkpoint: string | null;
  /** The calls of `onCheckpoint` so far. It never rejects. */
  #calls: Promise<void> = Promise.resolve();
  #callFailure: Error | null = null;

  constructor(run: SavedRun) {
    const { config, identity, onNotice } = run;
    const { every, keepLast, keepEvery, keepBest } = config.checkpoint;
    this.#run = run;
    this.every = every;
    this.#checkpoint = run.checkpoint;
    this.#writer = new CheckpointWriter(config.out, {
      identity,
      retention: { keepLast, keepBest, ...(keepEvery && { keepEvery }) },
      onSaved: ({ path, step }: SavedCheckpoint) => {
        this.#checkpoint = path;
        this.#call(path, step);
      },
      onFailed: (error, step) =>
        onNotice(`the checkpoint of step ${step} failed: ${error.message}; training goes on`),
      onWarning: onNotice,
    });
  }

  get checkpoint(): string | null {
    return this.#checkpoint;
  }

  get failure(): Error | null {
    return this.#writer.moved ?? this.#callFailure;
  }

  /**
   * Copies the state to the host and saves it in the background. It waits only for a save that is
   * still in progress. A state from which training cannot continue ends the run and is not saved,
   * because such states would eventually replace all good ones.
   */
  async save(progress: Progress, validation: number | null): Promise<void> {
    const { config, model, optimizer, tokenizer, mixture, chat, cluster } = this.#run;
    const broken = await nonFiniteGroups(model, optimizer);
    if (broken.length > 0) throw notFinite(progress.step, broken, config.out);
    await this.#writer.ready();
    // Storage may have delayed rank 0 for longer than the timeout of a collective.
    await cluster?.meet("a save");
    faultPoint("save");
    const contents = await snapshot({
      config,
      model,
      optimizer,
      tokenizer,
      mixture,
      chat,
      copies: this.#copies,
      progress: savedProgress(progress),
      validation,
    });
    if (cluster === null || cluster.world.rank === 0) this.#writer.start(progress.step, contents);
    faultPoint("saving");
  }

  async finish(): Promise<void> {
    await this.#writer.finish();
    await this.#calls;
    if (this.#callFailure) throw this.#callFailure;
  }

  /** A failure of the callback is none of the save. */
  #call(folder: string, step: number): void {
    this.#calls = this.#calls
      .then(async () => void (await this.onCheckpoint(folder, step)))
      .catch((error: unknown) => {
        const told = `[Trainer] onCheckpoint failed: ${String(error)}`;
        this.#callFailure ??= error instanceof Error ? error : new UsageError(told);
      });
  }
}

/** The progress as a checkpoint keeps it: a run without fallbacks says nothing of them. */
function savedProgress({ fp8Fallbacks = [], skips, ...progress }: Progress) {
  const fallen = fp8Fallbacks.length > 0 ? { fp8Fallbacks: [...fp8Fallbacks] } : {};
  return { ...progress, skips: [...skips], ...fallen };
}

function notFinite(step: number, groups: readonly string[], out: string): DivergedError {
  const more = groups.length > 3 ? ` and ${groups.length - 3} more groups` : "";
  return new DivergedError(
    `step ${step}: weights or moments are not finite in ${groups.slice(0, 3).join(", ")}${more}: this state is not ` +
      `saved; what was saved before stays in ${out}: go on from there with a lower learning rate`,
  );
}
