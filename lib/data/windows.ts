import { argumentError, checkFunction, checkInteger, checkObject } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";

/** Inputs and targets: rows of T ids each. */
export interface InputsAndTargets {
  inputs: Int32Array;
  /** Row b holds the token that follows each token of input row b. */
  targets: Int32Array;
}

/** Windows of T+1 ids, one after the other. */
export interface WindowRows {
  ids: Int32Array;
  /** Set if any of the windows holds chats, or pairs of answers. */
  chats?: {
    /** Whether each window holds chats or pairs. */
    rows: readonly boolean[];
    /** Whether they are pairs. Default: false. */
    pairs?: boolean;
    /** For each id the bits of a mask: 1 if the loss counts it as a target, 2 if it is rejected. */
    mask: Uint8Array;
    /**
     * For each id of a window of chats, the index in the window at which its chat begins, or its
     * half of a pair.
     */
    starts: Int32Array;
  };
}

/**
 * Splits `count` windows of T+1 ids into inputs (all ids except the last of each window) and
 * targets (all except the first).
 */
export function splitWindows(
  windows: Int32Array,
  count: number,
  sequenceLength: number,
): InputsAndTargets {
  const stride = sequenceLength + 1;
  if (windows.length !== count * stride) {
    throw new ArgumentError(
      `[splitWindows] expected ${count} windows of ${stride} ids, got ${windows.length} ids`,
    );
  }
  const inputs = hostArray("splitWindows", Int32Array, count * sequenceLength);
  const targets = hostArray("splitWindows", Int32Array, count * sequenceLength);
  for (let row = 0; row < count; row++) {
    const window = windows.subarray(row * stride, (row + 1) * stride);
    inputs.set(window.subarray(0, sequenceLength), row * sequenceLength);
    targets.set(window.subarray(1), row * sequenceLength);
  }
  return { inputs, targets };
}

/** Ids that mark the borders of documents; null if there is none. */
export interface DocumentMarks {
  /** Id at the start of every document. */
  startId: number | null;
  /** Id at the end of every document. */
  endId: number | null;
}

/**
 * For each input of each window, the index within the window at which its document starts. For the
 * document that was already running when the window began, this index is 0. With document masking,
 * token t attends to tokens starts[t]..t, and t - starts[t] is its position in the part of its
 * document that the window holds.
 * @param windows rows of T+1 ids
 * @param marksOf gives the ids that separate documents in a row
 * @returns (rows, T)
 * @throws ArgumentError unless there are whole rows of T+1 ids
 */
export function documentStarts(
  windows: Int32Array,
  sequenceLength: number,
  marksOf: (row: number) => DocumentMarks,
): Int32Array {
  const op = "documentStarts";
  if (!(windows instanceof Int32Array))
    throw argumentError(op, "an Int32Array", "windows", windows);
  checkInteger(op, "sequenceLength", sequenceLength, { min: 1 });
  checkFunction(op, "marksOf", marksOf);
  const stride = sequenceLength + 1;
  if (windows.length % stride !== 0) {
    throw new ArgumentError(
      `[${op}] expected rows of ${stride} ids (sequenceLength + 1) for windows but received ${windows.length} ids`,
    );
  }
  const rows = windows.length / stride;
  const starts = new Int32Array(rows * sequenceLength);
  for (let row = 0; row < rows; row++) {
    const marks: unknown = marksOf(row);
    checkObject(op, "the result of marksOf", marks, "the ids between documents");
    const { startId, endId } = marks as DocumentMarks;
    const from = row * stride;
    let start = 0;
    for (let t = 0; t < sequenceLength; t++) {
      const begins = windows[from + t] === startId || (t > 0 && windows[from + t - 1] === endId);
      if (begins) start = t;
      starts[row * sequenceLength + t] = start;
    }
  }
  return starts;
}
