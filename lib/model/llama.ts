import { recompute } from "../core/autograd.js";
import { checkInteger, checkTensor } from "../core/check.js";
import { zeros } from "../core/create.js";
import type { Device } from "../core/device.js";
import { ArgumentError, ConfigError, ShapeError } from "../core/errors.js";
import { keep, outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import {
  Embedding,
  Linear,
  Module,
  type ParameterGroupSpec,
  ParameterStore,
  RMSNorm,
  type StoreOptions,
} from "../nn/index.js";
import {
  attention,
  attentionCached,
  linear,
  linearCrossEntropy,
  rope,
  ropeTable,
  swiglu,
} from "../ops/index.js";
import { type LlamaConfig, validateLlamaConfig } from "./config.js";
import { type DocumentOptions, type Documents, documentsOf } from "./documents.js";

export type { DocumentOptions } from "./documents.js";

/** What is computed again in backward instead of kept: nothing, the feed-forward layer, or whole blocks. */
export type Recompute = "none" | "ffn" | "block";

/** Keys and values of the tokens so far, for generation: one tensor (batch, 2, kvHeads, length, headSize) a layer. */
export interface KeyValueCache {
  readonly layers: readonly Tensor[];
  /** Tokens already in the cache. */
  position: number;
}

/** Causal self-attention with rotary positions and grouped key/value heads; q, k and v come from one product. */
class Attention extends Module {
  readonly qkv: Linear;
  readonly output: Linear;
  readonly config: LlamaConfig;

  constructor(config: LlamaConfig, std: number, residualStd: number) {
    super();
    const { hiddenSize, heads, kvHeads, headSize } = config;
    this.config = config;
    this.qkv = new Linear(hiddenSize, (heads + 2 * kvHeads) * headSize, std);
    this.output = new Linear(heads * headSize, hiddenSize, residualStd);
  }

  forward(
    x: Tensor,
    table: Tensor,
    { mask, positions }: Documents,
    cache?: { layer: Tensor; position: number },
  ): Tensor {
    const { heads, kvHeads } = this.config;
    const position = cache?.position ?? 0;
    const rotated = {
      heads: heads + 2 * kvHeads,
      rotatedHeads: heads + kvHeads,
      position,
      inPlace: true,
      ...(positions && { positions }),
    };
    const qkv = rope(this.qkv.forward(x), table, rotated);
    const mixed = cache
      ? attentionCached(qkv, cache.layer, { heads, kvHeads, position })
      : attention(qkv, { heads, kvHeads, ...(mask && { firstKey: mask }) });
    return this.output.forward(mixed);
  }
}

/** SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)); gate and up come from one product. */
class FeedForward extends Module {
  readonly gateUp: Linear;
  readonly down: Linear;

  constructor({ hiddenSize, intermediateSize }: LlamaConfig, std: number, residualStd: number) {
    super();
    this.gateUp = new Linear(hiddenSize, 2 * intermediateSize, std);
    this.down = new Linear(intermediateSize, hiddenSize, residualStd);
  }

  forward(x: Tensor): Tensor {
    return this.down.forward(swiglu(this.gateUp.forward(x)));
  }
}

/** One layer. The residual stream travels as a pair [stream, change]: their sum is made inside the next norm. */
class Block extends Module {
  readonly attentionNorm: RMSNorm;
  readonly attention: Attention;
  readonly feedForwardNorm: RMSNorm;
  readonly feedForward: FeedForward;

  constructor(config: LlamaConfig, std: number, residualStd: number) {
    super();
    this.attentionNorm = new RMSNorm(config.hiddenSize, config.rmsNormEps);
    this.attention = new Attention(config, std, residualStd);
    this.feedForwardNorm = new RMSNorm(config.hiddenSize, config.rmsNormEps);
    this.feedForward = new FeedForward(config, std, residualStd);
  }

  forward(
    stream: Tensor,
    change: Tensor | null,
    table: Tensor,
    documents: Documents,
    recomputeFfn: boolean,
    cache?: { layer: Tensor; position: number },
  ): readonly [Tensor, Tensor] {
    const [x, normed] = change
      ? this.attentionNorm.forwardAdd(stream, change)
      : [stream, this.attentionNorm.forward(stream)];
    const attended = this.attention.forward(normed, table, documents, cache);
    const [y, normedAgain] = this.feedForwardNorm.forwardAdd(x, attended);
    const ffn = (input: Tensor): readonly [Tensor] => [this.feedForward.forward(input)];
    const [out] = recomputeFfn ? recompute("ffn", [normedAgain], ffn) : ffn(normedAgain);
    return [y, out];
  }
}

/** A Llama (Touvron et al. 2023, arXiv 2302.13971; grouped heads as in arXiv 2307.09288). */
export class Llama extends Module {
  readonly config: LlamaConfig;
  readonly embedding: Embedding;
  readonly blocks: readonly Block[];
  readonly norm: RMSNorm;
  /** Output head; the embedding itself when tied. */
  readonly head: Embedding | Linear;
  /** What backward computes again to save memory. */
  recompute: Recompute = "none";
  #store: ParameterStore | null = null;
  #ropeTable: Tensor | null = null;

  /**
   * Describes the model without memory; `Llama.create` makes one that computes.
   * @throws ConfigError with all problems of the config at once
   */
  constructor(config: LlamaConfig) {
    super();
    const problems = validateLlamaConfig(config);
    if (problems.length > 0) throw new ConfigError("model", problems);
    this.config = config;
    const { vocabSize, hiddenSize, layers, rmsNormEps } = config;
    // TinyLlama's initialisation: GPT-NeoX's small init, and less for what writes into the residual stream.
    const std = Math.sqrt(2 / (5 * hiddenSize));
    const residualStd = 1 / Math.sqrt(hiddenSize) / layers;
    this.embedding = new Embedding(vocabSize, hiddenSize, std);
    this.blocks = Array.from({ length: layers }, () => new Block(config, std, residualStd));
    this.norm = new RMSNorm(hiddenSize, rmsNormEps);
    this.head = config.tieEmbeddings ? this.embedding : new Linear(hiddenSize, vocabSize, std);
  }

  /**
   * A model with memory on a device, initialised from a seed.
   * @throws ConfigError with all problems of the config at once, ArgumentError for options that do not fit
   */
  static async create(config: LlamaConfig, options: StoreOptions = {}): Promise<Llama> {
    const model = new Llama(config);
    model.#store = new ParameterStore(model, options);
    return model;
  }

  /** The parameters' memory. @throws ShapeError for a model without memory */
  get store(): ParameterStore {
    if (!this.#store) throw new ShapeError("[Llama] this model has no memory: use Llama.create()");
    return this.#store;
  }

  get device(): Device {
    return this.store.device;
  }

  /**
   * Hidden states after the last norm.
   * @param ids (batch, time) i32
   * @param cache for generation: the tokens so far; not together with documents
   * @returns (batch, time, hidden)
   */
  hidden(ids: Tensor, cache?: KeyValueCache, options: DocumentOptions = {}): Tensor {
    this.#checkIds(ids, cache);
    const starts = documentsOf(options, ids, cache !== undefined);
    const table = this.#table();
    let stream = this.embedding.forward(ids);
    let change: Tensor | null = null;
    for (const [index, block] of this.blocks.entries()) {
      const layer = cache && { layer: cache.layers[index] as Tensor, position: cache.position };
      const forward = (x: Tensor, dx: Tensor | null): readonly [Tensor, Tensor] =>
        block.forward(x, dx, table, starts, this.recompute === "ffn", layer);
      const inputs: readonly [Tensor, Tensor | null] = [stream, change];
      // A block's own scope: what neither the tape nor the next block holds is freed here.
      [stream, change] = scope(() => {
        if (this.recompute !== "block" || cache) return forward(...inputs);
        const tensors = inputs.filter((input) => input !== null);
        return recompute("block", tensors, (x, dx) => forward(x as Tensor, dx ?? null));
      });
      // Only the tape may still need the block's inputs; it does not need the change, which is in the sum.
      for (const input of inputs) input?.dispose();
    }
    if (cache) cache.position += ids.shape[1] as number;
    const [sum, normed] = this.norm.forwardAdd(stream, change as Tensor);
    for (const tensor of [stream, change, sum]) tensor?.dispose();
    return normed;
  }

  /** Logits of every position. @param ids (batch, time) i32 @returns (batch, time, vocab) */
  forward(ids: Tensor, cache?: KeyValueCache, options: DocumentOptions = {}): Tensor {
    return linear(this.hidden(ids, cache, options), this.head.weight.tensor);
  }

  /**
   * Mean cross-entropy of predicting `targets` in nats, without logits in memory.
   * @param inputs (batch, time) i32
   * @param targets (batch, time) i32, not shifted any further; -100 is left out
   * @param options whether documents see each other, and where positions count from
   * @returns f32, a scalar of shape []
   */
  loss(inputs: Tensor, targets: Tensor, options: DocumentOptions = {}): Tensor {
    const hidden = this.hidden(inputs, undefined, options);
    const loss = linearCrossEntropy(hidden, this.head.weight.tensor, targets);
    hidden.dispose();
    return loss;
  }

  /** An empty cache for `length` tokens. It belongs to the current scope. */
  createCache(batch: number, length = this.config.contextLength): KeyValueCache {
    checkInteger("createCache", "batch", batch, { min: 1 });
    checkInteger("createCache", "length", length, { min: 1 });
    const { kvHeads, headSize } = this.config;
    const { device, dtype } = this.store;
    const layers = this.blocks.map(() =>
      zeros([batch, 2, kvHeads, length, headSize], { device, dtype }),
    );
    return { layers, position: 0 };
  }

  /** One flat group for each block, one for the embedding, one for the last norm and the head. */
  override parameterGroups(): ParameterGroupSpec[] {
    const last = new Map([
      ...this.norm.namedParameters("norm."),
      ...(this.head === this.embedding ? [] : this.head.namedParameters("head.")),
    ]);
    return [
      { name: "embedding", parameters: this.embedding.namedParameters("embedding.") },
      ...this.blocks.map((block, index) => ({
        name: `blocks.${index}`,
        parameters: block.namedParameters(`blocks.${index}.`),
      })),
      { name: "head", parameters: last },
    ];
  }

  dispose(): void {
    this.#ropeTable?.dispose();
    this.#store?.dispose();
  }

  #table(): Tensor {
    const { contextLength, headSize, ropeTheta } = this.config;
    this.#ropeTable ??= outsideScopes(() =>
      keep(ropeTable(contextLength, headSize, ropeTheta, this.device)),
    );
    return this.#ropeTable;
  }

  #checkCache(cache: KeyValueCache): void {
    const { layers, position } = (cache ?? {}) as Partial<KeyValueCache>;
    if (!Array.isArray(layers) || layers.length !== this.blocks.length) {
      throw new ArgumentError(
        `[Llama] expected what createCache() makes for cache, with ${this.blocks.length} layers; ` +
          "options for documents come after it",
      );
    }
    checkInteger("Llama", "cache.position", position, { min: 0 });
  }

  #checkIds(ids: Tensor, cache?: KeyValueCache): void {
    const { contextLength } = this.config;
    checkTensor("Llama", "ids", ids);
    if (ids.dtype !== "i32" || ids.rank !== 2) {
      throw new ShapeError(
        `[Llama] expected token ids i32 (batch, time), got ${ids.dtype} [${ids.shape}]`,
      );
    }
    if (cache !== undefined) this.#checkCache(cache);
    const end = (cache?.position ?? 0) + (ids.shape[1] as number);
    if (end > contextLength) {
      throw new ShapeError(
        `[Llama] ${end} tokens are more than the model's context of ${contextLength}`,
      );
    }
  }
}
