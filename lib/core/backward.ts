import {
  checkNumber,
  checkOptions,
  checkSameDevice,
  checkSameDType,
  checkTensor,
  shapeText,
} from "./check.js";
import { ArgumentError, AutogradError, ShapeError } from "./errors.js";
import { native } from "./native.js";
import { scope } from "./scope.js";
import {
  type Edge,
  type GraphNode,
  isWanted,
  noGrad,
  type OnlyInto,
  type TapeRecord,
} from "./tape.js";
import { type BackwardOptions, setBackward, type Tensor, untracked } from "./tensor.js";

/**
 * Records still to run, latest first. All consumers of a record have larger ids than the record.
 */
class Pending {
  readonly #gradients = new Map<TapeRecord, (Tensor | null)[]>();
  readonly #heap: TapeRecord[] = [];

  /** Adds a gradient, holding a reference of its own to it. */
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
 * Runs the graph that led to `outputs` backward, from their `gradients`.
 * @param only the leaves that get gradients; null: all
 * @internal `tensor.backward()` is the public way
 */
export function runBackward(
  outputs: readonly Tensor[],
  gradients: readonly Tensor[],
  only: OnlyInto | null,
): void {
  const pending = new Pending();
  const give = (edge: NonNullable<Edge>, gradient: Tensor): void => {
    if ("leaf" in edge) accumulateIntoLeaf(edge.leaf, gradient);
    else pending.add(edge.node, gradient);
  };
  noGrad(() => {
    try {
      outputs.forEach((output, index) => {
        const edge = output.node ? { node: output.node } : { leaf: output };
        if (isWanted(edge, only)) give(edge, gradients[index] as Tensor);
      });
      for (let item = pending.next(); item; item = pending.next()) {
        const { record, gradients: incoming } = item;
        try {
          scope(() => record.run(incoming, only, give));
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
 * Does the work of `output.backward(options)`, restricted to some leaves.
 * @param only the leaves that get gradients; null: all
 * @internal
 */
export function backwardFrom(
  output: Tensor,
  options: BackwardOptions,
  only: OnlyInto | null,
): void {
  const op = "backward";
  output.checkAlive(op);
  checkOptions(op, options, ["gradient", "scale"]);
  const { gradient, scale = 1 } = options;
  checkNumber(op, "scale", scale);
  if (!output.requiresGrad) {
    throw new AutogradError(
      "[backward] nothing here needs a gradient: no input has requiresGrad, or it was made inside noGrad()",
    );
  }
  const { shape, dtype, device } = output;
  if (gradient !== undefined) {
    checkTensor(op, "gradient", gradient);
    if (scale !== 1) throw new ArgumentError("[backward] give either a gradient or a scale");
    if (shapeText(gradient.shape) !== shapeText(shape)) {
      throw new ShapeError(
        `[backward] expected shape ${shapeText(shape)} (that of the tensor) for gradient but received ` +
          shapeText(gradient.shape),
      );
    }
    checkSameDType(op, output, gradient);
    checkSameDevice(op, output, gradient);
    runBackward([output], [gradient], only);
    return;
  }
  if (output.size !== 1) {
    throw new ShapeError(
      `[backward] expected one element (a loss), got shape ${shapeText(shape)}: sum it, or give its gradient`,
    );
  }
  const seed = untracked(shape, dtype, device, op);
  try {
    native.fill(seed.native, scale);
    runBackward([output], [seed], only);
  } finally {
    seed.dispose();
  }
}

setBackward((output, options) => backwardFrom(output, options, null));
