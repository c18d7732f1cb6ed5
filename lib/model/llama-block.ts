import { recompute } from "../core/autograd.js";
import type { Tensor } from "../core/tensor.js";
import { type Fp8Use, Linear, Module, RMSNorm } from "../nn/index.js";
import type { Fp8Observer } from "../ops/fp8.js";
import { fp8NormFeedForward, fp8NormLinear } from "../ops/fp8-linear.js";
import type { Fp8Weights } from "../ops/fp8-weights.js";
import {
  attention,
  attentionCached,
  attentionPaged,
  headNorm,
  linear,
  normLinear,
  type PagedPlaces,
  rope,
  swiglu,
} from "../ops/index.js";
import type { Context } from "./language-model.js";
import type { LlamaConfig } from "./llama-config.js";
import { hasHeadNorm, hasOutputBias, hasQkvBias, rotates, windowOf } from "./llama-variations.js";

/** A layer's keys and values of earlier tokens. */
export type LayerCache =
  | { layer: Tensor; position: number }
  | { layer: Tensor; places: PagedPlaces };

/** A pass of a block whose products run in fp8. */
export interface Fp8Pass {
  weights: Fp8Weights;
  /** Who looks at the tensors of a product. */
  observe: (product: Fp8Product) => Fp8Observer;
}

/** The products of a block with its weights, in the order of the forward pass. */
export const fp8Products = ["qkv", "output", "gateUp", "down"] as const;
export type Fp8Product = (typeof fp8Products)[number];

/** Standard deviations of a block's initial weights. */
export interface BlockInit {
  std: number;
  /** Of weights that write into the residual stream. */
  residualStd: number;
}

/**
 * Causal self-attention with rotary positions and grouped key/value heads. One product computes q,
 * k and v. Relatives of Llama add biases and a norm of each head of q and k, or leave out the
 * rotation.
 */
class Attention extends Module {
  readonly qkv: Linear;
  readonly output: Linear;
  readonly queryNorm: RMSNorm | null;
  readonly keyNorm: RMSNorm | null;
  readonly config: LlamaConfig;
  readonly rotates: boolean;

  constructor(config: LlamaConfig, layer: number, { std, residualStd }: BlockInit) {
    super();
    const { hiddenSize, heads, kvHeads, headSize, rmsNormEps } = config;
    this.config = config;
    this.rotates = rotates(config, layer);
    const parts = [heads, kvHeads, kvHeads].map((count) => count * headSize);
    const packed = (heads + 2 * kvHeads) * headSize;
    this.qkv = new Linear(hiddenSize, packed, std, hasQkvBias(config), parts);
    this.output = new Linear(heads * headSize, hiddenSize, residualStd, hasOutputBias(config));
    this.queryNorm = hasHeadNorm(config) ? new RMSNorm(headSize, rmsNormEps) : null;
    this.keyNorm = hasHeadNorm(config) ? new RMSNorm(headSize, rmsNormEps) : null;
  }

  forward(x: Tensor, table: Tensor, context: Context, cache?: LayerCache): Tensor {
    return this.output.forward(this.mix(this.qkv.forward(x), table, context, cache));
  }

  /** Everything between the two products. qkv may be written over. */
  mix(packed: Tensor, table: Tensor, { firstKey, positions }: Context, cache?: LayerCache): Tensor {
    const { heads, kvHeads } = this.config;
    const paged = cache && "places" in cache ? cache : null;
    const position = cache && "position" in cache ? cache.position : 0;
    const turned = paged?.places.positions ?? positions;
    const qkv = this.#queryKeyValue(packed, table, turned ? { positions: turned } : { position });
    const seen = firstKey && { firstKey };
    if (paged) {
      const places = { ...paged.places, ...seen };
      return attentionPaged(qkv, paged.layer, places, { heads, kvHeads });
    }
    const options = { heads, kvHeads, ...seen };
    return cache
      ? attentionCached(qkv, cache.layer, { ...options, position })
      : attention(qkv, options);
  }

  #queryKeyValue(
    packed: Tensor,
    table: Tensor,
    place: { positions: Tensor } | { position: number },
  ): Tensor {
    const { heads, kvHeads, rmsNormEps: eps } = this.config;
    let qkv = packed;
    if (this.queryNorm && this.keyNorm) {
      const [query, key] = [this.queryNorm.weight.tensor, this.keyNorm.weight.tensor];
      const normed = headNorm(qkv, query, key, { heads, kvHeads, eps });
      qkv.dispose();
      qkv = normed;
    }
    if (!this.rotates) return qkv;
    const rotated = { heads: heads + 2 * kvHeads, rotatedHeads: heads + kvHeads, inPlace: true };
    return rope(qkv, table, { ...rotated, ...place });
  }
}

/**
 * SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)). One product computes gate
 * and up.
 */
class FeedForward extends Module {
  readonly gateUp: Linear;
  readonly down: Linear;

  constructor(config: LlamaConfig, { std, residualStd }: BlockInit) {
    super();
    const { hiddenSize, intermediateSize, feedForwardBias = false } = config;
    const parts = [intermediateSize, intermediateSize];
    this.gateUp = new Linear(hiddenSize, 2 * intermediateSize, std, feedForwardBias, parts);
    this.down = new Linear(intermediateSize, hiddenSize, residualStd, feedForwardBias);
  }

  forward(x: Tensor, fp8?: Record<"gateUp" | "down", Fp8Use>): Tensor {
    return this.down.forward(swiglu(this.gateUp.forward(x, fp8?.gateUp)), fp8?.down);
  }
}

/**
 * One layer. The residual stream travels as a pair [stream, change]; the next norm computes their
 * sum.
 */
