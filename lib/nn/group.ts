import { checkMade } from "../core/check-values.js";
import { zeros } from "../core/create.js";
import type { Device } from "../core/device.js";
import { native } from "../core/native.js";
import { outsideScopes } from "../core/scope.js";
import type { DType, Tensor } from "../core/tensor.js";
import type { ParameterGroupSpec } from "./module.js";
import { GroupHooks, type Layout, type ParallelStrategy } from "./parallel.js";
import type { Parameter } from "./parameter.js";

/** Parameters start at multiples of this many elements, so that every view is aligned for the widest loads. */
const alignment = 64;

/** Position of a parameter in its group. */
export interface PlacedParameter {
  readonly name: string;
  readonly parameter: Parameter;
  /** First element within the group's buffers. */
  readonly offset: number;
}

/** A range of elements of a buffer. */
export interface Range {
  readonly offset: number;
  readonly size: number;
}

/** Intersection of two ranges; null if it is empty. */
export function overlap(a: Range, b: Range): Range | null {
  const offset = Math.max(a.offset, b.offset);
  const size = Math.min(a.offset + a.size, b.offset + b.size) - offset;
  return size > 0 ? { offset, size } : null;
}

/** Layout of a group's parameters, before the group has memory. */
export interface GroupPlan {
  readonly name: string;
  readonly index: number;
  /** Number of elements, a multiple of the number of parts into which the group is divided. */
  readonly size: number;
  readonly entries: readonly PlacedParameter[];
}

export function planGroup(spec: ParameterGroupSpec, index: number, parts: number): GroupPlan {
  const entries: PlacedParameter[] = [];
  let size = 0;
  for (const [name, parameter] of spec.parameters) {
    entries.push({ name, parameter, offset: size });
    size += Math.ceil(parameter.size / alignment) * alignment;
  }
  const unit = alignment * parts;
  return { name: spec.name, index, size: Math.ceil(size / unit) * unit, entries };
}

/**
 * A buffer for whole weights and gradients, shared by groups in turn, in a process that owns only
 * parts of them.
 */
export class Slot {
  readonly weights: Tensor;
  #gradients: Tensor | null = null;
  readonly #size: number;

  constructor(size: number, device: Device, dtype: DType) {
    this.#size = size;
    this.weights = zeros([size], { dtype, device });
  }

  get gradients(): Tensor {
    this.#gradients ??= outsideScopes(() => zeros([this.#size], { device: this.weights.device }));
    return this.#gradients;
  }

  /** Frees the views of the parameter. */
  dispose(): void {
    this.weights.dispose();
    this.#gradients?.dispose();
  }
}

/** Device and number format of a group of parameters. */
export interface GroupOptions {
  device: Device;
  dtype: DType;
  training: boolean;
  layout: Layout;
  strategy: ParallelStrategy | null;
  /**
   * Slot that holds the whole weights while they are needed; null if the group has a buffer of its
   * own.
   */
  slot: Slot | null;
}

/** Parameters with one contiguous buffer for each kind of state (DESIGN: flat groups). */
export class ParameterGroup {
  readonly name: string;
  /** Index in the store's list of groups. */
  readonly index: number;
  /**
   * Number of elements of each whole buffer, padding included. Padding is zero, and stays so except
   * in slots.
   */
  readonly size: number;
  readonly entries: readonly PlacedParameter[];
  /** The elements that this process owns: all of them, or one of several equal parts. */
  readonly owned: Range;
  /**
   * The weights that the model computes with: f32 or bf16. With a slot, they are only valid while
   * the group has its turn.
   */
  readonly weights: Tensor;
  /** The owned part of the weights: a view of `weights`, or memory of its own. */
  readonly ownedWeights: Tensor;
  /**
   * f32 master copy of the owned weights, which the optimizer updates. Only exists for bf16 weights
   * of a model that trains.
   */
  readonly master: Tensor | null;
  readonly slot: Slot | null;
  #gradients: Tensor | null = null;
  #ownedGradients: Tensor | null = null;

  constructor(plan: GroupPlan, options: GroupOptions) {
    const made = Array.isArray(plan?.entries) && options?.layout !== undefined;
    checkMade("ParameterGroup", "ParameterStore", made);
    const { device, dtype, training, layout, strategy, slot } = options;
    this.name = plan.name;
    this.index = plan.index;
    this.size = plan.size;
    this.entries = plan.entries;
    this.slot = slot;
    const part = plan.size / layout.parts;
    this.owned = { offset: layout.part * part, size: part };
    this.weights = slot ? slot.weights.view([plan.size]) : zeros([plan.size], { dtype, device });
    this.ownedWeights = slot
      ? zeros([part], { dtype, device })
      : this.weights.view([part], this.owned.offset);
    this.master = training && dtype === "bf16" ? zeros([part], { device }) : null;
    const hooks = strategy && new GroupHooks(this, strategy);
    for (const { parameter, offset } of plan.entries) {
      const tensor = this.weights.view(parameter.shape, offset);
      tensor.hooks = hooks;
      const divided = layout.parts > 1 && (slot || this.master) ? "divided" : null;
      parameter.place(
        tensor,
        divided ?? this.master?.view(parameter.shape, offset) ?? null,
        strategy && (() => strategy.needed(this, false)),
      );
    }
  }

