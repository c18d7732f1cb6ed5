import { AsyncLocalStorage } from "node:async_hooks";
import type { TapeRecord } from "./autograd.js";
import { argumentError, checkTensor } from "./check.js";
import { AutogradError } from "./errors.js";
import { Tensor } from "./tensor.js";

/**
 * Frees everything made inside it when it ends. The current scope belongs to the asynchronous
 * context: it holds across `await`, and loops that run side by side each have their own.
 */
export class Scope {
  readonly #parent: Scope | undefined;
  readonly #tensors = new Set<Tensor>();
  readonly #records = new Set<TapeRecord>();
  /** Graph records of the tensors that left the scope. */
  readonly #kept: TapeRecord[] = [];
  #open = true;

  constructor(parent: Scope | undefined) {
    this.#parent = parent;
  }

  /** The innermost open scope: this one or one around it. */
  nearestOpen(): Scope | undefined {
    let scope: Scope | undefined = this;
    while (scope && !scope.#open) scope = scope.#parent;
    return scope;
  }

  /** @internal */
  addTensor(tensor: Tensor): void {
    this.#tensors.add(tensor);
  }

  /** @internal */
  removeTensor(tensor: Tensor): void {
    this.#tensors.delete(tensor);
  }

  /** @internal */
  addRecord(record: TapeRecord): void {
    this.#records.add(record);
  }

  /** @internal */
  removeRecord(record: TapeRecord): void {
    this.#records.delete(record);
  }

  /**
   * Moves a tensor to the enclosing scope. The graph that led to it follows when this scope ends.
   * @internal
   */
  moveOut(tensor: Tensor): void {
    this.#tensors.delete(tensor);
    const outer = this.#parent?.nearestOpen();
    tensor.setScope(outer);
    if (tensor.node) this.#kept.push(tensor.node.record);
  }

  /**
   * Ends the scope. Frees its tensors and its graph, except the parts that led to tensors which
   * left the scope.
   */
  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    const outer = this.#parent?.nearestOpen();
    const kept = this.#keptRecords();
    for (const record of this.#records) {
      if (kept.has(record)) record.setScope(outer);
      else record.release();
    }
    this.#records.clear();
    for (const tensor of this.#tensors) tensor.disposeInScope();
    this.#tensors.clear();
    if (storage.getStore() === this) storage.enterWith(outer);
  }

  /**
   * Records through which the gradients of tensors that left the scope flow, as far back as this
   * scope's records reach.
   */
  #keptRecords(): ReadonlySet<TapeRecord> {
    const found = new Set<TapeRecord>();
    if (this.#kept.length === 0) return found;
    let first = Number.POSITIVE_INFINITY;
    for (const { id } of this.#records) first = Math.min(first, id);
    const open = [...this.#kept];
    for (let record = open.pop(); record; record = open.pop()) {
      if (record.id < first || found.has(record)) continue; // inputs have lower ids
      found.add(record);
      for (const edge of record.edges) if (edge && "node" in edge) open.push(edge.node.record);
    }
    return found;
  }
}

const storage = new AsyncLocalStorage<Scope | undefined>();

/** The scope to which new tensors belong, if there is one. */
export function currentScope(): Scope | undefined {
  return storage.getStore()?.nearestOpen();
}

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
    storage.enterWith(inner);
    return inner;
  }
  return storage.run(inner, () => {
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

/** Runs `fn` outside of every scope. The tensors that it makes live until they are disposed. */
export function outsideScopes<T>(fn: () => T): T {
  return storage.run(undefined, fn);
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
