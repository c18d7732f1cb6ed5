// A custom model on the plain operations: it predicts the next character from the last few (Bengio
// et al. 2003). Llama is built from the same modules, parameters, optimizer and scopes.
import {
  AdamW,
  add,
  crossEntropy,
  Embedding,
  Linear,
  Module,
  Parameter,
  ParameterStore,
  reshape,
  scope,
  type Tensor,
  tanh,
  tensor,
} from "llamaforge";

class CharacterModel extends Module {
  readonly embedding: Embedding;
  readonly hidden: Linear;
  readonly bias: Parameter;
  readonly output: Linear;
  readonly width: number;

  constructor(characters: number, context: number, size = 16, hidden = 64) {
    super();
    this.width = context * size;
    this.embedding = new Embedding(characters, size, 1);
    this.hidden = new Linear(this.width, hidden, 1 / Math.sqrt(this.width));
    this.bias = new Parameter([hidden], { kind: "constant", value: 0 });
    this.output = new Linear(hidden, characters, 1 / Math.sqrt(hidden));
  }

  /** @param ids (batch, context) i32 @returns logits (batch, characters) */
  forward(ids: Tensor): Tensor {
    const features = reshape(this.embedding.forward(ids), [ids.shape[0] as number, this.width]);
    return this.output.forward(tanh(add(this.hidden.forward(features), this.bias.tensor)));
  }
}

/**
 * Trains on all windows of a text at once.
 * @returns the loss in nats per character of the first and the last step
 */
export async function trainCharacters(
  text: string,
  steps = 200,
  context = 4,
): Promise<{ first: number; last: number }> {
  const alphabet = [...new Set(text)].sort();
  const codes = [...text].map((character) => alphabet.indexOf(character));
  const rows = codes.slice(context).map((_, start) => codes.slice(start, start + context));
  const model = new CharacterModel(alphabet.length, context);
  const store = new ParameterStore(model, { seed: 1 });
  const optimizer = new AdamW(store, { weightDecay: 0.01, decay: "matrices" });

  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    using _ = scope();
    const loss = crossEntropy(
      model.forward(tensor(rows, { dtype: "i32" })),
      tensor(codes.slice(context), { dtype: "i32" }),
    );
    loss.backward();
    optimizer.step({ lr: 0.01, clip: 1 });
    losses.push(await loss.item());
  }
  optimizer.dispose();
  store.dispose();
  return { first: losses[0] as number, last: losses.at(-1) as number };
}
