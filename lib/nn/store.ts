import { type Device, defaultDevice } from "../device.js";
import { ArgumentError } from "../errors.js";
import { native } from "../native.js";
import { outsideScopes } from "../scope.js";
import { type DType, type Tensor, untracked, zeros } from "../tensor.js";
import type { Module, ParameterGroupSpec } from "./module.js";
import type { Parameter } from "./parameter.js";

/** Parameters start at multiples of this many elements, so that every view is aligned for the widest loads. */
const alignment = 64;

/** Where a parameter lies in its group. */
export interface PlacedParameter {
  readonly name: string;
  readonly parameter: Parameter;
  /** First element within the group's buffers. */
  readonly offset: number;
}

/** One contiguous buffer for each kind of state of some parameters (DESIGN: flat groups). */
export class ParameterGroup {
  readonly name: string;
  /** Elements of each buffer, padding included; padding is zero in all of them and stays so. */
  readonly size: number;
  /** As the model computes with them: f32 or bf16. */
  readonly weights: Tensor;
  /** f32 copy that the optimizer updates, beside bf16 weights of a model that trains. */
  readonly master: Tensor | null;
  readonly entries: readonly PlacedParameter[];
  #gradients: Tensor | null = null;

  constructor(spec: ParameterGroupSpec, device: Device, dtype: DType, training: boolean) {
    this.name = spec.name;
    const entries: PlacedParameter[] = [];
    let size = 0;
    for (const [name, parameter] of spec.parameters) {
      entries.push({ name, parameter, offset: size });
      size += Math.ceil(parameter.size / alignment) * alignment;
    }
    this.entries = entries;
    this.size = size;
    this.weights = zeros([size], { dtype, device });
    this.master = training && dtype === "bf16" ? zeros([size], { device }) : null;
    for (const { parameter, offset } of entries) {
      parameter.place(
        this.weights.view(parameter.shape, offset),
        this.master?.view(parameter.shape, offset) ?? null,
      );
    }
  }

  /** f32 gradients. Made on first use, so a model that only generates has none. */
  get gradients(): Tensor {
    this.#gradients ??= outsideScopes(() => {
      const buffer = zeros([this.size], { device: this.weights.device });
      for (const { parameter, offset } of this.entries) {
        parameter.tensor.bindGradient(buffer.view(parameter.shape, offset));
      }
      return buffer;
    });
    return this.#gradients;
  }

  /** Sets to zero what this step's backward did not write: unused and frozen parameters. */
  completeGradients(): void {
    for (const { parameter } of this.entries) {
      if (parameter.tensor.grad && parameter.trainable) continue;
      const buffer = parameter.tensor.gradientBuffer;
      if (buffer) native.fill(buffer.native, 0);
    }
  }

  /** @internal */
  dispose(): void {
    for (const { parameter } of this.entries) {
      if (parameter.master !== parameter.tensor) parameter.master.dispose();
      parameter.tensor.dispose();
    }
    this.weights.dispose();
    this.master?.dispose();
    this.#gradients?.dispose();
  }
}

export interface StoreOptions {
  device?: Device;
  /** Of the weights; bf16 keeps an f32 master copy when training. */
  dtype?: "f32" | "bf16";
  /** Seed of the initialisation: the same numbers on every device. */
  seed?: number;
  /** Whether the model will be trained (true); false saves the master copy. */
  training?: boolean;
}

/**
 * Owns the memory of a module's parameters, in flat groups. The optimizer, checkpoints and parallel strategies work on the
 * groups; the model knows nothing of them.
 */
export class ParameterStore {
  readonly groups: readonly ParameterGroup[];
  readonly device: Device;
  readonly dtype: "f32" | "bf16";

  constructor(module: Module, options: StoreOptions = {}) {
    const { device = defaultDevice(), dtype = "f32", seed = 0, training = true } = options;
    if (dtype !== "f32" && dtype !== "bf16") {
      throw new ArgumentError(`[ParameterStore] expected dtype f32 or bf16, got ${String(dtype)}`);
    }
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw new ArgumentError(
        `[ParameterStore] expected a whole number from 0 for seed, got ${seed}`,
      );
    }
    if (module.parameters().some((parameter) => parameter.placed)) {
      throw new ArgumentError("[ParameterStore] the module's parameters have been placed already");
    }
    this.device = device;
    this.dtype = dtype;
    this.groups = outsideScopes(() =>
      module.parameterGroups().map((spec) => new ParameterGroup(spec, device, dtype, training)),
    );
    this.#initialise(module, seed);
  }

  *entries(): Generator<PlacedParameter> {
    for (const group of this.groups) yield* group.entries;
  }

  /** Forgets all gradients; the next backward overwrites them without reading. */
  zeroGrad(): void {
    for (const { parameter } of this.entries()) parameter.tensor.zeroGrad();
  }

  /** Frees all memory; the module cannot be used afterwards. */
  dispose(): void {
    for (const group of this.groups) group.dispose();
  }

  /**
   * Numbers from Philox: each parameter reads its own range of one sequence, in the order of names, so they depend on the
   * seed and the model alone.
   */
  #initialise(module: Module, seed: number): void {
    let position = 0;
    for (const parameter of module.namedParameters().values()) {
      const { init, shape } = parameter;
      const start = untracked(shape, "f32", this.device, "initialise");
      if (init.kind === "normal") native.philoxNormal(start.native, 0, init.std, seed, position);
      else native.fill(start.native, init.value);
      position += parameter.size;
      writeParameter(parameter, start);
      start.dispose();
    }
  }
}

/** Sets a parameter, in its weights and its master copy, from an f32 tensor of its shape. */
export function writeParameter(parameter: Parameter, value: Tensor): void {
  native.cast(value.native, parameter.tensor.native);
  if (parameter.master !== parameter.tensor) native.cast(value.native, parameter.master.native);
}
