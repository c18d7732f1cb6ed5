import { differentiable, gradientsEnabled } from "../core/autograd.js";
import {
  checkDType,
  checkFirstKey,
  checkFloat,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
  checkPerToken,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { arange, zeros } from "../core/create.js";
import { ArgumentError, AutogradError, ShapeError } from "../core/errors.js";
import { rowsAreIndependent } from "../core/independent-rows.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import { mul } from "./binary.js";
import { ge, le } from "./compare.js";
import { matmul } from "./matmul.js";
import { permute, reshape, transpose } from "./shape.js";
import { slice, split } from "./slice.js";
import { softmax } from "./softmax.js";
import { where } from "./where.js";

/** Options that all attention operations share. */
export interface AttentionOptions {
  /** Query heads. */
  heads: number;
  /**
   * Key/value heads, a divisor of `heads`. Equal to `heads` it is multi-head attention, 1 is
   * multi-query attention. Default: `heads`.
   */
  kvHeads?: number;
  /** Factor of the scores. Default: 1 / sqrt(headSize). */
  scale?: number;
}

/** Options of `attention`. */
export interface CausalAttentionOptions extends AttentionOptions {
  /**
   * The first token that each token attends to, (batch, time) i32, from 0 to the token's own index,
   * never decreasing along a row. Use the start of each token's document to mask across documents,
   * or max(0, t - W + 1) for a sliding window of W tokens. Other values cause an error at the next
   * wait on the CPU; on a GPU the result is unspecified.
   */
  firstKey?: Tensor | undefined;
}

interface Heads {
  heads: number;
  kvHeads: number;
  headSize: number;
  scale: number;
}

function checkArguments(
  op: string,
  qkv: Tensor,
  options: AttentionOptions,
  known: string[],
): Heads {
  checkFloat(op, "qkv", qkv);
  checkOptions(op, options, ["heads", "kvHeads", "scale", ...known]);
  const { heads, kvHeads = heads } = options ?? {};
  checkInteger(op, "heads", heads, { min: 1 });
  checkInteger(op, "kvHeads", kvHeads, { min: 1, max: heads });
  if (heads % kvHeads !== 0) {
    throw new ArgumentError(
      `[${op}] expected a divisor of heads ${heads} for kvHeads but received ${kvHeads}`,
    );
  }
  checkRank(op, "qkv", qkv, 3);
  const width = qkv.shape[2] as number;
  if (width % (heads + 2 * kvHeads) !== 0) {
    throw new ShapeError(
      `[${op}] expected ${heads} query, ${kvHeads} key and ${kvHeads} value heads in the last axis of qkv ` +
        `but received ${shapeText(qkv.shape)}`,
    );
  }
  const headSize = width / (heads + 2 * kvHeads);
  const { scale = 1 / Math.sqrt(headSize) } = options;
  checkNumber(op, "scale", scale, { min: Number.MIN_VALUE });
  return { heads, kvHeads, headSize, scale };
}

/**
 * Causal softmax attention with grouped key/value heads: o[t] = softmax(scale · q[t] · k[0..t]ᵀ) ·
 * v[0..t]. It never makes a time × time matrix; backward recomputes the probabilities. With
 * `firstKey`, token t attends only to k[firstKey[t]..t], and tiles of earlier keys cost nothing.
 * @param qkv (batch, time, (heads + 2 kvHeads) · headSize) f32 or bf16: all query heads, then all
 *   keys, then all values. Query head h reads key/value head floor(h · kvHeads / heads).
 * @returns (batch, time, heads · headSize) of qkv's dtype
 * @throws ShapeError, DTypeError, DeviceError, ArgumentError for invalid arguments
 * @see Dao 2023, arXiv 2307.08691; Ainslie et al. 2023, arXiv 2305.13245
 */
export function attention(qkv: Tensor, options: CausalAttentionOptions): Tensor {
  const op = "attention";
  const { heads, kvHeads, headSize, scale } = checkArguments(op, qkv, options, ["firstKey"]);
  const { firstKey } = options;
  if (firstKey !== undefined) checkFirstKey(op, firstKey, qkv);
  const [batch, time] = qkv.shape as [number, number, number];
  const o = empty([batch, time, heads * headSize], qkv);
  // For each query: its largest score, and the logarithm of the sum of exponentials relative to it.
  const statistics = empty([2, batch, heads, time], { dtype: "f32", device: qkv.device });
  const { native: first = null } = firstKey ?? {};
  native.attentionForward(qkv.native, first, o.native, statistics.native, heads, kvHeads, scale);
  const result = differentiable(op, {
    inputs: [qkv],
    outputs: [o],
    saved: [qkv, o, statistics, ...(firstKey ? [firstKey] : [])],
    backward: ([dO], saved) => {
      const [qkv, o, statistics, firstKey] = saved as [Tensor, Tensor, Tensor, Tensor?];
      const dqkv = empty(qkv.shape, qkv);
      const { native: gradient } = dO as Tensor;
      native.attentionBackward(
        gradient,
        qkv.native,
        o.native,
        statistics.native,
        firstKey?.native ?? null,
        dqkv.native,
        heads,
        kvHeads,
        scale,
      );
      return [dqkv];
    },
  });
  statistics.dispose();
  return result;
}

/** Options of `attentionCached`. */
export interface CachedAttentionOptions extends AttentionOptions {
  /** Number of tokens already in the cache. */
  position: number;
  /**
   * The first row of the cache that each token attends to, (batch, time) i32, from 0 to the token's
   * own row `position` + t, never decreasing along a row. Earlier rows cost nothing. Other values
   * are handled as in `attention`.
   */
  firstKey?: Tensor | undefined;
}

/**
 * Cached tokens for each new one up to which `attentionTogether` is used on a GPU. The kernel for
 * generation computes one token after the other, without tensor cores; but it leaves the cached
 * tokens where they are, and computes nothing for them.
 */
const cachedPerToken = 64;

/**
 * Attention of new tokens over all tokens so far, for generation. It first writes their keys and
 * values to the cache at `position`. Not differentiable.
 * @param qkv   (batch, time, (heads + 2 kvHeads) · headSize) f32 or bf16, as in `attention`
 * @param cache (batch, 2, kvHeads, capacity, headSize) of qkv's dtype, changed in place
 * @returns (batch, time, heads · headSize)
 * @throws ShapeError if position + time exceeds the capacity
 */
export function attentionCached(
  qkv: Tensor,
  cache: Tensor,
  options: CachedAttentionOptions,
): Tensor {
  const op = "attentionCached";
  const { heads, kvHeads, headSize, scale } = checkArguments(op, qkv, options, [
    "position",
    "firstKey",
  ]);
  const { position, firstKey } = options;
  checkFloat(op, "cache", cache);
  checkSameDevice(op, qkv, cache);
  checkSameDType(op, qkv, cache);
  checkInteger(op, "position", position, { min: 0 });
  const [batch, time] = qkv.shape as [number, number, number];
  checkShape(
    op,
    "cache",
    cache,
    [batch, 2, kvHeads, null, headSize],
    "batch, 2, kvHeads, capacity, headSize",
  );
  const capacity = cache.shape[3] as number;
  if (position + time > capacity) {
    throw new ShapeError(
      `[${op}] expected room for ${position + time} tokens (${position} + ${time}) in the cache but received ${capacity}`,
    );
  }
  if (firstKey !== undefined) checkFirstKey(op, firstKey, qkv);
  if (gradientsEnabled() && qkv.requiresGrad) {
    throw new AutogradError(`[${op}] has no gradient: call it inside noGrad(), or use attention()`);
  }
  // The kernel for generation divides a text by the number of tokens beside it, so its sums do too.
  const alike = rowsAreIndependent();
  const together = alike || (position <= cachedPerToken * time && firstKey === undefined);
  if (qkv.device.type === "cuda" && position > 0 && time > 1 && together) {
    return attentionTogether(qkv, cache, options);
  }
  const o = empty([batch, time, heads * headSize], qkv, op);
  const { native: first = null } = firstKey ?? {};
  native.attentionCached(
    qkv.native,
    cache.native,
    first,
    o.native,
    heads,
    kvHeads,
    position,
    scale,
  );
  cache.changed(op);
  return o;
}

/** Places of tokens in a paged cache. Each tensor is i32. */
export interface PagedPlaces {
  /**
   * (sequences, pages of one): entry [s, i] is the page that holds the keys and values of sequence
   * s at positions i · page .. i · page + page - 1.
   */
  table: Tensor;
  /**
   * (batch, time): the row of `table` that each token belongs to. Default: token n belongs to row n,
   * and each sequence has one token.
   */
  sequences?: Tensor | undefined;
  /** (batch, time): the position of each token in its sequence. */
  positions: Tensor;
  /** (batch, time): the first position that each token attends to. Default: 0. */
  firstKey?: Tensor | undefined;
}

export interface PagedAttentionOptions extends AttentionOptions {
  /**
   * A `ropeTable` by which queries and keys turn first, each by its position, as in `rope`. Default:
   * they have been turned already.
   */
  angles?: Tensor | undefined;
}

/**
 * Attention of tokens of many sequences over a paged cache, for an engine. It first writes the keys
 * and values of all tokens to their places, then each token attends over its own sequence up to its
 * position. A token's result depends on its own sequence alone, to the bit. Not differentiable.
 * @param qkv   (batch, time, (heads + 2 kvHeads) · headSize) f32 or bf16, as in `attention`
 * @param pages (pages, 2, kvHeads, page, headSize) of qkv's dtype, changed in place; on a GPU,
 *   `page` is a multiple of 32
 * @returns (batch, time, heads · headSize)
 * @throws NativeError `ERR_POSITION`, at the next wait, if a sequence, a position or a page is
 *   outside of the tensors
 * @see Kwon et al. 2023, arXiv 2309.06180
 */
export function attentionPaged(
  qkv: Tensor,
  pages: Tensor,
  places: PagedPlaces,
  options: PagedAttentionOptions,
): Tensor {
  const op = "attentionPaged";
  const { heads, kvHeads, headSize, scale } = checkArguments(op, qkv, options, ["angles"]);
  checkObject(op, "places", places, "places: { table, sequences, positions }");
  checkOptions(op, places, ["table", "sequences", "positions", "firstKey"]);
  const { table, sequences, positions, firstKey } = places;
  const { angles } = options;
  checkFloat(op, "pages", pages);
  checkSameDevice(op, qkv, pages);
  checkSameDType(op, qkv, pages);
  const shape = [null, 2, kvHeads, null, headSize];
  checkShape(op, "pages", pages, shape, "pages, 2, kvHeads, page, headSize");
  checkDType(op, "table", table, "i32");
  checkSameDevice(op, qkv, table);
  checkRank(op, "table", table, 2);
  const [batch, time] = qkv.shape as [number, number, number];
  if (sequences !== undefined) checkPerToken(op, "sequences", sequences, qkv);
  else checkShape(op, "table", table, [batch * time, null], "a row for each token, pages of one");
  checkPerToken(op, "positions", positions, qkv);
  if (angles !== undefined) {
    checkDType(op, "angles", angles, "f32");
    checkSameDevice(op, qkv, angles);
    checkShape(op, "angles", angles, [null, headSize / 2, 2], "positions, headSize / 2, 2");
  }
  if (firstKey !== undefined) checkPerToken(op, "firstKey", firstKey, qkv);
  if (gradientsEnabled() && qkv.requiresGrad) {
    throw new AutogradError(`[${op}] has no gradient: call it inside noGrad(), or use attention()`);
  }
  const o = empty([batch, time, heads * headSize], qkv, op);
  native.attentionPaged(
    qkv.native,
    pages.native,
    table.native,
    sequences?.native ?? null,
    positions.native,
    firstKey?.native ?? null,
    angles?.native ?? null,
    o.native,
    heads,
    kvHeads,
    scale,
  );
  pages.changed(op);
  return o;
}

/**
 * `attentionCached` for many new tokens: `attention` over the cached tokens and the new ones
 * together. The queries of cached tokens are zeros, and their results are dropped. The new
 * tokens have the bits that they have in `attention` over the whole sequence. The arguments have
 * been checked. Cached rows before a token's first key must be finite.
 */
export function attentionTogether(
  qkv: Tensor,
  cache: Tensor,
  options: CachedAttentionOptions,
): Tensor {
  const { position, heads, scale, firstKey } = options;
  const { device, dtype } = qkv;
  const [batch, time, width] = qkv.shape as [number, number, number];
  const [, , kvHeads, , headSize] = cache.shape as [number, number, number, number, number];
  const queries = width - 2 * kvHeads * headSize;
  return scope(() => {
    const added = slice(qkv, { 2: [queries, width] });
    const byHead = permute(reshape(added, [batch, time, 2, kvHeads, headSize]), [0, 2, 3, 1, 4]);
    native.sliceWrite(byHead.native, cache.native, [0, 0, 0, position, 0]);
    cache.changed("attentionCached");
    const cached = permute(slice(cache, { 3: [0, position] }), [0, 3, 1, 2, 4]);
    const whole = zeros([batch, position + time, width], { dtype, device });
    native.sliceWrite(reshape(cached, [batch, position, width - queries]).native, whole.native, [
      0,
      0,
      queries,
    ]);
    native.sliceWrite(qkv.native, whole.native, [0, position, 0]);
    // A query of zeros may see any key, so the cached tokens get the first key 0, which is never
    // more than that of a new token.
    let first: Tensor | undefined;
    if (firstKey !== undefined) {
      first = zeros([batch, position + time], { dtype: "i32", device });
      native.sliceWrite(firstKey.native, first.native, [0, position]);
    }
    const all = attention(whole, {
      heads,
      kvHeads,
      ...(scale !== undefined && { scale }),
      ...(first !== undefined && { firstKey: first }),
    });
    return slice(all, { 1: [position, position + time] });
  });
}

/**
 * `attention` composed of plain operations: its definition, and the oracle of its test. It makes
 * the time × time matrix.
 * @param qkv (batch, time, (heads + 2 kvHeads) · headSize): all query heads, then all keys, then
 *   all values
 * @returns (batch, time, heads · headSize)
 */
export function composedAttention(qkv: Tensor, options: CausalAttentionOptions): Tensor {
  const { heads, kvHeads = heads, firstKey } = options;
  const [batch, time, width] = qkv.shape as [number, number, number];
  const headSize = width / (heads + 2 * kvHeads);
  const { scale = 1 / Math.sqrt(headSize) } = options;
  const parts = [heads, kvHeads, kvHeads].map((count) => count * headSize);
  // A key/value head serves heads / kvHeads query heads: (batch, kvHeads, group or 1, time,
  // headSize).
  const [queries, keys, values] = split(qkv, parts, -1).map((part) => {
    const byHead = permute(reshape(part, [batch, time, -1, headSize]), [0, 2, 1, 3]);
    return reshape(byHead, [batch, kvHeads, -1, time, headSize]);
  }) as [Tensor, Tensor, Tensor];
  const key = arange(time, { device: qkv.device });
  const past = le(key, reshape(key, [time, 1])); // (time, time): 1 where a token sees a key
  const seen = firstKey ? mul(past, ge(key, reshape(firstKey, [batch, 1, 1, time, 1]))) : past;
  // (batch, kvHeads, group, time, time)
  const scores = mul(matmul(queries, transpose(keys)), scale);
  const weights = softmax(where(seen, scores, Number.NEGATIVE_INFINITY));
  const mixed = reshape(matmul(weights, values), [batch, heads, time, headSize]);
  return reshape(permute(mixed, [0, 2, 1, 3]), [batch, time, heads * headSize]);
}
