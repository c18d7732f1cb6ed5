// A language model of one's own, trained by the Trainer: next-character prediction from the last few characters, after
// Bengio et al. 2003. The model, the source of batches, the schedule and the callback are all written here; memory,
// gradients, clipping, the step guard and figures come from the library.
import {
  AdamW,
  add,
  type BatchSource,
  concat,
  Embedding,
  type HostBatch,
  LanguageModel,
  Linear,
  type ModelConfig,
  Parameter,
  slice,
  type Tensor,
  Trainer,
  tanh,
  zeros,
} from "llamaforge";

interface CharacterConfig extends ModelConfig {
  /** Characters that a prediction looks back at, the current one included. */
  window: number;
  embeddingSize: number;
  hiddenSize: number;
}

class CharacterModel extends LanguageModel {
  readonly config: CharacterConfig;
  readonly embedding: Embedding;
  readonly mix: Linear;
  readonly bias: Parameter;
  readonly head: Linear;

  constructor(config: CharacterConfig) {
    super();
    const { vocabSize, window, embeddingSize, hiddenSize } = config;
    const width = window * embeddingSize;
    this.config = config;
    this.embedding = new Embedding(vocabSize, embeddingSize, 1);
    this.mix = new Linear(width, hiddenSize, 1 / Math.sqrt(width));
    this.bias = new Parameter([hiddenSize], { kind: "constant", value: 0 });
    this.head = new Linear(hiddenSize, vocabSize, 1 / Math.sqrt(hiddenSize));
  }

  override get headWeight(): Parameter {
    return this.head.weight;
  }

  /** @param ids (batch, time) i32 @returns (batch, time, hidden) */
  override hidden(ids: Tensor): Tensor {
    const now = this.embedding.forward(ids);
    const [batch = 0, time = 0, size = 0] = now.shape;
    const { dtype, device } = now;
    // The embeddings of k characters ago stand k places later, behind zeros.
    const earlier = Array.from({ length: this.config.window - 1 }, (_, i) =>
      concat(
        [
          zeros([batch, i + 1, size], { dtype, device }),
          slice(now, [0, 0, 0], [batch, time - i - 1, size]),
        ],
        1,
      ),
    );
    const features = concat([now, ...earlier], -1);
    return tanh(add(this.mix.forward(features), this.bias.tensor));
  }
}

/** Batches of a text's characters, from the beginning again when it ends. */
function charactersOf(codes: readonly number[], rows: number, time: number): BatchSource {
  let at = 0;
  const take = (): number[] => {
    if (at + time + 1 > codes.length) at = 0;
    const window = codes.slice(at, at + time + 1);
    at += time;
    return window;
  };
  return {
    next: async (): Promise<HostBatch> => {
      const windows = Array.from({ length: rows }, take);
      return {
        inputs: Int32Array.from(windows.flatMap((window) => window.slice(0, -1))),
        targets: Int32Array.from(windows.flatMap((window) => window.slice(1))),
        count: rows,
      };
    },
  };
}

/** Trains on a text of at least `time` + 1 characters. @returns nats per character at the first and the last step */
export async function trainCharacters(
  text: string,
  steps = 200,
  time = 16,
): Promise<{ first: number; last: number }> {
  const alphabet = [...new Set(text)].sort();
  const codes = [...text].map((character) => alphabet.indexOf(character));
  const model = new CharacterModel({
    vocabSize: alphabet.length,
    contextLength: time,
    window: 4,
    embeddingSize: 16,
    hiddenSize: 64,
  }).allocate({ seed: 1 });
  const losses: number[] = [];
  const trainer = new Trainer({
    model,
    optimizer: new AdamW(model.store, { weightDecay: 0.01, decay: "matrices" }),
    batches: charactersOf(codes, 4, time),
    schedule: (step) => 0.01 * (1 - step / steps), // linear, to nothing
    steps,
    onStep: ({ loss }) => losses.push(loss),
  });
  for await (const { step, loss } of trainer.run()) {
    if (step % 100 === 0) console.log(`step ${step}: ${loss.toFixed(3)} nats per character`);
  }
  trainer.dispose();
  return { first: losses[0] as number, last: losses.at(-1) as number };
}
