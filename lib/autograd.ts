import { AsyncLocalStorage } from "node:async_hooks";
import { AutogradError } from "./errors.js";
import { native } from "./native.js";
import { currentScope, type Scope, scope } from "./scope.js";
import { empty, type Tensor, untracked } from "./tensor.js";

/** The record that made a tensor, and which of its outputs the tensor is. */
export interface GraphNode {
  readonly record: TapeRecord;
  readonly output: number;
}

/** Where an operation may write the gradient of an input directly: a leaf's f32 buffer. */
export interface GradientTarget {
  readonly tensor: Tensor;
  /** Whether the buffer already holds a gradient that must be added to. */
  readonly accumulate: boolean;
}

/**
 * The backward step of an operation.
 * @param gradients of the outputs; null for an output that nothing used
 * @param saved the tensors it saved
 * @param into where the gradient of input i can be written directly; null if it has no place of its own. If used, null is
 *   returned for that input
 * @param needs whether input i needs a gradient at all
 * @returns a gradient or null for each input; fresh tensors belong to the engine
 */
export type BackwardFunction = (
  gradients: readonly Tensor[],
  saved: readonly Tensor[],
  into: (input: number) => GradientTarget | null,
  needs: (input: number) => boolean,
) => readonly (Tensor | null)[];

type Edge = { leaf: Tensor } | { node: GraphNode } | null;

let nextId = 0;

/** One operation on the tape. It holds its own references to what it saves and drops them when its backward has run. */
export class TapeRecord {
  readonly id = nextId++;
  readonly op: string;
  readonly edges: readonly Edge[];
  readonly outputs: readonly { shape: readonly number[] }[];
  #saved: Tensor[];
  #backward: BackwardFunction | null;
  #scope: Scope | undefined;
  #ended: "run" | "scope" | null = null;

  constructor(
    op: string,
    edges: readonly Edge[],
    outputs: readonly Tensor[],
    saved: readonly Tensor[],
    backward: BackwardFunction,
  ) {
    this.op = op;
    this.edges = edges;
    this.outputs = outputs.map(({ shape }) => ({ shape }));
    this.#saved = saved.map((tensor) => tensor.retain());
    this.#backward = backward;
    for (const edge of edges) if (edge && "leaf" in edge) edge.leaf.hooks?.recorded();
    this.setScope(currentScope());
  }

  setScope(scope: Scope | undefined): void {
    this.#scope = scope;
    scope?.addRecord(this);
  }

