import { differentiable, gradientsEnabled } from "../core/autograd.js";
import {
  checkFloat,
  checkRank,
  checkSameDevice,
  checkSameDType,
  checkShape,
  shapeText,
} from "../core/check.js";
import { AutogradError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";
import {
  type CrossEntropyOptions,
  checkTargets,
  composedCrossEntropy,
  composedTokenLosses,
} from "./cross-entropy.js";
import { composedLinear } from "./linear.js";

/**
 * Converts a gradient to the dtype of its tensor. Tensors other than leaves have gradients of their
 * own dtype.
 */
function inDType(gradient: Tensor, like: Tensor): Tensor {
  if (gradient.dtype === like.dtype) return gradient;
  const result = empty(gradient.shape, like);
  native.cast(gradient.native, result.native);
  return result;
}

/** Checks the arguments. @returns ignoreIndex */
function checkArguments(
  op: string,
  name: string,
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions,
): number {
  checkFloat(op, name, x);
  checkFloat(op, "weight", weight);
  checkSameDevice(op, x, weight);
  checkSameDType(op, x, weight);
  const ignoreIndex = checkTargets(op, name, x, targets, options);
  checkRank(op, "weight", weight, 2);
  const hidden = x.shape.at(-1) as number;
  checkShape(op, "weight", weight, [null, hidden], `last axis of ${name} ${shapeText(x.shape)}`);
  return ignoreIndex;
}

/**
 * The output head of a language model fused with its loss: `crossEntropy(linear(x, weight),
 * targets)`, without ever holding all logits. The logits of some rows at a time are computed and
 * replaced by their own gradient. The gradients of x and weight are therefore ready after the
 * forward pass, and backward only scales them.
 * @param x       (..., hidden) f32 or bf16
 * @param weight  (vocabulary, hidden) of x's dtype
 * @param targets (...) i32
 * @returns f32, one element without axes: the mean in nats over the targets that are not
 *   `ignoreIndex` (-100); NaN if all targets are ignored
 * @throws NativeError `ERR_TARGET`, at the next wait, if a target is neither in the vocabulary nor
 *   `ignoreIndex`; the message names the row
 */
export function linearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const op = "linearCrossEntropy";
  const ignoreIndex = checkArguments(op, "x", x, weight, targets, options);
  const hidden = x.shape.at(-1) as number;
  const { shape } = x;
  const rows = x.size / hidden;
  const loss = empty([], { dtype: "f32", device: x.device });
  const recording = gradientsEnabled();
  const dx = recording && x.requiresGrad ? empty([rows, hidden], x) : null;
  const dWeight = recording && weight.requiresGrad ? empty(weight.shape, loss) : null;
  const matrix = x.view([rows, hidden]);
  const ids = targets.view([rows]);
  native.linearCrossEntropy(
    matrix.native,
    weight.native,
    ids.native,
    null,
    loss.native,
    null,
    null,
    dx?.native ?? null,
    dWeight?.native ?? null,
    ignoreIndex,
    false,
  );
  matrix.dispose();
  ids.dispose();
  const result = differentiable(op, {
    inputs: [x, weight],
    outputs: [loss],
    saved: [weight, ...(dx ? [dx] : []), ...(dWeight ? [dWeight] : [])],
    backward: ([dLoss], [weight, ...gradients], into, needs) => {
      const factor = (dLoss as Tensor).native;
      const results: (Tensor | null)[] = [null, null];
      if (dx && needs(0)) {
        const saved = gradients[0] as Tensor;
        const scaled = empty([rows, hidden], saved);
        native.binary(saved.native, factor, scaled.native, "mul");
        results[0] = scaled.view(shape);
      }
      if (dWeight && needs(1)) {
        const saved = gradients[dx ? 1 : 0] as Tensor;
        const target = into(1);
        const scaled = target?.tensor ?? empty(saved.shape, saved);
        if (target?.accumulate) native.accumulateScaled(saved.native, factor, scaled.native);
        else native.binary(saved.native, factor, scaled.native, "mul");
        if (!target) results[1] = inDType(scaled, weight as Tensor);
      }
      return results;
    },
  });
  // Only the tape holds the gradients, and backward releases them.
  dx?.dispose();
  dWeight?.dispose();
  return result;
}

/**
 * The loss of each token, -log softmax(hidden · weightᵀ)[target] in nats; `linearCrossEntropy`
 * gives the mean. The logits are computed for some rows at a time, as in `linearCrossEntropy`.
 * Backward computes them again, because the gradients of the losses are not known before.
 * @param hidden  (..., hidden) f32 or bf16
 * @param weight  (vocabulary, hidden) of hidden's dtype
 * @param targets (...) i32
 * @returns f32 of the shape of targets; 0 where the target is `ignoreIndex` (-100)
 * @throws NativeError `ERR_TARGET`, at the next wait, as for `linearCrossEntropy`
 */