  /**
   * f32 gradients written by backward. Allocated on first use, so a model that only generates has
   * none.
   */
  get gradients(): Tensor {
    this.#gradients ??= outsideScopes(() => {
      const buffer = this.slot
        ? this.slot.gradients.view([this.size])
        : zeros([this.size], { device: this.weights.device });
      for (const { parameter, offset } of this.entries) {
        parameter.leaf.bindGradient(buffer.view(parameter.shape, offset));
      }
      return buffer;
    });
    return this.#gradients;
  }

  /**
   * f32 gradients read by the optimizer: the owned part of `gradients`, or separate memory with a
   * slot.
   */
  get ownedGradients(): Tensor {
    this.#ownedGradients ??= outsideScopes(() => {
      const { offset, size } = this.owned;
      return this.slot
        ? zeros([size], { device: this.weights.device })
        : this.gradients.view([size], offset);
    });
    return this.#ownedGradients;
  }

  /**
   * Zeroes the gradients that this step's backward did not write, those of unused and frozen
   * parameters.
   */
  completeGradients(): void {
    void this.gradients; // moves existing gradients into the flat buffer, places the others
    for (const { parameter } of this.entries) {
      if (parameter.leaf.grad && parameter.trainable) continue;
      const buffer = parameter.leaf.gradientBuffer;
      if (buffer) native.fill(buffer.native, 0);
    }
  }

  /** Discards the gradients. The next backward overwrites them without reading. */
  zeroGrad(): void {
    for (const { parameter } of this.entries) parameter.leaf.zeroGrad();
  }

  /** Clears the gradients between parameters and after the last one, which a slot leaves as they are. */
  clearPadding(): void {
    for (const [index, { parameter, offset }] of this.entries.entries()) {
      const end = offset + parameter.size;
      const next = this.entries[index + 1]?.offset ?? this.size;
      if (next === end) continue;
      const gap = this.gradients.view([next - end], end);
      native.fill(gap.native, 0);
      gap.dispose();
    }
  }

  /** Sets the gradients that the optimizer reads to zero. */
  clearOwnedGradients(): void {
    native.fill(this.ownedGradients.native, 0);
  }

  /**
   * Writes f32 values into the weights and the master copy, as far as this process holds them.
   * @param offset first element within the group
   */
  write(offset: number, values: Tensor): void {
    const range = { offset, size: values.size };
    if (!this.slot) copyInto(this.weights, offset, values, 0, range.size);
    this.changed("a write to the parameters");
    const mine = overlap(range, this.owned);
    if (!mine) return;
    const [to, from] = [mine.offset - this.owned.offset, mine.offset - offset];
    if (this.slot) copyInto(this.ownedWeights, to, values, from, mine.size);
    if (this.master) copyInto(this.master, to, values, from, mine.size);
  }

  /** Reports a write in place to the graphs that have saved the weights. */
  changed(writer: string): void {
    this.weights.changed(writer);
    this.master?.changed(writer);
  }

  /**
   * Writes the part of `values` that lies in this process's range into a buffer of owned elements.
   * `offset` is the first element of `values` within the group.
   */
  writeOwned(buffer: Tensor, offset: number, values: Tensor): void {
    const mine = overlap({ offset, size: values.size }, this.owned);
    if (!mine) return;
    const to = mine.offset - this.owned.offset;
    copyInto(buffer, to, values, mine.offset - offset, mine.size);
  }

  /** @internal */
  dispose(): void {
    for (const { parameter } of this.entries) {
      const { leaf } = parameter;
      if (this.owned.size === this.size && parameter.master !== leaf) parameter.master.dispose();
      leaf.dispose();
    }
    this.ownedWeights.dispose();
    this.weights.dispose();
    this.master?.dispose();
    this.#ownedGradients?.dispose();
    this.#gradients?.dispose();
  }
}

/** Copies from[start ...] to to[at ...], converted to the dtype of `to`. */
function copyInto(to: Tensor, at: number, from: Tensor, start: number, size: number): void {
  const [target, source] = [to.view([size], at), from.view([size], start)];
  native.cast(source.native, target.native);
  target.dispose();
  source.dispose();
}
