import type { RunConfig } from "../config/index.js";
import { DataError } from "../core/errors.js";
import { Mixture } from "../data/mixture.js";

/** How often a run reads a data set. */
export interface DataRepeats {
  folder: string;
  tokens: number;
  /** Number of passes over the data set, with fractions. */
  epochs: number;
}

/** @param windows trained on in the whole run, over all processes */
export function repeatsOf(mixture: Mixture, windows: number): DataRepeats[] {
  const epochs = mixture.epochsAt(windows);
  return mixture.sources.map(({ folder, dataset }, source) => ({
    folder,
    tokens: dataset.tokens,
    epochs: epochs[source] as number,
  }));
}

/** Notes on the data sets that are smaller than the run's share of them. */
export function repeatNotes(repeats: readonly DataRepeats[]): string[] {
  return repeats
    .filter(({ epochs }) => epochs > 1)
    .map(
      ({ folder, tokens, epochs }) =>
        `${folder} has ${tokens.toLocaleString("en-US")} tokens: the run reads it ${epochs.toFixed(2)} times`,
    );
}

/**
 * How often a planned run will read its data, or the reason why that is unknown (for example, the
 * data does not exist yet).
 */
export async function plannedRepeats(
  config: Pick<RunConfig, "data" | "seed">,
  windows: number,
): Promise<DataRepeats[] | string> {
  const { data, seed } = config;
  try {
    const options = { sequenceLength: data.sequenceLength, seed };
    const mixture = await Mixture.open(data.train, options);
    await mixture.close();
    return repeatsOf(mixture, windows);
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    return error.message.split("\n")[0] as string;
  }
}
