import { argumentError, checkTensor } from "./check.js";
import { currentScope, Scope, scopes } from "./current-scope.js";
import { AutogradError } from "./errors.js";
import { Tensor } from "./tensor.js";

export { currentScope, outsideScopes, type Scope } from "./current-scope.js";

/**
 * Moves the results of a scope's function out of the scope: tensors, alone or in arrays and plain
 * objects.
 */
function moveResultsOut(scope: Scope, value: unknown, seen = new Set<object>()): void {
  if (typeof value !== "object" || value === null) return;
  if (Tensor.isTensor(value)) {
    if (value.scope === scope) scope.moveOut(value);
    return;
  }
  const nests = Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype;
  if (!nests || seen.has(value)) return;
  seen.add(value);
  for (const item of Object.values(value)) moveResultsOut(scope, item, seen);
}

/**
 * Opens a scope. Without an argument, `using step = scope()` frees everything made until the end of
 * the block. With a function, it runs the function in a scope of its own and keeps the tensors that
 * it returns (alone, in arrays or in plain objects). The function may be asynchronous.
 *
 * A `using` scope is entered for the rest of the running function and everything it awaits. Loops
 * that are started without awaiting each other should use the function form, which cannot leak into
 * the caller.
 */
export function scope(): Scope;
export function scope<T>(fn: () => T): T;
export function scope<T>(fn?: () => T): Scope | T {
  if (fn !== undefined && typeof fn !== "function") {
    throw argumentError("scope", "a function or nothing", "fn", fn);
  }
  const inner = new Scope(currentScope());
  if (fn === undefined) {
    scopes.enterWith(inner);
    return inner;
  }
  return scopes.run(inner, () => {
    let result: T;
    try {
      result = fn();
    } catch (error) {
      inner[Symbol.dispose]();
      throw error;
    }
    if (result instanceof Promise) {
      return result.then(
        (value) => {
          moveResultsOut(inner, value);
          inner[Symbol.dispose]();
          return value;
        },
        (error) => {
          inner[Symbol.dispose]();
          throw error;
        },
      ) as T;
    }
    moveResultsOut(inner, result);
    inner[Symbol.dispose]();
    return result;
  });
}

/**
 * Moves a tensor into the enclosing scope. Without one, the tensor lives until `dispose()`.
 * @returns the same tensor
 */
export function keep<T extends Tensor>(tensor: T): T {
  checkTensor("keep", "tensor", tensor);
  const owner = tensor.scope;
  if (!owner) return tensor;
  if (owner.nearestOpen() !== owner) {
    throw new AutogradError("[keep] the tensor's scope has ended");
  }
  owner.moveOut(tensor);
  return tensor;
}
