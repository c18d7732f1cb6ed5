import { recompute } from "../core/autograd.js";
import { checkBoolean, checkInteger, checkOptions } from "../core/check.js";
import { tensor, zeros } from "../core/create.js";
import { ArgumentError, ConfigError, ShapeError } from "../core/errors.js";
import { keep, outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import {
  Embedding,
  Linear,
  type Parameter,
  type ParameterGroupSpec,
  RMSNorm,
  type StoreOptions,
} from "../nn/index.js";
import { Fp8Weights } from "../ops/fp8-weights.js";
import { normLinear, ropeTable } from "../ops/index.js";
import { checkContext, checkIds } from "./batch.js";
import type { Cost } from "./cost.js";
import type { HuggingFaceFiles } from "./files.js";
import { Fp8Monitor } from "./fp8-monitor.js";
import { type Cache, type Context, LanguageModel, type PagedCache } from "./language-model.js";
import { Block, type Fp8Pass, fp8Products, type LayerCache } from "./llama-block.js";
import { type LlamaConfig, validateLlamaConfig } from "./llama-config.js";
import { llamaCost } from "./llama-cost.js";
import { llamaFiles } from "./llama-files.js";
import { fp8Problems } from "./llama-fp8.js";
import { ropeAngles, ropeFrequencies } from "./rope-scaling.js";
import { windowStarts } from "./window-starts.js";

/**
 * A Llama (Touvron et al. 2023, arXiv 2302.13971; grouped heads as in arXiv 2307.09288), or a
 * relative whose config has variations: Llama 3, Mistral, Qwen2, Qwen3, SmolLM.
 */
export class Llama extends LanguageModel {
  readonly config: LlamaConfig;
  readonly embedding: Embedding;
  readonly blocks: readonly Block[];
  readonly norm: RMSNorm;
  /** Output head; the embedding itself if tied. */
  readonly head: Embedding | Linear;
  #ropeTable: Tensor | null = null;
  #fp8: { weights: Fp8Weights; monitor: Fp8Monitor } | null = null;
  /** Whether passes leave fp8 for the time being. */
  #leavesFp8 = false;

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
    this.blocks = Array.from(
      { length: layers },
      (_, layer) => new Block(config, layer, { std, residualStd }),
    );
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

  override get fp8(): boolean {
    return this.#fp8 !== null;
  }

  override set fp8(fp8: boolean) {
    checkBoolean("Llama", "fp8", fp8);
    if (fp8 === this.fp8) return;
    if (fp8) this.#checkFp8();
    this.#fp8?.weights.dispose();
    this.#fp8 = fp8
      ? {
          weights: new Fp8Weights(!this.store.divided),
          monitor: new Fp8Monitor(this.config.layers, fp8Products),
        }
      : null;
  }

  override withoutFp8<T>(run: () => T): T {
    const outer = this.#leavesFp8;
    this.#leavesFp8 = true;
    try {
      return super.withoutFp8(run);
    } finally {
      this.#leavesFp8 = outer;
    }
  }

  override get computesInFp8(): boolean {
    return this.fp8 && !this.#leavesFp8;
  }

  override get fp8Monitor(): Fp8Monitor | null {
    return this.#fp8?.monitor ?? null;
  }

  override get files(): HuggingFaceFiles {
    return llamaFiles(this);
  }

  override get cost(): Cost {
    return llamaCost(this.config);
  }

  override hidden(ids: Tensor, cache?: Cache | PagedCache, context: Context = {}): Tensor {
    const [stream, change] = this.#layers(ids, cache, context);
    const [sum, normed] = this.norm.forwardAdd(stream, change);
    for (const tensor of [stream, change, sum]) tensor.dispose();
    return normed;
  }

  /** Over a paged cache, the last norm and the head are one operation. */
  override forward(ids: Tensor, cache?: Cache | PagedCache, context: Context = {}): Tensor {
    this.#checkIds(ids, cache, context);
    const isWhole = this.hidden === Llama.prototype.hidden;
    if (!(cache && isPaged(cache) && isWhole)) return super.forward(ids, cache, context);
    const [stream, change] = this.#layers(ids, cache, context);
    const [norm, head] = [this.norm.weight.tensor, this.headWeight.tensor];
    const [sum, logits] = normLinear(stream, change, norm, head, { eps: this.config.rmsNormEps });
    for (const tensor of [stream, change, sum]) tensor.dispose();
    return logits;
  }

  /** The residual stream after all blocks, and the change that the last norm adds to it. */
  #layers(
    ids: Tensor,
    cache: Cache | PagedCache | undefined,
    context: Context,
  ): readonly [Tensor, Tensor] {
    this.#checkIds(ids, cache, context);
    checkOptions("Llama", context, ["firstKey", "positions"]);
    checkContext("Llama", context, ids);
    const table = this.#table();
    const recomputes = this.recompute === "block" && !cache;
    const windowed = this.#windowed(ids, cache, context);
    // Backward may run when the scope of this call has ended. A recomputed block makes its own.
    const narrow = recomputes ? null : windowed();
    let stream = this.embedding.forward(ids);
    let change: Tensor | null = null;
    for (const [index, block] of this.blocks.entries()) {
      const layer = cache && layerOf(cache, index);
      const forward = (x: Tensor, dx: Tensor | null): readonly [Tensor, Tensor] => {
        const seen = block.window === null ? context : (narrow ?? windowed());
        const fp8 = cache ? null : this.#fp8Pass(index);
        return block.forward(x, dx, table, seen, this.recompute === "ffn", layer, fp8);
      };
      const inputs: readonly [Tensor, Tensor | null] = [stream, change];
      // A block's own scope frees all tensors that neither the tape nor the next block holds.
      [stream, change] = scope(() => {
        if (!recomputes) return forward(...inputs);
        const tensors = inputs.filter((input) => input !== null);
        return recompute("block", tensors, (x, dx) => forward(x as Tensor, dx ?? null));
      });
      // Only the tape may still need the block's inputs; it does not need the change, which is in
      // the sum.
      for (const input of inputs) input?.dispose();
    }
    if (narrow && narrow.firstKey !== context.firstKey) narrow.firstKey?.dispose();
    if (cache && !isPaged(cache)) cache.position += ids.shape[1] as number;
    return [stream, change as Tensor];
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
    this.#fp8?.weights.dispose();
    super.dispose();
  }

  #checkFp8(): void {
    if (this.store.dtype !== "bf16") {
      throw new ArgumentError(
        "[Llama] fp8 is a form of bf16 training, but these weights are f32: create the model with dtype bf16",
      );
    }
    const problems = fp8Problems(this.config);
    if (problems.length > 0) throw new ConfigError("model", problems);
  }

  /** How a layer's products run in fp8; null if they run in bf16. */
  #fp8Pass(layer: number): Fp8Pass | null {
    if (this.#leavesFp8 || !this.#fp8?.monitor.uses(layer)) return null;
    const { weights, monitor } = this.#fp8;
    return { weights, observe: (product) => monitor.observer(layer, product) };
  }

  #table(): Tensor {
    this.#ropeTable ??= outsideScopes(() => keep(this.#makeTable()));
    return this.#ropeTable;
  }

  #makeTable(): Tensor {
    const { contextLength, headSize, ropeTheta, ropeScaling } = this.config;
    const { device } = this;
    if (!ropeScaling) return ropeTable(contextLength, headSize, ropeTheta, device);
    const angles = ropeAngles(contextLength, ropeFrequencies(headSize, ropeTheta, ropeScaling));
    return tensor(angles, { shape: [contextLength, headSize / 2, 2], device });
  }

  /** Makes the context of the layers with a sliding window. */
  #windowed(ids: Tensor, cache: Cache | PagedCache | undefined, context: Context): () => Context {
    const { slidingWindow } = this.config;
    if (slidingWindow === undefined) return () => context;
    return () => {
      const places = cache && isPaged(cache) ? cache : { position: cache?.position ?? 0 };
      const limits = "positions" in places ? places.firstKey : context.firstKey;
      const firstKey = windowStarts(slidingWindow, ids, places, limits);
      return firstKey ? { ...context, firstKey } : context;
    };
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

  #checkIds(ids: Tensor, cache: Cache | PagedCache | undefined, context: Context): void {
    const { contextLength } = this.config;
    checkIds("Llama", "ids", ids);
    if (cache !== undefined) this.#checkCache(cache);
    // Positions are on the device. The rotary table refuses those beyond it.
    if ((cache && isPaged(cache)) || context?.positions) return;
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
  const { table, sequences, positions, firstKey, oneEach } = cache;
  const rows = oneEach ? {} : { sequences };
  return { layer, places: { table, ...rows, positions, ...(firstKey && { firstKey }) } };
}
