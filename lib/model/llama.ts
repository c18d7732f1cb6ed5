import { recompute } from "../core/autograd.js";
import { checkInteger, checkOptions } from "../core/check.js";
import { zeros } from "../core/create.js";
import { ArgumentError, ConfigError, ShapeError } from "../core/errors.js";
import { keep, outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import {
  Embedding,
  Linear,
  Module,
  type Parameter,
  type ParameterGroupSpec,
  RMSNorm,
  type StoreOptions,
} from "../nn/index.js";
import {
  attention,
  attentionCached,
  attentionPaged,
  type PagedPlaces,
  rope,
  ropeTable,
  swiglu,
} from "../ops/index.js";
import { checkContext, checkIds } from "./batch.js";
import type { Cost } from "./cost.js";
import type { HuggingFaceFiles } from "./files.js";
import { type Cache, type Context, LanguageModel, type PagedCache } from "./language-model.js";
import { type LlamaConfig, validateLlamaConfig } from "./llama-config.js";
import { llamaCost } from "./llama-cost.js";
import { llamaFiles } from "./llama-files.js";

/** A layer's keys and values of earlier tokens. */
type LayerCache = { layer: Tensor; position: number } | { layer: Tensor; places: PagedPlaces };

/**
 * Causal self-attention with rotary positions and grouped key/value heads. One product computes q,
 * k and v.
 */
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

  forward(x: Tensor, table: Tensor, { firstKey, positions }: Context, cache?: LayerCache): Tensor {
    const { heads, kvHeads } = this.config;
    const paged = cache && "places" in cache ? cache : null;
    const position = cache && "position" in cache ? cache.position : 0;
    const turned = paged?.places.positions ?? positions;
    const rotated = {
      heads: heads + 2 * kvHeads,
      rotatedHeads: heads + kvHeads,
      inPlace: true,
      ...(turned ? { positions: turned } : { position }),
    };
    const qkv = rope(this.qkv.forward(x), table, rotated);
    if (paged) {
      return this.output.forward(
        attentionPaged(qkv, paged.layer, paged.places, { heads, kvHeads }),
      );
    }
    const options = { heads, kvHeads, ...(firstKey && { firstKey }) };
    const mixed = cache
      ? attentionCached(qkv, cache.layer, { ...options, position })
      : attention(qkv, options);
    return this.output.forward(mixed);
  }
}

/**
 * SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)). One product computes gate
 * and up.
 */
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

/**
 * One layer. The residual stream travels as a pair [stream, change]; the next norm computes their
 * sum.
 */
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
    context: Context,
    recomputeFfn: boolean,
    cache?: LayerCache,
  ): readonly [Tensor, Tensor] {
    const [x, normed] = change
      ? this.attentionNorm.forwardAdd(stream, change)
      : [stream, this.attentionNorm.forward(stream)];
    const attended = this.attention.forward(normed, table, context, cache);
    const [y, normedAgain] = this.feedForwardNorm.forwardAdd(x, attended);
    const ffn = (input: Tensor): readonly [Tensor] => [this.feedForward.forward(input)];
    const [out] = recomputeFfn ? recompute("ffn", [normedAgain], ffn) : ffn(normedAgain);
    return [y, out];
  }
}

/** A Llama (Touvron et al. 2023, arXiv 2302.13971; grouped heads as in arXiv 2307.09288). */
export class Llama extends LanguageModel {
  readonly config: LlamaConfig;
  readonly embedding: Embedding;
  readonly blocks: readonly Block[];
  readonly norm: RMSNorm;
  /** Output head; the embedding itself if tied. */
  readonly head: Embedding | Linear;
  #ropeTable: Tensor | null = null;

  /**
   * Describes the model without allocating memory. `Llama.create` makes a model that can compute.
   * @throws ConfigError with all problems of the config at once
   */
  constructor(config: LlamaConfig) {
    super();
    const problems = validateLlamaConfig(config);
    if (problems.length > 0) throw new ConfigError("model", problems);
    this.config = config;
    const { vocabSize, hiddenSize, layers, rmsNormEps } = config;
    // TinyLlama's initialisation: GPT-NeoX's small init, with smaller values for weights that write
    // into the residual stream.
    const std = Math.sqrt(2 / (5 * hiddenSize));
    const residualStd = 1 / Math.sqrt(hiddenSize) / layers;
    this.embedding = new Embedding(vocabSize, hiddenSize, std);
    this.blocks = Array.from({ length: layers }, () => new Block(config, std, residualStd));
    this.norm = new RMSNorm(hiddenSize, rmsNormEps);
    this.head = config.tieEmbeddings ? this.embedding : new Linear(hiddenSize, vocabSize, std);
  }

