import { differentiable } from "../core/autograd.js";
import {
  checkDType,
  checkFloat,
  checkInteger,
  checkOptions,
  checkSameDevice,
  checkShape,
  shapeText,
} from "../core/check.js";
import { ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import { div } from "./binary.js";
import { cast } from "./cast.js";
import { ne } from "./compare.js";
import { gather } from "./gather.js";
import { sum } from "./reduce.js";
import { squeeze, unsqueeze } from "./shape.js";
import { logSoftmax } from "./softmax.js";
import { neg } from "./unary.js";
import { where } from "./where.js";

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions {
  /** Targets with this id are left out of the mean (-100). */
  ignoreIndex?: number;
}

/**
 * Checks targets against the rows of x, and the options.
 * @returns ignoreIndex
 * @internal
 */
export function checkTargets(
  op: string,
  name: string,
  x: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions,
): number {
  checkDType(op, "targets", targets, "i32");
  checkSameDevice(op, x, targets);
  checkOptions(op, options, ["ignoreIndex"]);
  const { ignoreIndex = -100 } = options;
  checkInteger(op, "ignoreIndex", ignoreIndex, { min: -2147483648, max: 2147483647 });
  if (x.rank === 0)
    throw new ShapeError(`[${op}] expected at least 1 axis for ${name} but received shape []`);
  checkShape(
    op,
    "targets",
    targets,
    x.shape.slice(0, -1),
    `${name} ${shapeText(x.shape)} without its last axis`,
  );
  return ignoreIndex;
}

/**
 * Mean cross-entropy in nats, -log softmax(logits)[target], over the targets that are not
 * `ignoreIndex`; NaN if all are ignored. For the head of a language model, use
 * `linearCrossEntropy`, which never holds all logits.
 * @param logits  (..., classes) f32 or bf16
 * @param targets (...) i32
 * @returns f32, one element without axes
 * @throws NativeError `ERR_TARGET`, at the next wait, if a target is neither a class nor
 *   `ignoreIndex`; the message names the row
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  checkFloat("crossEntropy", "logits", logits);
  const ignoreIndex = checkTargets("crossEntropy", "logits", logits, targets, options);
  const classes = logits.shape.at(-1) as number;
  const rows = logits.size / classes;
  const loss = empty([], { dtype: "f32", device: logits.device });
  // For each row: its largest logit, and the logarithm of the sum of exponentials relative to it.
  const statistics = empty([2, rows], loss);
  const matrix = (x: Tensor) => x.view([rows, classes]);
  const list = (x: Tensor) => x.view([rows]);
  const views = [matrix(logits), list(targets)] as const;
  const [x, ids] = views;
  native.crossEntropyForward(x.native, ids.native, loss.native, statistics.native, ignoreIndex);
  for (const view of views) view.dispose();
  const result = differentiable("crossEntropy", {
    inputs: [logits],
    outputs: [loss],
    saved: [logits, targets, statistics],
    backward: ([dLoss], saved) => {
      const [logits, targets, statistics] = saved as [Tensor, Tensor, Tensor];
      const dLogits = empty(logits.shape, logits);
      const seed = (dLoss as Tensor).native;
      native.crossEntropyBackward(
        seed,
        matrix(logits).native,
        list(targets).native,
        statistics.native,
        matrix(dLogits).native,
        ignoreIndex,
      );
      return [dLogits];
    },
  });
  statistics.dispose();
  return result;
}

/**
 * The loss of each row, composed of plain operations.
 * @param logits  (..., classes)
 * @param targets (...) i32
 * @returns f32 of the shape of targets; 0 where the target is `ignoreIndex`
 * @internal
 */
export function composedTokenLosses(
  logits: Tensor,
  targets: Tensor,
  { ignoreIndex = -100 }: CrossEntropyOptions = {},
): Tensor {
  const counts = ne(targets, ignoreIndex); // (...) i32: 1 where the target counts
  const classes = where(counts, targets, 0); // any class will do for a target that does not
  const chosen = gather(logSoftmax(cast(logits, "f32")), unsqueeze(classes, -1), -1); // (..., 1)
  return where(counts, neg(squeeze(chosen, -1)), 0);
}

/**
 * `crossEntropy` composed of plain operations: its definition, and the oracle of its test.
 * @param logits  (..., classes)
 * @param targets (...) i32
 * @returns f32, one element without axes
 */
export function composedCrossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const losses = composedTokenLosses(logits, targets, options);
  return div(sum(losses), sum(cast(ne(targets, options.ignoreIndex ?? -100), "f32")));
}