export function linearTokenLosses(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const op = "linearTokenLosses";
  const { losses } = scoreTargets(op, hidden, weight, targets, options, false);
  const { ignoreIndex = -100 } = options;
  return differentiable(op, {
    inputs: [hidden, weight],
    outputs: [losses],
    saved: [hidden, weight, targets],
    backward: ([dLosses], saved, into, needs) => {
      const [x, w, ids] = saved as [Tensor, Tensor, Tensor];
      const dx = needs(0) ? empty(x.shape, x) : null;
      const target = needs(1) ? into(1) : null;
      const { accumulate = false } = target ?? {};
      // The kernel assigns the gradient of weight, so what must be added to needs another buffer.
      const dWeight =
        target && !accumulate
          ? target.tensor
          : needs(1)
            ? empty(w.shape, { dtype: "f32", device: w.device })
            : null;
      const rows = ids.size;
      const matrix = (tensor: Tensor) => tensor.view([rows, tensor.size / rows]);
      native.linearCrossEntropy(
        matrix(x).native,
        w.native,
        ids.view([rows]).native,
        (dLosses as Tensor).view([rows]).native,
        null,
        null,
        null,
        dx ? matrix(dx).native : null,
        dWeight?.native ?? null,
        ignoreIndex,
        false,
      );
      if (dWeight && target) {
        if (accumulate) native.accumulate(dWeight.native, target.tensor.native);
        return [dx, null];
      }
      return [dx, dWeight && inDType(dWeight, w)];
    },
  });
}

/** Scores of targets, each of the shape of targets. */
export interface TargetScores {
  /** Loss of each target in nats, f32; 0 where it is `ignoreIndex`. */
  losses: Tensor;
  /** 1 where the target is the argmax of its logits, else 0, i32; 0 where it is `ignoreIndex`. */
  greedy: Tensor;
}

/**
 * The losses of `linearTokenLosses`, and whether each target is the most likely token. Of equal
 * logits, the first counts as the most likely, as in `argmax`.
 * @param hidden  (..., hidden) f32 or bf16
 * @param weight  (vocabulary, hidden) of hidden's dtype
 * @param targets (...) i32
 * @throws AutogradError if a gradient would be needed: call it inside noGrad
 * @throws NativeError as `linearTokenLosses`
 */
export function linearTargetScores(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): TargetScores {
  const { losses, greedy } = scoreTargets(
    "linearTargetScores",
    hidden,
    weight,
    targets,
    options,
    true,
  );
  return { losses, greedy: greedy as Tensor };
}

function scoreTargets(
  op: string,
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions,
  wantsGreedy: boolean,
): { losses: Tensor; greedy: Tensor | null } {
  const ignoreIndex = checkArguments(op, "hidden", hidden, weight, targets, options);
  if (wantsGreedy && gradientsEnabled() && (hidden.requiresGrad || weight.requiresGrad)) {
    throw new AutogradError(
      `[${op}] has no gradient: call it inside noGrad(), or use linearCrossEntropy()`,
    );
  }
  const { device } = hidden;
  const losses = empty(targets.shape, { dtype: "f32", device }, op);
  const greedy = wantsGreedy ? empty(targets.shape, { dtype: "i32", device }, op) : null;
  const matrix = hidden.view([targets.size, hidden.shape.at(-1) as number]);
  const ids = targets.view([targets.size]);
  const list = losses.view([targets.size]);
  const greedyList = greedy?.view([targets.size]);
  native.linearCrossEntropy(
    matrix.native,
    weight.native,
    ids.native,
    null,
    null,
    list.native,
    greedyList?.native ?? null,
    null,
    null,
    ignoreIndex,
    true,
  );
  for (const view of [matrix, ids, list, greedyList]) view?.dispose();
  return { losses, greedy };
}

/**
 * `linearCrossEntropy` composed of plain operations: its definition, and the oracle of its test.
 * @param x       (..., hidden)
 * @param weight  (vocabulary, hidden)
 * @param targets (...) i32
 * @returns f32, one element without axes
 */
export function composedLinearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  return composedCrossEntropy(composedLinear(x, weight), targets, options);
}

/**
 * `linearTokenLosses` composed of plain operations: its definition, and the oracle of its test.
 * @param hidden  (..., hidden)
 * @param weight  (vocabulary, hidden)
 * @param targets (...) i32
 * @returns f32 of the shape of targets
 */
export function composedLinearTokenLosses(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  return composedTokenLosses(composedLinear(hidden, weight), targets, options);
}
