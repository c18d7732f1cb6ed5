import { noGrad } from "../core/autograd.js";
import {
  checkBoolean,
  checkChoice,
  checkFunction,
  checkInstance,
  checkInteger,
} from "../core/check.js";
import type { Device } from "../core/device.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import { Module, Parameter, ParameterStore, type StoreOptions } from "../nn/index.js";
import {
  linear,
  linearCrossEntropy,
  linearTargetScores,
  linearTokenLosses,
  type PagedPlaces,
  type TargetScores,
} from "../ops/index.js";
import { type Batch, checkBatch } from "./batch.js";
import { type Cost, plainCost } from "./cost.js";
import { type HuggingFaceFiles, plainFiles } from "./files.js";
import type { Fp8Monitor } from "./fp8-monitor.js";

/**
 * Activations that backward recomputes instead of keeping: none, those of the feed-forward layers,
 * or those of whole blocks.
 */
export type Recompute = "none" | "ffn" | "block";

/** The sizes that every language model has. */
export interface ModelConfig {
  /** Rows of the output head. Every token id is below this number. */
  vocabSize: number;
  /** Longest sequence that the model is made for. */
  contextLength: number;
}

/** Keys and values of all tokens so far, for generation. */
export interface Cache {
  /** One tensor per layer. Its first axis is the sequence; the model decides the other axes. */
  readonly layers: readonly Tensor[];
  /** Number of tokens in the cache. */
  position: number;
}

/**
 * Tokens of many sequences, whose keys and values lie in pages that an engine divides among the
 * sequences.
 */
export interface PagedCache extends PagedPlaces {
  /** One tensor per layer, as `createPages` makes them. */
  readonly layers: readonly Tensor[];
  /** The row of `table` that each token belongs to, (batch, time). */
  readonly sequences: Tensor;
  /** Whether token n belongs to row n, and each sequence has one token: decoding. Default: false. */
  readonly oneEach?: boolean;
}

/** Inputs of a model besides the token ids: attention limits and positions. */
export type Context = Pick<Batch, "firstKey" | "positions">;

/**
 * A language model: the interface that training, evaluation, checkpoints, plans and generation use.
 * A custom model implements `config`, `hidden` and `headWeight`, and may override the rest.
 *
 *     class Mine extends LanguageModel { ... }
 *     const model = new Mine(config).allocate({ device, seed: 1 });
 *     model.loss(batch).backward();
 */
export abstract class LanguageModel extends Module {
  abstract readonly config: ModelConfig;
  #recompute: Recompute = "none";
  #store: ParameterStore | null = null;

  /**
   * Activations that backward recomputes to save memory. A model without recomputation ignores
   * this. Default: "none".
   * @throws ArgumentError for any other value
   */
  get recompute(): Recompute {
    return this.#recompute;
  }

  set recompute(recompute: Recompute) {
    checkChoice(this.constructor.name, "recompute", recompute, ["none", "ffn", "block"]);
    this.#recompute = recompute;
  }

  /**
   * Whether the products with the blocks' weights run in fp8: a mode of training with bf16 weights,
   * which a cache (generation) leaves. Default: false.
   * @throws ArgumentError for a model that has no such products
   */
  get fp8(): boolean {
    return false;
  }

  set fp8(fp8: boolean) {
    checkBoolean(this.constructor.name, "fp8", fp8);
    if (fp8)
      throw new ArgumentError(`[${this.constructor.name}] this model has no products in fp8`);
  }

  /**
   * Runs a function in which the model computes in bf16 although `fp8` is set. Checkpoints hold bf16
   * weights, so validation and scores are computed like this: they are those of the checkpoint.
   * @param run enqueues a pass; it is not awaited
   */
  withoutFp8<T>(run: () => T): T {
    checkFunction(this.constructor.name, "run", run);
    return run();
  }

  /** Whether a pass that is enqueued now runs in fp8. */
  get computesInFp8(): boolean {
    return this.fp8;
  }

  /** Watches the tensors in fp8, and keeps layers out of it; null without fp8. */
  get fp8Monitor(): Fp8Monitor | null {
    return null;
  }

  /**
   * Hidden states before the output head, after the last norm.
   * @param ids (batch, time) i32
   * @param cache the tokens before `ids`; the call adds `ids` to it. With a paged cache, each token
   *   belongs to the sequence and stands at the position that the cache names, and `context` is empty
   * @returns (batch, time, hidden)
   */
  abstract hidden(ids: Tensor, cache?: Cache | PagedCache, context?: Context): Tensor;

