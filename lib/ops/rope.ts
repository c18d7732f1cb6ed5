import { checkCurrent, differentiable, gradientsEnabled } from "../core/autograd.js";
import {
  checkBoolean,
  checkDocumentStarts,
  checkDType,
  checkFloat,
  checkInteger,
  checkNumber,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkShape,
  shapeText,
} from "../core/check.js";
import { type Device, defaultDevice } from "../core/device.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

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

export interface RopeOptions {
  /** Heads packed in the last axis of x. */
  heads: number;
  /** The first ones, which turn: queries and keys, but not values. All if left out. */
  rotatedHeads?: number;
  /** Position of the first token, for generation (0). */
  position?: number;
  /**
   * (batch, time) i32: where in the window each token's document starts, so that positions count from there. As in
   * `attention`.
   */
  documentStarts?: Tensor | undefined;
  /**
   * Writes over x, which must not be used any more afterwards (false). Operations that need x as it was for their gradients
   * refuse their backward: softmax and attention need what they returned, most others what they were given.
   */
  inPlace?: boolean;
}

function checkArguments(
  x: Tensor,
  table: Tensor,
  options: RopeOptions,
): Required<Omit<RopeOptions, "documentStarts">> {
  checkFloat("rope", "x", x);
  checkDType("rope", "table", table, "f32");
  checkSameDevice("rope", x, table);
  checkOptions("rope", options, ["heads", "rotatedHeads", "position", "documentStarts", "inPlace"]);
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
  const positions = table.shape[0] as number;
  if (position + time > positions) {
    throw new ShapeError(
      `[rope] expected a table of at least ${position + time} positions (${position} + ${time} tokens) ` +
        `but received ${positions}`,
    );
  }
  if (options.documentStarts !== undefined) checkDocumentStarts("rope", options.documentStarts, x);
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
 * Rotary position embedding: element i of a head turns with element i + headSize/2, as in Llama's Hugging Face form. Token t
 * stands at `position` + t, with `documentStarts` at `position` + t - documentStarts[t].
 * @param x     (batch, time, heads · headSize) f32 or bf16, e.g. the packed q, k, v
 * @param table of `ropeTable`, at least position + time long
 * @returns the shape and dtype of x
 * @see Su et al. 2021, arXiv 2104.09864
 */
export function rope(x: Tensor, table: Tensor, options: RopeOptions): Tensor {
  const { heads, rotatedHeads, position, inPlace } = checkArguments(x, table, options);
  const { documentStarts } = options;
  const { native: starts = null } = documentStarts ?? {};
  const y = inPlace ? x.alias() : empty(x.shape, x);
  native.rope(x.native, table.native, starts, y.native, heads, rotatedHeads, position, false);
  const result = differentiable("rope", {
    inputs: [x],
    outputs: [y],
    saved: [table, ...(documentStarts ? [documentStarts] : [])],
    backward: ([dy], [table, starts]) => {
      const dx = empty((dy as Tensor).shape, dy);
      const turns = (table as Tensor).native;
      const { native: from = null } = starts ?? {};
      native.rope(
        (dy as Tensor).native,
        turns,
        from,
        dx.native,
        heads,
        rotatedHeads,
        position,
        true,
      );
      return [dx];
    },
  });
  if (inPlace) result.changed("rope");
  return result;
}
