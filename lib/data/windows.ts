import { ArgumentError } from "../errors.js";

/** Rows of T ids each. */
export interface InputsAndTargets {
  inputs: Int32Array;
  /** The inputs shifted by one: row b holds what follows each token of row b. */
  targets: Int32Array;
}

/** Splits `count` windows of T+1 ids into inputs (all but the last id of each) and targets (all but the first). */
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
  const inputs = new Int32Array(count * sequenceLength);
  const targets = new Int32Array(count * sequenceLength);
  for (let row = 0; row < count; row++) {
    const window = windows.subarray(row * stride, (row + 1) * stride);
    inputs.set(window.subarray(0, sequenceLength), row * sequenceLength);
    targets.set(window.subarray(1), row * sequenceLength);
  }
  return { inputs, targets };
}
