/** The tape: records of operations for the backward pass. */
import { AsyncLocalStorage } from "node:async_hooks";
import { checkFunction } from "./check.js";
import { currentScope, type Scope } from "./current-scope.js";
import { AutogradError } from "./errors.js";
import type { Memory, Tensor } from "./tensor.js";

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
 * @internal
 */
export interface Reading {
  readonly memory: Readonly<Memory>;
  readonly version: number;
  readonly shape: readonly number[];
}

/** @internal */
export const readingOf = ({ memory, shape }: Tensor): Reading => ({
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
    `[${op}] a tensor of shape [${input.shape}] made by ${input.op} has been written over by ` +
      `${input.memory.writer}, so what is computed from it now has no gradient: use what ` +
      `${input.memory.writer} returned, or make it again`,
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
 * Runs `fn`, which records nothing, and collects the leaves that its operations read.
 * @internal
 */
export function noting<T>(leaves: Set<Tensor>, fn: () => T): T {
  const outer = unrecordedLeaves;
  unrecordedLeaves = leaves;
  try {
    return fn();
  } finally {
    unrecordedLeaves = outer;
  }
}
