import { AsyncLocalStorage } from "node:async_hooks";
import { backwardFrom, runBackward } from "./backward.js";
import { argumentError, checkArray, checkFunction, checkString, checkTensor } from "./check.js";
import { AutogradError } from "./errors.js";
import { native } from "./native.js";
import { currentScope, type Scope, scope } from "./scope.js";
import { empty, type Memory, Tensor } from "./tensor.js";

/** The record that made a tensor, and the tensor's index among the record's outputs. */
export interface GraphNode {
  readonly record: TapeRecord;
  readonly output: number;
}

/** A leaf's f32 buffer, into which an operation may write the gradient of an input directly. */
export interface GradientTarget {
  readonly tensor: Tensor;
  /** Whether the buffer already holds a gradient that must be added to. */
  readonly accumulate: boolean;
}

/**
 * The backward step of an operation.
 * @param gradients gradients of the outputs; null for an output that was not used
 * @param saved the tensors that the operation saved
 * @param into the buffer for the gradient of input i; null if that input has none. An operation
 *   that writes to it returns null for the input
 * @param needs whether input i needs a gradient at all
 * @param only the leaves that get gradients, for a step that runs a backward pass of its own; null:
 *   all
 * @returns a gradient or null for each input; fresh tensors belong to the engine
 */
export type BackwardFunction = (
  gradients: readonly Tensor[],
  saved: readonly Tensor[],
  into: (input: number) => GradientTarget | null,
  needs: (input: number) => boolean,
  only: OnlyInto | null,
) => readonly (Tensor | null)[];

export type Edge = { leaf: Tensor } | { node: GraphNode } | null;

let nextId = 0;

/** The only leaves to which a backward pass gives gradients. */
export interface OnlyInto {
  readonly leaves: ReadonlySet<Tensor>;
  /**
   * Earlier records were made before the leaves and cannot lead to them. Backward does not touch
   * them.
   */
  readonly since: number;
}

/** Restricts a backward pass to leaves from which nothing has been computed yet. @internal */
export function onlyInto(leaves: readonly Tensor[]): OnlyInto {
  return { leaves: new Set(leaves), since: nextId };
}

/** Whether a gradient flows along the edge. A disposed leaf has nowhere to keep one. @internal */
export function isWanted(edge: Edge | undefined, only: OnlyInto | null): boolean {
  if (!edge) return false;
  if ("leaf" in edge) return !edge.leaf.disposed && (!only || only.leaves.has(edge.leaf));
  return !only || edge.node.record.id >= only.since;
}

/**
 * Memory that a backward step reads, with its version in the forward pass. The numbers must still
 * be the same.
 */
interface Reading {
  readonly memory: Readonly<Memory>;
  readonly version: number;
  readonly shape: readonly number[];
}

const readingOf = ({ memory, shape }: Tensor): Reading => ({
  memory,
  version: memory.version,
  shape,
});

/**
 * One operation on the tape. It holds references of its own to its saved tensors, and drops them
 * when its backward step has run.
 */
export class TapeRecord {
  readonly id = nextId++;
  readonly op: string;
  readonly edges: readonly Edge[];
  readonly outputs: readonly { shape: readonly number[] }[];
  #saved: Tensor[];
  #readings: readonly Reading[];
  #backward: BackwardFunction | null;
  #scope: Scope | undefined;
  #ended: "run" | "scope" | null = null;

  constructor(
    op: string,
    edges: readonly Edge[],
    outputs: readonly Tensor[],
    saved: readonly Tensor[],
    reads: readonly Reading[],
    backward: BackwardFunction,
  ) {
    this.op = op;
    this.edges = edges;
    this.outputs = outputs.map(({ shape }) => ({ shape }));
    this.#saved = saved.map((tensor) => tensor.retain());
    this.#readings = [...saved.map(readingOf), ...reads];
    this.#backward = backward;
    for (const edge of edges) if (edge && "leaf" in edge) edge.leaf.hooks?.recorded();
    this.setScope(currentScope());
  }

  setScope(scope: Scope | undefined): void {
    this.#scope = scope;
    scope?.addRecord(this);
  }