  /** Runs the backward step once and lets go of everything saved. */
  run(gradients: readonly (Tensor | null)[]): readonly (Tensor | null)[] {
    const backward = this.#backward;
    if (!backward) {
      throw new AutogradError(
        this.#ended === "scope"
          ? `[backward] the graph of ${this.op} is gone: the scope it was made in has ended`
          : `[backward] the graph of ${this.op} has run already: its saved tensors are gone; run the forward again`,
      );
    }
    this.#backward = null; // nor may it be run from within itself
    const into = (input: number): GradientTarget | null => {
      const edge = this.edges[input];
      return edge && "leaf" in edge ? edge.leaf.gradientTarget() : null;
    };
    const needs = (input: number): boolean => this.edges[input] != null;
    try {
      for (const tensor of this.#saved) tensor.hooks?.neededInBackward();
      return backward(gradients as readonly Tensor[], this.#saved, into, needs);
    } finally {
      this.#end("run");
    }
  }

  /** Lets go of everything saved: the scope ended before a backward came. */
  release(): void {
    if (this.#ended) return;
    for (const edge of this.edges) if (edge && "leaf" in edge) edge.leaf.hooks?.dropped();
    this.#end("scope");
  }

  #end(how: "run" | "scope"): void {
    if (this.#ended) return;
    this.#ended = how;
    this.#backward = null;
    for (const tensor of this.#saved) tensor.dispose();
    this.#saved = [];
    this.#scope?.removeRecord(this);
    this.#scope = undefined;
  }
}

const gradientMode = new AsyncLocalStorage<boolean>();

/** Whether operations are recorded now. */
export function gradientsEnabled(): boolean {
  return gradientMode.getStore() ?? true;
}

/** Runs `fn` without recording: for evaluation and generation. Also across await. */
export function noGrad<T>(fn: () => T): T {
  return gradientMode.run(false, fn);
}

/** Runs `fn` with recording, also inside `noGrad`. */
export function withGrad<T>(fn: () => T): T {
  return gradientMode.run(true, fn);
}

type One<T extends readonly Tensor[]> = T extends readonly [infer Only] ? Only : T;

/**
 * Puts an operation on the tape if one of its inputs needs a gradient.
 * @param options.saved what backward reads; kept alive until then
 * @param options.always record even if no input needs a gradient (the operation reaches parameters by itself)
 * @returns the outputs: the tensor itself if there is one, else the tuple
 */
export function differentiable<const T extends readonly Tensor[]>(
  op: string,
  options: {
    inputs: readonly Tensor[];
    outputs: T;
    saved?: readonly Tensor[];
    always?: boolean;
    backward: BackwardFunction;
  },
): One<T> {
  const { inputs, outputs, saved = [], always = false, backward } = options;
  for (const output of outputs) output.op = op;
  if (gradientsEnabled() && (always || inputs.some((input) => input.requiresGrad))) {
    const edges = inputs.map((input): Edge => {
      if (!input.requiresGrad) return null;
      return input.node ? { node: input.node } : { leaf: input };
    });
    const record = new TapeRecord(op, edges, outputs, saved, backward);
    outputs.forEach((output, index) => {
      output.node = { record, output: index };
      output.requiresGrad = true;
    });
  }
  return (outputs.length === 1 ? outputs[0] : outputs) as One<T>;
}

/** Records still to run, latest first: every record's consumers have larger ids than itself. */
class Pending {
  readonly #gradients = new Map<TapeRecord, (Tensor | null)[]>();
  readonly #heap: TapeRecord[] = [];

  /** Takes a reference of its own to the gradient. */
  add({ record, output }: GraphNode, gradient: Tensor): void {
    let slots = this.#gradients.get(record);
    if (!slots) {
      slots = record.outputs.map(() => null);
      this.#gradients.set(record, slots);
      this.#push(record);
    }
    const earlier = slots[output];
    if (earlier) {
      const sum = untracked(gradient.shape, gradient.dtype, gradient.device, "backward");
      native.binary(earlier.native, gradient.native, sum.native, "add");
      earlier.dispose();
      slots[output] = sum;
    } else {
      slots[output] = gradient.retain();
    }
  }

  next(): { record: TapeRecord; gradients: (Tensor | null)[] } | null {
    const record = this.#pop();
    if (!record) return null;
    const gradients = this.#gradients.get(record) as (Tensor | null)[];
    this.#gradients.delete(record);
    return { record, gradients };
  }

  clear(): void {
    for (const slots of this.#gradients.values()) for (const slot of slots) slot?.dispose();
    this.#gradients.clear();
    this.#heap.length = 0;
  }

  #push(record: TapeRecord): void {
    const heap = this.#heap;
    let index = heap.push(record) - 1;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if ((heap[parent] as TapeRecord).id >= record.id) break;
      heap[index] = heap[parent] as TapeRecord;
      index = parent;
    }
    heap[index] = record;
  }

  #pop(): TapeRecord | null {
    const heap = this.#heap;
    const top = heap[0];
    if (!top) return null;
    const last = heap.pop() as TapeRecord;
    if (heap.length > 0) {
      let index = 0;
      for (;;) {
        let child = 2 * index + 1;
        if (child >= heap.length) break;
        const right = heap[child + 1];
        if (right && right.id > (heap[child] as TapeRecord).id) child++;
        if ((heap[child] as TapeRecord).id <= last.id) break;
        heap[index] = heap[child] as TapeRecord;
        index = child;
      }
      heap[index] = last;
    }
    return top;
  }
}

/** Adds a gradient to a leaf's f32 buffer. */
function accumulateIntoLeaf(leaf: Tensor, gradient: Tensor): void {
  const { tensor, accumulate } = leaf.gradientTarget();
  if (accumulate) native.accumulate(gradient.native, tensor.native);
  else native.cast(gradient.native, tensor.native);
}

/**
 * Runs the graph behind `outputs` backward from their `gradients`.
 * @internal `tensor.backward()` is the public way
 */
export function runBackward(outputs: readonly Tensor[], gradients: readonly Tensor[]): void {
  const pending = new Pending();
  noGrad(() => {
    outputs.forEach((output, index) => {
      const gradient = gradients[index] as Tensor;
      if (output.node) pending.add(output.node, gradient);
      else accumulateIntoLeaf(output, gradient);
    });
    try {
      for (let item = pending.next(); item; item = pending.next()) {
        const { record, gradients: incoming } = item;
        try {
          scope(() => {
            const results = record.run(incoming);
            record.edges.forEach((edge, index) => {
              const gradient = results[index];
              if (!edge || !gradient) return;
              if ("leaf" in edge) accumulateIntoLeaf(edge.leaf, gradient);
              else pending.add(edge.node, gradient);
            });
            for (const edge of record.edges) {
              if (edge && "leaf" in edge) edge.leaf.hooks?.gradientWritten();
            }
          });
        } finally {
          for (const gradient of incoming) gradient?.dispose();
        }
      }
    } finally {
      pending.clear();
    }
  });
}

/**
 * Runs `fn` without keeping what it saves, and runs it again in backward: activation recomputation (Chen et al. 2016,
 * arXiv 1604.06174). The kernels are deterministic, so the gradients have the same bits as without.
 * @param fn a function of `inputs` alone (it may use parameters); must return tensors made inside
 */
export function recompute<const T extends readonly Tensor[]>(
  op: string,
  inputs: readonly Tensor[],
  fn: (...inputs: Tensor[]) => T,
): T {
  if (!gradientsEnabled()) return fn(...inputs);
  const outputs = noGrad(() => scope(() => fn(...inputs)));
  const needed = inputs.map((input) => input.requiresGrad);
  const backward: BackwardFunction = (gradients, saved) => {
    const captured: (Tensor | null)[] = inputs.map(() => null);
    withGrad(() => {
      const entries = saved.map((tensor) => tensor.view(tensor.shape));
      const wanted = entries.filter((_, index) => needed[index]);
      // A record without inputs whose outputs are the block's inputs: it catches their gradients in the tensors' dtype.
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
      );
    });
    for (const tensor of captured) tensor?.setScope(currentScope());
    return captured;
  };
  differentiable(op, { inputs, outputs, saved: inputs, always: true, backward });
  return outputs;
}

/**
 * The gradient of a scalar function: `grad(fn)(x, y)` gives the gradients of `fn(x, y)` with respect to x and y (f32).
 * The inputs' own `grad` is left alone.
 */
export function grad(fn: (...inputs: Tensor[]) => Tensor): (...inputs: Tensor[]) => Tensor[] {
  return (...inputs) =>
    scope(() =>
      withGrad(() => {
        const leaves = inputs.map((input) => {
          const leaf = input.detach();
          leaf.requiresGrad = true;
          return leaf;
        });
        fn(...leaves).backward();
        return leaves.map((leaf) => {
          const result = empty(leaf.shape, { dtype: "f32", device: leaf.device }, "grad");
          if (leaf.grad) native.cast(leaf.grad.native, result.native);
          else native.fill(result.native, 0);
          return result;
        });
      }),
    );
}
