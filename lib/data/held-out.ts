import { NoTokensError } from "../core/errors.js";
import { Mixture, type MixtureOptions } from "./mixture.js";
import { TokenDataset } from "./shards.js";

/**
 * Opens the held-out documents of the data sets that have any, mixed by the data sets' weights.
 * @param onNotice called with messages about data sets without held-out documents
 * @returns null if no data set has held-out documents
 * @throws DataError if a data set is damaged
 */
export async function openHeldOut(
  sources: Readonly<Record<string, number>>,
  options: Pick<MixtureOptions, "sequenceLength" | "contextLength" | "seed">,
  onNotice: (message: string) => void,
): Promise<Mixture | null> {
  const split = { ...options, split: "validation" } as const;
  const held: Record<string, number> = {};
  const without: string[] = [];
  for (const [folder, weight] of Object.entries(sources)) {
    try {
      await (await TokenDataset.open(folder, split)).close();
      held[folder] = weight;
    } catch (error) {
      if (!(error instanceof NoTokensError)) throw error;
      without.push(error.message);
    }
  }
  if (Object.keys(held).length === 0) {
    onNotice(`no validation loss: ${without.join("; ")}`);
    return null;
  }
  for (const message of without) onNotice(`not in the validation loss: ${message}`);
  return await Mixture.open(held, split);
}
