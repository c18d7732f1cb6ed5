/** The tape: what operations record for their backward pass. */
import { AsyncLocalStorage } from "node:async_hooks";
import { checkFunction } from "./check.js";
import { currentScope, type Scope } from "./current-scope.js";
import { AutogradError } from "./errors.js";
import type { Memory, Tensor } from "./tensor.js";

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
 * @param into where the gradient of input i can be written directly; null if it has no place of its
 *   own. If used, null is returned for that input
 * @param needs whether input i needs a gradient at all
 * @param only the leaves that get gradients, for a step that runs a backward of its own; null: all
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

/** The only leaves that a backward gives gradients to. */
export interface OnlyInto {
  readonly leaves: ReadonlySet<Tensor>;
  /**
   * Records before this one were made before the leaves and cannot lead to them: they are left as
   * they are.
   */
  readonly since: number;
}

/** Restricts a backward to leaves that nothing has been computed from yet. @internal */
export function onlyInto(leaves: readonly Tensor[]): OnlyInto {
  return { leaves: new Set(leaves), since: nextId };
}

/** Whether a gradient goes along the edge. A disposed leaf has nowhere to keep one. @internal */
export function isWanted(edge: Edge | undefined, only: OnlyInto | null): boolean {
  if (!edge) return false;
  if ("leaf" in edge) return !edge.leaf.disposed && (!only || only.leaves.has(edge.leaf));
  return !only || edge.node.record.id >= only.since;
}

/**
 * Memory that a backward reads, and its version in the forward pass: backward needs the same
 * numbers.
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
 * One operation on the tape. It holds its own references to what it saves and drops them when its
 * backward has run.
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
   * Runs the backward step once and lets go of everything saved.
   * @param give takes the gradient that goes along an edge
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
    this.#backward = null; // nor may it be run from within itself
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
    this.#readings = [];
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
  checkFunction("noGrad", "fn", fn);
  return gradientMode.run(false, fn);
}

/** Runs `fn` with recording, also inside `noGrad`. */
export function withGrad<T>(fn: () => T): T {
  return gradientMode.run(true, fn);
}

type One<T extends readonly Tensor[]> = T extends readonly [infer Only] ? Only : T;

/**
 * What is in a tensor must be what its place in the graph stands for. Leaves may change between
 * uses.
 * @throws AutogradError if it was written over through another tensor
 * @internal
 */
export function checkCurrent(op: string, input: Tensor): void {
  if (!input.node || !input.outdated) return;
  throw new AutogradError(
    `[${op}] a tensor of shape [${input.shape}] made by ${input.op} has been written over by ${input.memory.writer}, so ` +
      `what is computed from it now has no gradient: use what ${input.memory.writer} returned, or make it again`,
  );
}

/**
 * The leaves that operations read while nothing is recorded: recompute's first pass asks for them.
 */
let unrecordedLeaves: Set<Tensor> | null = null;

/**
 * Puts an operation on the tape if one of its inputs needs a gradient.
 * @param options.saved what backward reads; kept alive until then
 * @param options.reads what backward reads besides, from memory that others keep alive
 * @param options.always record even if no input needs a gradient (the operation reaches parameters
 *   by itself)
 * @returns the outputs: the tensor itself if there is one, else the tuple
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

/** Runs `fn`, which records nothing, and notes the leaves that its operations read. @internal */
export function noting<T>(leaves: Set<Tensor>, fn: () => T): T {
  const outer = unrecordedLeaves;
  unrecordedLeaves = leaves;
  try {
    return fn();
  } finally {
    unrecordedLeaves = outer;
  }
}
