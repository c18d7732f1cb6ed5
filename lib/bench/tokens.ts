import { DataError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";
import { Loader, type LoaderOptions, type WindowSource } from "../data/loader.js";
import { Mixture } from "../data/mixture.js";

/** Source of a benchmark's tokens. */
export interface TokenSource {
  /** `synthetic`, or the data set's folder. */
  readonly description: string;
  /** Opens a loader that reads ahead as in training. @param share of one process among several */
  open(microBatch: number, share?: Pick<LoaderOptions, "rank" | "worldSize">): Loader;
  close(): Promise<void>;
}

/** Random ids. Each window depends only on its own position. */
function syntheticWindows(vocabSize: number, sequenceLength: number): WindowSource {
  return {
    sequenceLength,
    read: async (position, count) => {
      const ids = hostArray("bench", Int32Array, count * (sequenceLength + 1));
      // xorshift (Marsaglia 2003): random enough that no model can predict the ids.
      let state = (Math.imul(position + 1, 0x9e3779b1) | 1) >>> 0;
      for (let i = 0; i < ids.length; i++) {
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        ids[i] = (state >>> 0) % vocabSize;
      }
      return ids;
    },
  };
}

/**
 * Opens a benchmark's tokens.
 * @param folder a data set of `llamaforge prepare`; default: random ids
 * @throws DataError if its ids do not fit the model
 */
export async function openTokens(
  folder: string | undefined,
  vocabSize: number,
  sequenceLength: number,
): Promise<TokenSource> {
  if (folder === undefined) {
    const windows = syntheticWindows(vocabSize, sequenceLength);
    return {
      description: "synthetic",
      open: (batchSize, share) => new Loader(windows, { batchSize, ...share }),
      close: async () => {},
    };
  }
  const mixture = await Mixture.open(folder, { sequenceLength });
  if (mixture.vocabSize > vocabSize) {
    await mixture.close();
    throw new DataError(
      `${folder} has a vocabulary of ${mixture.vocabSize} tokens, the model one of ${vocabSize}: ` +
        "choose a data set or a model (--preset, --config) that go together",
    );
  }
  return {
    description: folder,
    open: (batchSize, share) => new Loader(mixture, { batchSize, ...share }),
    close: () => mixture.close(),
  };
}
