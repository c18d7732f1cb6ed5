import { createHash } from "node:crypto";
import type { HostCopies } from "../checkpoint/host-copies.js";
import { configFile, huggingFaceConfig, weightSources } from "../checkpoint/model.js";
import { optimizerFile, optimizerSources } from "../checkpoint/optimizer.js";
import type { CheckpointContents } from "../checkpoint/save.js";
import { weightsFile } from "../checkpoint/weights.js";
import type { RunConfig } from "../config/index.js";
import { buildInfo } from "../core/native.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import type { LanguageModel } from "../model/language-model.js";
import type { AdamW } from "../optim/adamw.js";
import { answerFiles, type RunChat } from "./chat.js";
import { type TrainerState, trainerState } from "./state.js";

/**
 * Properties that must be equal for a run to resume from a checkpoint. With other values, it would
 * silently be a different run.
 */
export function runIdentity(config: RunConfig, mixture: Mixture): Record<string, unknown> {
  const { model, precision, seed, data } = config;
  return {
    model: createHash("sha256").update(JSON.stringify(model)).digest("hex"),
    precision,
    seed,
    sequenceLength: data.sequenceLength,
    // Absent by default, as in checkpoints that are older than the option.
    documents: keptApart(data),
    // Adapters mean nothing without the model that they belong to.
    lora: config.lora && { ...adapterOf(config.lora), base: config.init.from },
    // Preferences mean nothing without the reference.
    reference: config.dpo && config.init.from,
    data: mixture.fingerprint,
    tokenizer: mixture.tokenizerSha256,
  };
}

/** What an adapter is. Dropout is how it is trained, and may change. */
function adapterOf({ rank, alpha, targets }: NonNullable<RunConfig["lora"]>) {
  return { rank, alpha, targets };
}

/** The options that keep documents apart; undefined if none is set. */
function keptApart({ maskDocuments, resetPositions }: RunConfig["data"]) {
  return maskDocuments || resetPositions ? { maskDocuments, resetPositions } : undefined;
}

/**
 * Copies everything that a checkpoint holds to the host, so that training can continue while it is
 * written. The next snapshot into the same `copies` may only be taken after that write has ended.
 */
export async function snapshot(run: {
  config: RunConfig;
  model: LanguageModel;
  optimizer: AdamW;
  tokenizer: Tokenizer;
  mixture: Mixture;
  /** Form of the chats that the run trains on; null for text. */
  chat: RunChat | null;
  copies: HostCopies;
  progress: Pick<TrainerState, "step" | "tokens" | "position" | "skips" | "fp8Fallbacks">;
  /** Loss on held-out documents, if it was measured at this step. */
  validation?: number | null;
}): Promise<CheckpointContents> {
  const { config, model, optimizer, tokenizer, mixture, chat, copies, progress } = run;
  // The copies are made one after the other, so that all ranks gather sharded state in the same
  // order.
  const weights = await weightSources(model, copies);
  const state = await optimizerSources(optimizer, copies);
  const { names = { config: configFile, weights: weightsFile } } = model.files;
  return {
    files: {
      [names.config]: huggingFaceConfig(model, {
        bosTokenId: tokenizer.bosId,
        eosTokenId: tokenizer.eosId,
      }),
      ...tokenizer.contents(),
      ...answerFiles(chat, mixture, tokenizer),
    },
    tensors: { [names.weights]: weights, [optimizerFile]: state },
    trainer: trainerState(progress, config),
    run: {
      ...runIdentity(config, mixture),
      worldSize: model.store.parallel?.worldSize ?? 1,
      build: buildInfo().version,
      // JSON has no NaN, which is the loss of a model with non-finite weights.
      ...(Number.isFinite(run.validation) && { validation: run.validation }),
    },
  };
}
