import { noGrad } from "../core/autograd.js";
import { checkInteger } from "../core/check.js";
import type { Device } from "../core/device.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import { Module, type Parameter, ParameterStore, type StoreOptions } from "../nn/index.js";
import { linear, linearCrossEntropy, linearTokenLosses } from "../ops/index.js";
import { type Batch, checkBatch } from "./batch.js";
import { type Cost, plainCost } from "./cost.js";
import { type HuggingFaceFiles, plainFiles } from "./files.js";

/** What backward computes again instead of keeping it: nothing, the feed-forward layers, or whole blocks. */
export type Recompute = "none" | "ffn" | "block";

/** The sizes that every language model has. */
export interface ModelConfig {
  /** Rows of the output head: token ids are below it. */
  vocabSize: number;
  /** Longest sequence that the model is made for. */
  contextLength: number;
}

/** Keys and values of the tokens so far, for generation. */
export interface Cache {
  /** One tensor a layer; a model says what is in them. */
  readonly layers: readonly Tensor[];
  /** Tokens that are in the cache. */
  position: number;
}

/** What a model is told about its input ids beside the ids. */
export type Context = Pick<Batch, "firstKey" | "positions">;

/**
 * A language model: the one thing that training, evaluation, checkpoints, plans and generation know. A model of one's own
 * gives `config`, `hidden` and `headWeight`, and may replace any of the rest.
 *
 *     class Mine extends LanguageModel { ... }
 *     const model = new Mine(config).allocate({ device, seed: 1 });
 *     model.loss(batch).backward();
 */
export abstract class LanguageModel extends Module {
  abstract readonly config: ModelConfig;
  /** What backward computes again to save memory. A model that cannot do so ignores it. */
  recompute: Recompute = "none";
  #store: ParameterStore | null = null;

  /**
   * Hidden states before the output head, after the last norm.
   * @param ids (batch, time) i32
   * @param cache the tokens before `ids`; moved on by them
   * @returns (batch, time, hidden)
   */
  abstract hidden(ids: Tensor, cache?: Cache, context?: Context): Tensor;

  /** Weight of the output head, (vocabulary, hidden); the embedding's where they are tied. */
  abstract get headWeight(): Parameter;

  /**
   * Gives the parameters memory and their first values.
   * @throws ArgumentError for options that do not fit, or when the model has memory already
   */
  allocate(options: StoreOptions = {}): this {
    if (this.#store) throw new ArgumentError("[allocate] this model has memory already");
    this.#store = new ParameterStore(this, options);
    return this;
  }

  /** The parameters' memory. @throws ShapeError for a model without memory */
  get store(): ParameterStore {
    if (this.#store) return this.#store;
    const { name } = this.constructor;
    throw new ShapeError(`[${name}] this model has no memory: use allocate(), or ${name}.create()`);
  }

  get device(): Device {
    return this.store.device;
  }

  /** Logits of every position. @param ids (batch, time) i32 @returns (batch, time, vocabulary) */
  forward(ids: Tensor, cache?: Cache, context?: Context): Tensor {
    return linear(this.hidden(ids, cache, context), this.headWeight.tensor);
  }

  /**
   * Mean cross-entropy in nats over the targets that count, without logits in memory.
   * @returns f32, one element without axes; NaN where no target counts
   */
  loss(batch: Batch): Tensor {
    checkBatch("loss", batch);
    const hidden = this.hidden(batch.inputs, undefined, contextOf(batch));
    const loss = linearCrossEntropy(hidden, this.headWeight.tensor, batch.targets);
    hidden.dispose();
    return loss;
  }

  /**
   * Cross-entropy of each target in nats, without logits in memory and without a gradient: for evaluation.
   * @returns (batch, time) f32; 0 where a target does not count
   */
  tokenLosses(batch: Batch): Tensor {
    checkBatch("tokenLosses", batch);
    return noGrad(() => {
      const hidden = this.hidden(batch.inputs, undefined, contextOf(batch));
      const losses = linearTokenLosses(hidden, this.headWeight.tensor, batch.targets);
      hidden.dispose();
      return losses;
    });
  }

  /**
   * An empty cache for `length` tokens of each of `batch` sequences. It belongs to the current scope.
   * @throws ArgumentError for a model that has no cache
   */
  createCache(batch: number, length: number = this.config.contextLength): Cache {
    checkInteger("createCache", "batch", batch, { min: 1 });
    checkInteger("createCache", "length", length, { min: 1 });
    throw new ArgumentError(
      `[createCache] ${this.constructor.name} computes every token from the whole text: it has no cache`,
    );
  }

  /** Names and shapes of the weights in files, and `config.json`: how a checkpoint writes and reads the model. */
  get files(): HuggingFaceFiles {
    return plainFiles(this);
  }

  /** What the model costs to train: parameters, FLOPs a token, bytes of activations. */
  get cost(): Cost {
    return plainCost(this);
  }

  dispose(): void {
    this.#store?.dispose();
  }
}

function contextOf({ firstKey, positions }: Batch): Context {
  return { ...(firstKey && { firstKey }), ...(positions && { positions }) };
}
