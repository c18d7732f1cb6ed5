import { checkCurrent, differentiable, gradientsEnabled } from "../core/autograd.js";
import {
  checkBoolean,
  checkDType,
  checkFloat,
  checkInteger,
  checkNumber,
  checkOptions,
  checkPerToken,
  checkRank,
  checkSameDevice,
  checkShape,
  shapeText,
} from "../core/check.js";
import { arange } from "../core/create.js";
import { type Device, defaultDevice } from "../core/device.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { add, mul, sub } from "./binary.js";
import { lt } from "./compare.js";
import { embedding } from "./embedding.js";
import { reshape, squeeze } from "./shape.js";
import { concat, split } from "./slice.js";
import { where } from "./where.js";

/**
 * Cosines and sines of all angles position · theta^(-2i/headSize), computed in double.
 * @param positions number of positions
 * @param headSize  an even number
 * @param theta     base of the frequencies: 10000 in Llama
 * @returns f32 (positions, headSize / 2, 2)
 */
export function ropeTable(
  positions: number,
  headSize: number,
  theta = 10000,
  device: Device = defaultDevice(),
): Tensor {
  checkInteger("ropeTable", "positions", positions, { min: 1 });
  checkInteger("ropeTable", "headSize", headSize, { min: 2 });
  if (headSize % 2 !== 0) {
    throw new ArgumentError(
      `[ropeTable] expected an even number for headSize but received ${headSize}`,
    );
  }
  checkNumber("ropeTable", "theta", theta, { min: Number.MIN_VALUE });
  const table = empty([positions, headSize / 2, 2], { dtype: "f32", device }, "ropeTable");
  native.ropeTable(table.native, theta);
  return table;
}

/** Options of `rope`. */
export interface RopeOptions {
  /** Heads packed in the last axis of x. */
  heads: number;
  /** Number of leading heads to rotate: queries and keys, but not values. Default: all heads. */
  rotatedHeads?: number;
  /** Position of the first token, for generation (0). */
  position?: number;
  /**
   * Position of each token, (batch, time) i32: a row of the table. It can make positions count from
   * the start of each document. Excludes a `position` other than 0.
   */
  positions?: Tensor | undefined;
  /**
   * Overwrites x, which must not be used afterwards. Default: false. Operations whose gradients
   * need the old x then fail in backward: softmax and attention need their output, most others
   * their input.
   */
  inPlace?: boolean;
}

function checkArguments(
  x: Tensor,
  table: Tensor,
  options: RopeOptions,
): Required<Omit<RopeOptions, "positions">> {
  checkFloat("rope", "x", x);
  checkDType("rope", "table", table, "f32");
  checkSameDevice("rope", x, table);
  checkOptions("rope", options, ["heads", "rotatedHeads", "position", "positions", "inPlace"]);
  const { heads, rotatedHeads = heads, position = 0, inPlace = false } = options ?? {};
  checkInteger("rope", "heads", heads, { min: 1 });
  checkInteger("rope", "rotatedHeads", rotatedHeads, { min: 0, max: heads });
  checkInteger("rope", "position", position, { min: 0 });
  checkBoolean("rope", "inPlace", inPlace);
  checkRank("rope", "x", x, 3);
  const [, time, width] = x.shape as [number, number, number];
  if (width % (2 * heads) !== 0) {
    throw new ShapeError(
      `[rope] expected ${heads} heads of an even size in the last axis of x but received ${shapeText(x.shape)}`,
    );
  }
  checkShape(
    "rope",
    "table",
    table,
    [null, width / heads / 2, 2],
    `half of head size ${width / heads}`,
  );
  const rows = table.shape[0] as number;
  if (options.positions !== undefined) {
    checkPerToken("rope", "positions", options.positions, x);
    if (position !== 0) {
      throw new ArgumentError(
        `[rope] expected position 0 beside positions but received ${position}`,
      );
    }
  } else if (position + time > rows) {
    throw new ShapeError(
      `[rope] expected a table of at least ${position + time} positions (${position} + ${time} tokens) ` +
        `but received ${rows}`,
    );
  }
  if (inPlace && gradientsEnabled()) {
    if (x.memory.leaves > 0) {
      throw new ArgumentError(
        "[rope] a leaf that requires a gradient cannot be changed in place, nor a view of one: leave inPlace out",
      );
    }
    checkCurrent("rope", x);
  }
  return { heads, rotatedHeads, position, inPlace };
}

/**
 * Rotary position embedding: element i of a head rotates with element i + headSize/2, as in Hugging
 * Face's Llama. Token t has position `position` + t, or positions[t] if `positions` is given.
 * @param x     (batch, time, heads · headSize) f32 or bf16, e.g. the packed q, k, v
 * @param table from `ropeTable`, with at least position + time rows; with `positions`, more rows
 *   than the largest position
 * @returns the shape and dtype of x
 * @throws NativeError `ERR_POSITION`, at the next wait, if one of `positions` is not a row of the
 *   table; the message names the token
 * @see Su et al. 2021, arXiv 2104.09864
 */
export function rope(x: Tensor, table: Tensor, options: RopeOptions): Tensor {
  const { heads, rotatedHeads, position, inPlace } = checkArguments(x, table, options);
  const { positions } = options;
  const { native: at = null } = positions ?? {};
  const y = inPlace ? x.alias() : empty(x.shape, x);
  native.rope(x.native, table.native, at, y.native, heads, rotatedHeads, position, false);
  const result = differentiable("rope", {
    inputs: [x],
    outputs: [y],
    saved: [table, ...(positions ? [positions] : [])],
    backward: ([dy], [table, positions]) => {
      const dx = empty((dy as Tensor).shape, dy);
      const turns = (table as Tensor).native;
      const { native: at = null } = positions ?? {};
      native.rope((dy as Tensor).native, turns, at, dx.native, heads, rotatedHeads, position, true);
      return [dx];
    },
  });
  if (inPlace) result.changed("rope");
  return result;
}

/**
 * `rope` composed of plain operations, for f32: its definition, and the oracle of its test.
 * @param x     (batch, time, heads · headSize)
 * @param table (positions, headSize / 2, 2): the cosine and sine of each angle
 * @returns the shape of x
 */
export function composedRope(
  x: Tensor,
  table: Tensor,
  { heads, rotatedHeads = heads, position = 0, positions }: RopeOptions,
): Tensor {
  const [batch, time, width] = x.shape as [number, number, number];
  const headSize = width / heads;
  const { device } = x;
  const tokens = reshape(arange(time, { start: position, device }), [1, time]);
  const places = positions ?? tokens; // (batch or 1, time)
  const angles = embedding(places, reshape(table, [-1, headSize])); // (batch or 1, time, headSize)
  const pairs = reshape(angles, [-1, time, 1, headSize / 2, 2]);
  const [cosine, sine] = split(pairs, 1, -1).map((part) => squeeze(part, -1)) as [Tensor, Tensor];
  const byHead = reshape(x, [batch, time, heads, headSize]);
  // Element i of a head is the first of a pair; element i + headSize / 2 is the second.
  const [first, second] = split(byHead, headSize / 2, -1) as [Tensor, Tensor];
  const turned = concat(
    [sub(mul(first, cosine), mul(second, sine)), add(mul(second, cosine), mul(first, sine))],
    -1,
  );
  const head = reshape(arange(heads, { device }), [heads, 1]);
  return reshape(where(lt(head, rotatedHeads), turned, byHead), x.shape);
}