  /**
   * Runs the backward step once and releases everything saved.
   * @param give receives the gradient that flows along an edge
   */
  run(
    gradients: readonly (Tensor | null)[],
    only: OnlyInto | null,
    give: (edge: NonNullable<Edge>, gradient: Tensor) => void,
  ): void {
    const backward = this.#backward;
    if (!backward) {
      throw new AutogradError(
        this.#ended === "scope"
          ? `[backward] the graph of ${this.op} is gone: the scope it was made in has ended`
          : `[backward] the graph of ${this.op} has run already: its saved tensors are gone; run the forward again`,
      );
    }
    this.#backward = null; // it must not run from within itself either
    const { edges } = this;
    const needs = (input: number): boolean => isWanted(edges[input], only);
    const into = (input: number): GradientTarget | null => {
      const edge = edges[input];
      return edge && "leaf" in edge && needs(input) ? edge.leaf.gradientTarget() : null;
    };
    let done = false;
    try {
      this.#checkReadings();
      for (const tensor of this.#saved) tensor.hooks?.neededInBackward();
      const results = backward(gradients as readonly Tensor[], this.#saved, into, needs, only);
      edges.forEach((edge, input) => {
        const gradient = results[input];
        if (edge && gradient && needs(input)) give(edge, gradient);
      });
      done = true;
    } finally {
      edges.forEach((edge, input) => {
        if (!edge || !("leaf" in edge)) return;
        if (done && needs(input)) edge.leaf.hooks?.gradientWritten();
        else edge.leaf.hooks?.dropped();
      });
      this.#end("run");
    }
  }

  #checkReadings(): void {
    for (const { memory, version, shape } of this.#readings) {
      if (memory.version === version) continue;
      throw new AutogradError(
        `[backward] ${this.op} needs a tensor of shape [${shape}] as it was in the forward pass, but ` +
          `${memory.writer} has written over it since: run backward() before that, or the forward pass again`,
      );
    }
  }

  /** Releases everything saved, when the scope ends before a backward pass. */
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
    this.#readings = [];
    this.#scope?.removeRecord(this);
    this.#scope = undefined;
  }
}

const gradientMode = new AsyncLocalStorage<boolean>();

/** Whether operations are currently recorded. */
export function gradientsEnabled(): boolean {
  return gradientMode.getStore() ?? true;
}

/** Runs `fn` without recording, for evaluation and generation. Holds across await. */
export function noGrad<T>(fn: () => T): T {
  checkFunction("noGrad", "fn", fn);
  return gradientMode.run(false, fn);
}

/** Runs `fn` with recording, even inside `noGrad`. */
export function withGrad<T>(fn: () => T): T {
  return gradientMode.run(true, fn);
}

type One<T extends readonly Tensor[]> = T extends readonly [infer Only] ? Only : T;

/**
 * Checks that a tensor still holds the numbers that its place in the graph stands for. Leaves may
 * change between uses.
 * @throws AutogradError if the tensor was overwritten through another tensor
 * @internal
 */
export function checkCurrent(op: string, input: Tensor): void {
  if (!input.node || !input.outdated) return;
  throw new AutogradError(
    `[${op}] a tensor of shape [${input.shape}] made by ${input.op} has been written over by ${input.memory.writer}, so ` +
      `what is computed from it now has no gradient: use what ${input.memory.writer} returned, or make it again`,
  );
}

/** Leaves read by operations that are not recorded. The first pass of `recompute` collects them. */
let unrecordedLeaves: Set<Tensor> | null = null;

/**
 * Records an operation on the tape if one of its inputs needs a gradient.
 * @param options.saved tensors that backward reads; kept alive until then
 * @param options.reads further memory that backward reads and that others keep alive
 * @param options.always record even if no input needs a gradient (the operation uses parameters on
 *   its own)
 * @returns the outputs: the tensor itself if there is one, otherwise the tuple
 */
export function differentiable<const T extends readonly Tensor[]>(
  op: string,
  options: {
    inputs: readonly Tensor[];
    outputs: T;
    saved?: readonly Tensor[];
    reads?: readonly Reading[];
    always?: boolean;
    backward: BackwardFunction;
  },
): One<T> {
  const { inputs, outputs, saved = [], reads = [], always = false, backward } = options;
  for (const output of outputs) output.op = op;
  const recording = gradientsEnabled();
  if (unrecordedLeaves && !recording) {
    for (const input of inputs) {
      if (input.requiresGrad && !input.node) unrecordedLeaves.add(input);
    }
  }
  if (recording && (always || inputs.some((input) => input.requiresGrad))) {
    const stale = inputs.find((input) => input.node && input.outdated);
    if (stale) {
      for (const output of outputs) output.dispose();
      checkCurrent(op, stale);
    }
    const edges = inputs.map((input): Edge => {
      if (!input.requiresGrad) return null;
      return input.node ? { node: input.node } : { leaf: input };
    });
    const record = new TapeRecord(op, edges, outputs, saved, reads, backward);
    outputs.forEach((output, index) => {
      output.setNode({ record, output: index });
    });
  }
  return (outputs.length === 1 ? outputs[0] : outputs) as One<T>;
}

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

/** Runs `fn`, which records nothing, and collects the leaves that its operations read. */
function noting<T>(leaves: Set<Tensor>, fn: () => T): T {
  const outer = unrecordedLeaves;
  unrecordedLeaves = leaves;
  try {
    return fn();
  } finally {
    unrecordedLeaves = outer;
  }
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
