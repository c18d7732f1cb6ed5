/** Settings of losses of preferences. This module loads no kernels. */

/** Losses of preferences; `preferenceLoss` has their formulas. */
export const preferenceLosses = ["sigmoid", "ipo", "hinge", "robust"] as const;
/** A loss of preferences. */
export type PreferenceLoss = (typeof preferenceLosses)[number];

/** Settings of a loss of preferences. */
export interface PreferenceConfig {
  loss: PreferenceLoss;
  /** How strongly the model is held to the reference: a larger number holds it closer. */
  beta: number;
  /**
   * Probability that a preference is the wrong way round, below 0.5; for sigmoid and robust.
   * Default: 0.
   */
  labelSmoothing?: number;
}

/**
 * Figures of a batch of pairs, by TRL's names, each a mean over pairs: rewards are beta times the
 * log-ratio of model and reference; accuracies count pairs whose preferred answer has the larger
 * reward; margins are the differences of rewards; logps are log-probabilities of answers.
 */
export const preferenceFigures = [
  "rewards/chosen",
  "rewards/rejected",
  "rewards/accuracies",
  "rewards/margins",
  "logps/chosen",
  "logps/rejected",
] as const;
