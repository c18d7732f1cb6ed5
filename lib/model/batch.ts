import {
  argumentError,
  checkDevice,
  checkDType,
  checkInteger,
  checkObject,
  checkOptions,
  checkSameDevice,
  checkShape,
  checkTensor,
} from "../core/check.js";
import { tensor } from "../core/create.js";
import type { Device } from "../core/device.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import { ignoredTarget } from "./ignored-target.js";

export { ignoredTarget };

/**
 * A micro-batch of token ids: everything a model receives of its data. Each field is (batch, time),
 * i32.
 * @typeParam Ids tensors on the model's device, or host arrays with the rows one after the other
 */
export interface Batch<Ids = Tensor> {
  inputs: Ids;
  /** The token that follows each input; -100 where the loss ignores it. */
  targets: Ids;
  /**
   * The first token of the same row that token t attends to, from 0 to t, never decreasing along a
   * row. Default: token 0. To mask across documents, use the first token of t's document; for a
   * sliding window of W tokens, use max(0, t - W + 1).
   */
  firstKey?: Ids;
  /** The position of token t in the rotary embedding. Default: t. */
  positions?: Ids;
  /**
   * Of preferences: the answer that target t belongs to, 2k for the preferred answer of pair k and
   * 2k + 1 for the rejected one. Anything where the target is ignored.
   */
  answers?: Ids;
}

/** A batch in the host's memory, as a loader reads it. */
export interface HostBatch extends Batch<Int32Array> {
  /** Rows (B); each has `inputs.length / count` tokens. */
  count: number;
  /** Of preferences: number of pairs in the batch. */
  pairs?: number;
  /**
   * Place of the first row among all rows of the run. It seeds what a model does at random in
   * training, such as dropout.
   */
  firstRow?: number;
}

const fields = ["inputs", "targets", "firstKey", "positions", "answers"] as const;
const optionalFields: readonly string[] = ["firstKey", "positions", "answers"];

/**
 * Copies a batch to a device. The tensors belong to the current scope.
 * @throws ArgumentError unless all fields are Int32Arrays of one length, in rows of equal length
 */
export function batchTensors(batch: HostBatch, device: Device): Batch {
  const { count, inputs } = checkHostBatch("batchTensors", batch);
  checkDevice("batchTensors", "device", device);
  const shape = [count, inputs.length / count];
  const present = fields.filter((field) => batch[field] !== undefined);
  return Object.fromEntries(
    present.map((field) => [
      field,
      tensor(batch[field] as Int32Array, { shape, dtype: "i32", device }),
    ]),
  ) as unknown as Batch;
}

/**
 * Checks a batch of the host.
 * @returns the batch
 * @throws ArgumentError for fields that are no Int32Arrays of one length, in rows of equal length
 */
export function checkHostBatch(op: string, batch: HostBatch): HostBatch {
  checkObject(op, "batch", batch, "a batch: { inputs, targets, count }");
  const { inputs, targets, count } = batch;
  for (const name of fields) {
    const ids = batch[name];
    if (ids === undefined && optionalFields.includes(name)) continue;
    if (!(ids instanceof Int32Array)) throw argumentError(op, "an Int32Array", name, ids);
    if (ids.length !== inputs.length) {
      throw new ArgumentError(
        `[${op}] expected ${inputs.length} ids in ${name}, one for each input, got ${ids.length}`,
      );
    }
  }
  if (inputs.length === 0) throw new ArgumentError(`[${op}] expected ids in inputs, got none`);
  checkInteger(op, "count", count, { min: 1, max: inputs.length });
  if (batch.pairs !== undefined) checkInteger(op, "pairs", batch.pairs, { min: 0 });
  if (batch.firstRow !== undefined) checkInteger(op, "firstRow", batch.firstRow, { min: 0 });
  if (inputs.length % count !== 0) {
    throw new ArgumentError(
      `[${op}] expected ${count} rows of equal length, got ${targets.length} ids`,
    );
  }
  return batch;
}

/** How many targets of a batch count. */
export function countTargets(targets: Int32Array): number {
  let count = 0;
  for (const id of targets) if (id !== ignoredTarget) count++;
  return count;
}

/**
 * Checks a batch of tensors before a model computes on it.
 * @throws ArgumentError, DTypeError, ShapeError, DeviceError naming the field
 */
export function checkBatch(op: string, batch: Batch): void {
  checkObject(op, "batch", batch, "a batch: { inputs, targets }");
  checkOptions(op, batch, fields);
  checkIds(op, "inputs", batch.inputs);
  checkBeside(op, "targets", batch.targets, batch.inputs);
  checkContext(op, batch, batch.inputs);
  if (batch.answers !== undefined) checkBeside(op, "answers", batch.answers, batch.inputs);
}

/** Checks the fields of a batch besides the token ids. */
export function checkContext(
  op: string,
  { firstKey, positions }: Pick<Batch, "firstKey" | "positions">,
  ids: Tensor,
): void {
  if (firstKey !== undefined) checkBeside(op, "firstKey", firstKey, ids);
  if (positions !== undefined) checkBeside(op, "positions", positions, ids);
}

/** Checks token ids: i32 (batch, time). */
export function checkIds(op: string, name: string, ids: Tensor): void {
  checkTensor(op, name, ids);
  if (ids.dtype !== "i32" || ids.rank !== 2) {
    throw new ShapeError(
      `[${op}] expected token ids i32 (batch, time) for ${name}, got ${ids.dtype} [${ids.shape}]`,
    );
  }
}

function checkBeside(op: string, name: string, values: Tensor, ids: Tensor): void {
  checkDType(op, name, values, "i32");
  checkSameDevice(op, ids, values);
  checkShape(op, name, values, ids.shape, "batch and time of the ids");
}
