import { noGrad } from "../core/autograd.js";
import { checkInstance } from "../core/check.js";
import { tensor } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import type { Batch, HostBatch } from "../model/batch.js";
import { LanguageModel } from "../model/language-model.js";
import { LoraModel } from "../model/lora.js";
import {
  answerLengths,
  answerLogProbs,
  checkPreference,
  preferenceLoss,
} from "../model/preference.js";
import { type PreferenceConfig, preferenceFigures } from "../model/preference-config.js";
import type { Measured, Objective } from "./objective.js";

/**
 * Learns from preferences: of two answers to a prompt, the preferred one becomes more likely than
 * it is by a reference model, and the other one less likely (direct preference optimization).
 *
 *     const reference = await loadModel(folder, { training: false });
 *     const objective = new PreferenceObjective({ loss: "sigmoid", beta: 0.1 }, reference);
 *     await trainStep({ model, objective, ... });
 */
export class PreferenceObjective implements Objective {
  readonly figures: readonly string[] = preferenceFigures;
  readonly config: PreferenceConfig;
  readonly #reference: LanguageModel | null;

  /**
   * @param reference the model that training starts from, which stays as it is; it computes in
   *   every pass, without gradients, and belongs to the objective, which frees it. null: the trained model has adapters, and is the reference
   *   without them
   * @throws ArgumentError for settings that do not fit
   */
  constructor(config: PreferenceConfig, reference: LanguageModel | null) {
    checkPreference("PreferenceObjective", config);
    if (reference !== null) {
      checkInstance(
        "PreferenceObjective",
        "reference",
        reference,
        LanguageModel,
        "a model or null",
      );
    }
    this.config = config;
    this.#reference = reference;
  }

  /** Number of pairs. */
  count({ pairs = 0 }: HostBatch): number {
    return pairs;
  }

  /**
   * The loss of a micro-batch of pairs.
   * @throws ArgumentError for a batch that holds no pairs
   */
  measure(model: LanguageModel, batch: Batch, host: HostBatch): Measured {
    const { pairs = 0 } = host;
    if (pairs === 0) {
      throw new ArgumentError(
        "[PreferenceObjective] expected a batch of preferences, got one without pairs",
      );
    }
    const reference = noGrad(() =>
      answerLogProbs(this.#referenceLosses(model, batch), batch, pairs),
    );
    const policy = answerLogProbs(model.targetLosses(batch), batch, pairs);
    const lengths = tensor(answerLengths(host), { device: model.device });
    return preferenceLoss({ policy, reference, lengths }, this.config);
  }

  dispose(): void {
    this.#reference?.dispose();
  }

  #referenceLosses(model: LanguageModel, batch: Batch): Tensor {
    const reference = this.#reference;
    if (reference) {
      const losses = () => reference.tokenLosses(batch);
      return model.computesInFp8 ? losses() : reference.withoutFp8(losses);
    }
    if (model instanceof LoraModel) return model.withoutAdapters(() => model.tokenLosses(batch));
    throw new ArgumentError(
      "[PreferenceObjective] expected a reference model, or a model with adapters to train",
    );
  }
}