  /**
   * Weight of the output head, (vocabulary, hidden). With tied embeddings, it is the embedding's.
   */
  abstract get headWeight(): Parameter;

  /**
   * Allocates the parameters and initialises them.
   * @throws ArgumentError for invalid options, or when the model has memory already
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
  forward(ids: Tensor, cache?: Cache | PagedCache, context?: Context): Tensor {
    return linear(this.hidden(ids, cache, context), this.#head());
  }

  /**
   * Mean cross-entropy in nats over the targets that are not ignored. The logits are never held in
   * memory as a whole.
   * @returns f32, one element without axes; NaN if every target is ignored
   */
  loss(batch: Batch): Tensor {
    checkBatch("loss", batch);
    const hidden = this.hidden(batch.inputs, undefined, contextOf(batch));
    const loss = linearCrossEntropy(hidden, this.#head(), batch.targets);
    hidden.dispose();
    return loss;
  }

  /**
   * Cross-entropy of each target in nats, for losses that are more than their mean. The logits are
   * never held in memory as a whole; backward computes them again.
   * @returns (batch, time) f32; 0 where the target is ignored
   */
  targetLosses(batch: Batch): Tensor {
    checkBatch("targetLosses", batch);
    const hidden = this.hidden(batch.inputs, undefined, contextOf(batch));
    const losses = linearTokenLosses(hidden, this.#head(), batch.targets);
    hidden.dispose();
    return losses;
  }

  /**
   * Cross-entropy of each target in nats, for evaluation: without a gradient, and without holding
   * all logits in memory.
   * @returns (batch, time) f32; 0 where the target is ignored
   */
  tokenLosses(batch: Batch): Tensor {
    checkBatch("tokenLosses", batch);
    return noGrad(() => this.targetLosses(batch));
  }

  /** Whether training does something at random, such as dropout. Default: false. */
  get isRandom(): boolean {
    return false;
  }

  /**
   * Runs a forward and backward pass of training, in which the model does what it does at random.
   * Outside of such a pass it does not.
   * @param firstRow place of the batch's first row among all rows of the run, from 0 on, which
   *   seeds the random numbers: a row meets the same ones in whatever batch and process it is
   */
  inTraining<T>(firstRow: number, pass: () => T): T {
    checkInteger("inTraining", "firstRow", firstRow, { min: 0 });
    checkFunction("inTraining", "pass", pass);
    return pass();
  }

  /**
   * Loss of each target in nats, and whether it is the most likely token, for evaluation: without a
   * gradient, and without holding all logits in memory.
   * @param hidden (..., hidden) results of `hidden()`, or a choice of their rows
   * @param targets (...) i32
   */
  targetScores(hidden: Tensor, targets: Tensor): TargetScores {
    return noGrad(() => linearTargetScores(hidden, this.#head(), targets));
  }

  /**
   * An empty cache for `length` tokens of each of `batch` sequences. It belongs to the current
   * scope.
   * @throws ArgumentError for a model that has no cache
   */
  createCache(batch: number, length: number = this.config.contextLength): Cache {
    checkInteger("createCache", "batch", batch, { min: 1 });
    checkInteger("createCache", "length", length, { min: 1 });
    throw new ArgumentError(
      `[createCache] ${this.constructor.name} computes every token from the whole text: it has no cache`,
    );
  }

  /**
   * Pages for the keys and values of many sequences, one tensor per layer with `count` pages of
   * `size` tokens. They belong to the current scope.
   * @throws ArgumentError for a model that has no paged cache
   */
  createPages(count: number, size: number): readonly Tensor[] {
    checkInteger("createPages", "count", count, { min: 1 });
    checkInteger("createPages", "size", size, { min: 1 });
    throw new ArgumentError(
      `[createPages] ${this.constructor.name} has no paged cache, which generation needs: override createPages`,
    );
  }

  /** Describes the model's checkpoint files: names and shapes of the weights, and `config.json`. */
  get files(): HuggingFaceFiles {
    return plainFiles(this);
  }

  /** Training cost of the model: parameters, FLOPs per token, bytes of activations. */
  get cost(): Cost {
    return plainCost(this);
  }

  /** Frees the model's memory. */
  dispose(): void {
    this.#store?.dispose();
  }

  #head(): Tensor {
    const head: unknown = this.headWeight;
    checkInstance(this.constructor.name, "headWeight", head, Parameter, "a Parameter");
    return head.tensor;
  }
}

function contextOf({ firstKey, positions }: Batch): Context {
  return { ...(firstKey && { firstKey }), ...(positions && { positions }) };
}
