import { createHash } from "node:crypto";
import type { HostCopies } from "../checkpoint/host-copies.js";
import { huggingFaceConfig, weightSources } from "../checkpoint/model.js";
import { optimizerFile, optimizerSources } from "../checkpoint/optimizer.js";
import type { CheckpointContents } from "../checkpoint/save.js";
import { weightsFile } from "../checkpoint/weights.js";
import type { RunConfig } from "../config/index.js";
import { buildInfo } from "../core/native.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { LanguageModel } from "../model/language-model.js";
import type { AdamW } from "../optim/adamw.js";
import { type TrainerState, trainerState } from "./state.js";

/** What must be the same for a run to go on from a checkpoint: another value would silently be another run. */
export function runIdentity(config: RunConfig, mixture: Mixture): Record<string, unknown> {
  const { model, precision, seed, data } = config;
  return {
    model: createHash("sha256").update(JSON.stringify(model)).digest("hex"),
    precision,
    seed,
    sequenceLength: data.sequenceLength,
    // Absent by default, as in checkpoints older than the option.
    documents: keptApart(data),
    data: mixture.fingerprint,
    tokenizer: mixture.tokenizerSha256,
  };
}

/** How documents are kept apart; undefined where they are not. */
function keptApart({ maskDocuments, resetPositions }: RunConfig["data"]) {
  return maskDocuments || resetPositions ? { maskDocuments, resetPositions } : undefined;
}

/**
 * Everything a checkpoint holds, copied to the host: training may go on while it is written, and the next snapshot into the
 * same `copies` is taken when it has been.
 */
export async function snapshot(run: {
  config: RunConfig;
  model: LanguageModel;
  optimizer: AdamW;
  tokenizer: Tokenizer;
  mixture: Mixture;
  copies: HostCopies;
  progress: Pick<TrainerState, "step" | "tokens" | "position" | "skips">;
  /** Loss on held-out documents, if it was measured at this step. */
  validation?: number | null;
}): Promise<CheckpointContents> {
  const { config, model, optimizer, tokenizer, mixture, copies, progress } = run;
  // One after the other: ranks then gather divided state in the same order.
  const weights = await weightSources(model, copies);
  const state = await optimizerSources(optimizer, copies);
  return {
    files: {
      "config.json": huggingFaceConfig(model, {
        bosTokenId: tokenizer.bosId,
        eosTokenId: tokenizer.eosId,
      }),
      ...tokenizer.contents(),
    },
    tensors: { [weightsFile]: weights, [optimizerFile]: state },
    trainer: trainerState(progress, config),
    run: {
      ...runIdentity(config, mixture),
      worldSize: model.store.parallel?.worldSize ?? 1,
      build: buildInfo().version,
      // JSON has no NaN, which is what weights that are not finite give.
      ...(Number.isFinite(run.validation) && { validation: run.validation }),
    },
  };
}