  /**
   * A model with memory on a device, initialised from a seed.
   * @throws ConfigError with all problems of the config at once
   * @throws ArgumentError for invalid options
   */
  static async create(config: LlamaConfig, options: StoreOptions = {}): Promise<Llama> {
    return new Llama(config).allocate(options);
  }

  override get headWeight(): Parameter {
    return this.head.weight;
  }

  override get files(): HuggingFaceFiles {
    return llamaFiles(this);
  }

  override get cost(): Cost {
    return llamaCost(this.config);
  }

  override hidden(ids: Tensor, cache?: Cache | PagedCache, context: Context = {}): Tensor {
    this.#checkIds(ids, cache);
    checkOptions("Llama", context, ["firstKey", "positions"]);
    checkContext("Llama", context, ids);
    const table = this.#table();
    let stream = this.embedding.forward(ids);
    let change: Tensor | null = null;
    for (const [index, block] of this.blocks.entries()) {
      const layer = cache && layerOf(cache, index);
      const forward = (x: Tensor, dx: Tensor | null): readonly [Tensor, Tensor] =>
        block.forward(x, dx, table, context, this.recompute === "ffn", layer);
      const inputs: readonly [Tensor, Tensor | null] = [stream, change];
      // A block's own scope frees all tensors that neither the tape nor the next block holds.
      [stream, change] = scope(() => {
        if (this.recompute !== "block" || cache) return forward(...inputs);
        const tensors = inputs.filter((input) => input !== null);
        return recompute("block", tensors, (x, dx) => forward(x as Tensor, dx ?? null));
      });
      // Only the tape may still need the block's inputs; it does not need the change, which is in
      // the sum.
      for (const input of inputs) input?.dispose();
    }
    if (cache && !isPaged(cache)) cache.position += ids.shape[1] as number;
    const [sum, normed] = this.norm.forwardAdd(stream, change as Tensor);
    for (const tensor of [stream, change, sum]) tensor?.dispose();
    return normed;
  }

  /**
   * An empty cache for `length` tokens of each of `batch` sequences, with one tensor (batch, 2,
   * kvHeads, length, headSize) per layer. It belongs to the current scope.
   */
  override createCache(batch: number, length = this.config.contextLength): Cache {
    checkInteger("createCache", "batch", batch, { min: 1 });
    checkInteger("createCache", "length", length, { min: 1 });
    const { kvHeads, headSize } = this.config;
    const { device, dtype } = this.store;
    const layers = this.blocks.map(() =>
      zeros([batch, 2, kvHeads, length, headSize], { device, dtype }),
    );
    return { layers, position: 0 };
  }

  /** One tensor (count, 2, kvHeads, size, headSize) per layer. */
  override createPages(count: number, size: number): readonly Tensor[] {
    checkInteger("createPages", "count", count, { min: 1 });
    checkInteger("createPages", "size", size, { min: 1 });
    const { kvHeads, headSize } = this.config;
    const { device, dtype } = this.store;
    return this.blocks.map(() => zeros([count, 2, kvHeads, size, headSize], { device, dtype }));
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

  override dispose(): void {
    this.#ropeTable?.dispose();
    super.dispose();
  }

  #table(): Tensor {
    const { contextLength, headSize, ropeTheta } = this.config;
    this.#ropeTable ??= outsideScopes(() =>
      keep(ropeTable(contextLength, headSize, ropeTheta, this.device)),
    );
    return this.#ropeTable;
  }

  #checkCache(cache: Cache | PagedCache): void {
    const { layers, position } = (cache ?? {}) as Partial<Cache>;
    if (!Array.isArray(layers) || layers.length !== this.blocks.length) {
      throw new ArgumentError(
        `[Llama] expected what createCache() makes for cache, with ${this.blocks.length} layers; ` +
          "firstKey and positions come after it",
      );
    }
    if (!isPaged(cache)) checkInteger("Llama", "cache.position", position, { min: 0 });
  }

  #checkIds(ids: Tensor, cache?: Cache | PagedCache): void {
    const { contextLength } = this.config;
    checkIds("Llama", "ids", ids);
    if (cache !== undefined) this.#checkCache(cache);
    // The positions of a paged cache are on the device. The rotary table refuses those beyond it.
    if (cache && isPaged(cache)) return;
    const end = (cache?.position ?? 0) + (ids.shape[1] as number);
    if (end > contextLength) {
      throw new ShapeError(
        `[Llama] ${end} tokens are more than the model's context of ${contextLength}`,
      );
    }
  }
}

function isPaged(cache: Cache | PagedCache): cache is PagedCache {
  return "table" in cache;
}

function layerOf(cache: Cache | PagedCache, index: number): LayerCache {
  const layer = cache.layers[index] as Tensor;
  if (!isPaged(cache)) return { layer, position: cache.position };
  const { table, sequences, positions } = cache;
  return { layer, places: { table, sequences, positions } };
}