export class Block extends Module {
  readonly attentionNorm: RMSNorm;
  readonly attention: Attention;
  readonly feedForwardNorm: RMSNorm;
  readonly feedForward: FeedForward;
  /** Tokens that a token attends to; null for all before it. */
  readonly window: number | null;

  constructor(config: LlamaConfig, layer: number, init: BlockInit) {
    super();
    this.window = windowOf(config, layer);
    this.attentionNorm = new RMSNorm(config.hiddenSize, config.rmsNormEps);
    this.attention = new Attention(config, layer, init);
    this.feedForwardNorm = new RMSNorm(config.hiddenSize, config.rmsNormEps);
    this.feedForward = new FeedForward(config, init);
  }

  /**
   * The residual stream behind this block, and the change that the next block's norm adds to it.
   */
  forward(
    stream: Tensor,
    change: Tensor | null,
    table: Tensor,
    context: Context,
    recomputeFfn: boolean,
    cache?: LayerCache,
    fp8: Fp8Pass | null = null,
  ): readonly [Tensor, Tensor] {
    if (fp8) return this.#forwardFp8(stream, change, table, context, recomputeFfn, fp8);
    if (cache && "places" in cache && this.#isPlain) {
      return this.#step(stream, change, table, context.firstKey, cache);
    }
    const [x, normed] = change
      ? this.attentionNorm.forwardAdd(stream, change)
      : [stream, this.attentionNorm.forward(stream)];
    const attended = this.attention.forward(normed, table, context, cache);
    const [y, normedAgain] = this.feedForwardNorm.forwardAdd(x, attended);
    const ffn = (input: Tensor): readonly [Tensor] => [this.feedForward.forward(input)];
    const [out] = recomputeFfn ? recompute("ffn", [normedAgain], ffn) : ffn(normedAgain);
    return [y, out];
  }

  /** Whether the layer has neither biases nor norms of heads nor adapters. */
  get #isPlain(): boolean {
    const { attention, feedForward } = this;
    const linears = [attention.qkv, attention.output, feedForward.gateUp, feedForward.down];
    return (
      attention.queryNorm === null &&
      linears.every(({ bias, adapter }) => bias === null && adapter === null)
    );
  }

  /** `forward` over a paged cache with fewer, larger operations. */
  #step(
    stream: Tensor,
    change: Tensor | null,
    table: Tensor,
    firstKey: Tensor | undefined,
    { layer, places }: { layer: Tensor; places: PagedPlaces },
  ): readonly [Tensor, Tensor] {
    const { attention, feedForward } = this;
    const { heads, kvHeads, rmsNormEps: eps } = attention.config;
    const weightOf = (part: Linear | RMSNorm) => part.weight.tensor;
    const [x, qkv] = normLinear(
      stream,
      change,
      weightOf(this.attentionNorm),
      weightOf(attention.qkv),
      { eps },
    );
    const mixed = attentionPaged(
      qkv,
      layer,
      { ...places, ...(firstKey && { firstKey }) },
      { heads, kvHeads, ...(attention.rotates && { angles: table }) },
    );
    const attended = linear(mixed, weightOf(attention.output));
    const [y, gated] = normLinear(
      x,
      attended,
      weightOf(this.feedForwardNorm),
      weightOf(feedForward.gateUp),
      { eps, swiglu: true },
    );
    return [y, linear(gated, weightOf(feedForward.down))];
  }

  /**
   * `forward` with its four products in fp8: norms and SwiGLU cast their own results. Adapters need
   * the input of their product in bf16, so the norm or SwiGLU before it stays an operation of its
   * own.
   */
  #forwardFp8(
    stream: Tensor,
    change: Tensor | null,
    table: Tensor,
    context: Context,
    recomputeFfn: boolean,
    { weights, observe }: Fp8Pass,
  ): readonly [Tensor, Tensor] {
    const { attention, feedForward, attentionNorm, feedForwardNorm } = this;
    const use = (product: Fp8Product): Fp8Use => ({ weights, observe: observe(product) });
    const queries = (): readonly [Tensor, Tensor] => {
      const { qkv } = attention;
      if (!qkv.adapter) {
        const watch = observe("qkv");
        return fp8NormLinear(stream, change, attentionNorm.parts, qkv.parts, weights, watch);
      }
      const [x, normed] = change
        ? attentionNorm.forwardAdd(stream, change)
        : [stream, attentionNorm.forward(stream)];
      return [x, qkv.forward(normed, use("qkv"))];
    };
    const [x, qkv] = queries();
    const mixed = attention.mix(qkv, table, context);
    const attended = attention.output.forward(mixed, use("output"));
    const uses = { gateUp: use("gateUp"), down: use("down") };
    if (feedForward.gateUp.adapter || feedForward.down.adapter) {
      const [y, normed] = feedForwardNorm.forwardAdd(x, attended);
      const ffn = (input: Tensor): readonly [Tensor] => [feedForward.forward(input, uses)];
      const [out] = recomputeFfn ? recompute("ffn", [normed], ffn) : ffn(normed);
      return [y, out];
    }
    const watch = { gateUp: uses.gateUp.observe, down: uses.down.observe };
    const second = (sum: Tensor, skip: Tensor): readonly [Tensor, Tensor] => {
      const layers = { gateUp: feedForward.gateUp.parts, down: feedForward.down.parts };
      return fp8NormFeedForward(sum, skip, feedForwardNorm.parts, layers, weights, watch);
    };
    return recomputeFfn
      ? recompute("ffn", [x, attended], (a, b) => second(a as Tensor, b as Tensor))
      : second(x, attended);
  }
}
