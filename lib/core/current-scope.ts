/** The scope that new tensors belong to. */
import { AsyncLocalStorage } from "node:async_hooks";
import type { TapeRecord } from "./tape.js";
import type { Tensor } from "./tensor.js";

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
    if (scopes.getStore() === this) scopes.enterWith(outer);
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

/** @internal */
export const scopes = new AsyncLocalStorage<Scope | undefined>();

/** The scope to which new tensors belong, if there is one. */
export function currentScope(): Scope | undefined {
  return scopes.getStore()?.nearestOpen();
}

/** Runs `fn` outside of every scope. The tensors that it makes live until they are disposed. */
export function outsideScopes<T>(fn: () => T): T {
  return scopes.run(undefined, fn);
}
