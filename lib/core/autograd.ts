/** Differentiates wholes: functions, and parts that are computed again. */
import { backwardFrom, runBackward } from "./backward.js";
import { argumentError, checkArray, checkFunction, checkString, checkTensor } from "./check.js";
import { AutogradError } from "./errors.js";
import { native } from "./native.js";
import { currentScope, scope } from "./scope.js";
import {
  type BackwardFunction,
  differentiable,
  gradientsEnabled,
  noGrad,
  noting,
  onlyInto,
  readingOf,
  withGrad,
} from "./tape.js";
import { empty, Tensor } from "./tensor.js";

export {
  type BackwardFunction,
  checkCurrent,
  differentiable,
  type GradientTarget,
  gradientsEnabled,
  noGrad,
  withGrad,
} from "./tape.js";

/**
 * Runs `fn` without keeping the tensors it saves, and runs it again in backward: activation
 * recomputation (Chen et al. 2016, arXiv 1604.06174). The kernels are deterministic, so the
 * gradients have the same bits as without recomputation.
 * @param fn a function of `inputs` alone (it may use parameters). It must return tensors made
 *   inside it, and must not change its inputs in place
 * @throws AutogradError if `fn` breaks these rules
 */
export function recompute<const T extends readonly Tensor[]>(
  op: string,
  inputs: readonly Tensor[],
  fn: (...inputs: Tensor[]) => T,
): T {
  checkString("recompute", "op", op);
  checkArray("recompute", "inputs", inputs, "an array of tensors");
  inputs.forEach((input, index) => {
    checkTensor("recompute", `inputs[${index}]`, input);
  });
  checkFunction("recompute", "fn", fn);
  if (!gradientsEnabled()) return fn(...inputs);
  const versions = inputs.map((input) => input.memory.version);
  const leaves = new Set<Tensor>();
  const outputs = noGrad(() =>
    scope(() => {
      const made = noting(leaves, () => fn(...inputs));
      if (!Array.isArray(made) || !made.every((output) => Tensor.isTensor(output))) {
        throw argumentError("recompute", "an array of tensors", "the result of fn", made);
      }
      if (inputs.some((input, index) => input.memory.version !== versions[index])) {
        throw new AutogradError(
          `[recompute] ${op} changes one of its inputs in place: backward could not compute it again`,
        );
      }
      if (made.some((output) => inputs.includes(output) || output.requiresGrad)) {
        throw new AutogradError(
          `[recompute] ${op} returns a tensor that was not made inside, such as one of its inputs: use that directly`,
        );
      }
      return made;
    }),
  );
  const needed = inputs.map((input) => input.requiresGrad);
  const reads = [...leaves].filter((leaf) => !leaf.disposed).map(readingOf);
  const backward: BackwardFunction = (gradients, saved, _into, _needs, only) => {
    const captured: (Tensor | null)[] = inputs.map(() => null);
    withGrad(() => {
      const entries = saved.map((tensor) => tensor.view(tensor.shape));
      const wanted = entries.filter((_, index) => needed[index]);
      // A record without inputs, whose outputs are the block's inputs. It captures their gradients
      // in the tensors' dtype.
      differentiable(`${op} input`, {
        inputs: [],
        outputs: wanted,
        always: true,
        backward: (arrived) => {
          arrived.forEach((gradient, position) => {
            if (gradient) captured[entries.indexOf(wanted[position] as Tensor)] = gradient.retain();
          });
          return [];
        },
      });
      const again = fn(...entries);
      const used = again.flatMap((output, index) => {
        const gradient = gradients[index];
        return gradient && output.requiresGrad ? [{ output, gradient }] : [];
      });
      runBackward(
        used.map(({ output }) => output),
        used.map(({ gradient }) => gradient),
        only,
      );
    });
    for (const tensor of captured) tensor?.setScope(currentScope());
    return captured;
  };
  differentiable(op, { inputs, outputs, saved: inputs, reads, always: true, backward });
  return outputs;
}

/**
 * The gradient of a scalar function: `grad(fn)(x, y)` returns the gradients (f32) of `fn(x, y)`
 * with respect to x and y. First order only: the gradients are not connected to the graph. The
 * `grad` of the inputs, and of everything else that `fn` uses, such as a module's parameters, does
 * not change.
 * @throws AutogradError if the result of `fn` depends on nothing that needs a gradient
 */
export function grad(fn: (...inputs: Tensor[]) => Tensor): (...inputs: Tensor[]) => Tensor[] {
  if (typeof fn !== "function") throw argumentError("grad", "a function", "fn", fn);
  return (...inputs) =>
    scope(() =>
      withGrad(() => {
        const leaves = inputs.map((input, index) => {
          checkTensor("grad", `input ${index}`, input);
          const leaf = input.detach();
          leaf.requiresGrad = true;
          return leaf;
        });
        const only = onlyInto(leaves);
        const output = fn(...leaves);
        checkTensor("grad", "the result of fn", output);
        backwardFrom(output, {}, only);
        return leaves.map((leaf) => {
          const result = empty(leaf.shape, { dtype: "f32", device: leaf.device }, "grad");
          if (leaf.grad) native.cast(leaf.grad.native, result.native);
          else native.fill(result.native, 0);
          return result;
        });
      }),
    );
}
