import {
  argumentError,
  checkBoolean,
  checkChoice,
  checkDevice,
  checkDType,
  checkInstance,
  checkInteger,
  checkObject,
  checkOptions,
  checkSameDevice,
  checkShape,
  checkTensor,
} from "../core/check.js";
import { type Device, defaultDevice } from "../core/device.js";
import { ArgumentError } from "../core/errors.js";
import { native } from "../core/native.js";
import { outsideScopes } from "../core/scope.js";
import { type Tensor, untracked } from "../core/tensor.js";
import {
  type GroupPlan,
  overlap,
  ParameterGroup,
  type PlacedParameter,
  planGroup,
  Slot,
} from "./group.js";
import { Module } from "./module.js";
import { type ParallelStrategy, undivided } from "./parallel.js";
import { Parameter } from "./parameter.js";

export interface StoreOptions {
  device?: Device;
  /** Of the weights; bf16 keeps an f32 master copy when training. */
  dtype?: "f32" | "bf16";
  /** Seed of the initialisation: the same numbers on every device. */
  seed?: number;
  /** Whether the model will be trained (true); false saves the master copy. */
  training?: boolean;
  /** Trains together with other processes; left out: alone. */
  parallel?: ParallelStrategy;
}

/**
 * Owns the memory of a module's parameters, in flat groups. The optimizer, checkpoints and parallel strategies work on the
 * groups; the model knows nothing of them.
 */
export class ParameterStore {
  readonly groups: readonly ParameterGroup[];
  readonly device: Device;
  readonly dtype: "f32" | "bf16";
  /** How it is kept in step with other processes; null when there are none. */
  readonly parallel: ParallelStrategy | null;
  readonly #slots: readonly Slot[];

  /** @throws ArgumentError for options that do not fit, and for a module whose parameters cannot be placed */
  constructor(module: Module, options: StoreOptions = {}) {
    const op = "ParameterStore";
    checkOptions(op, options, ["device", "dtype", "seed", "training", "parallel"]);
    const { device = defaultDevice(), dtype = "f32", seed = 0, training = true } = options;
    checkDevice(op, "device", device);
    checkChoice(op, "dtype", dtype, ["f32", "bf16"]);
    checkInteger(op, "seed", seed, { min: 0 });
    checkBoolean(op, "training", training);
    checkInstance(op, "module", module, Module, "a Module");
    if (options.parallel !== undefined && options.parallel !== null) {
      checkObject(op, "parallel", options.parallel, "a parallel strategy");
    }
    checkParameters(module);
    this.device = device;
    this.dtype = dtype;
    const strategy = options.parallel ?? null;
    const layout = strategy?.layout ?? undivided;
    const plans = module
      .parameterGroups()
      .map((spec, index) => planGroup(spec, index, layout.parts));
    this.parallel = strategy;
    this.#slots = layout.weights === "part" ? makeSlots(plans, device, dtype) : [];
    this.groups = outsideScopes(() =>
      plans.map((plan) => {
        const slot = this.#slots[plan.index % 2] ?? null;
        return new ParameterGroup(plan, { device, dtype, training, layout, strategy, slot });
      }),
    );
    strategy?.attach(this.groups);
    this.#initialise(module, seed);
  }

  *entries(): Generator<PlacedParameter> {
    for (const group of this.groups) yield* group.entries;
  }

  /** Forgets all gradients; the next backward overwrites them without reading. */
  zeroGrad(): void {
    for (const group of this.groups) group.zeroGrad();
  }

  /** Frees all memory; the module cannot be used afterwards. */
  dispose(): void {
    for (const group of this.groups) group.dispose();
    for (const slot of this.#slots) slot.dispose();
  }

  /** Where a parameter of this store lies. */
  placeOf(parameter: Parameter): { group: ParameterGroup; offset: number } {
    for (const group of this.groups) {
      const entry = group.entries.find((candidate) => candidate.parameter === parameter);
      if (entry) return { group, offset: entry.offset };
    }
    throw new ArgumentError("[ParameterStore] this parameter belongs to another store");
  }

  /**
   * All of a group's buffer of which this process holds the owned part; every process of the run calls it. Belongs to the
   * current scope.
   */
  whole(group: ParameterGroup, owned: Tensor): Tensor {
    checkInstance("ParameterStore.whole", "group", group, ParameterGroup, "a group of the store");
    checkTensor("ParameterStore.whole", "owned", owned);
    if (owned.size !== group.owned.size) {
      throw argumentError("ParameterStore.whole", "the owned part of the group", "owned", owned);
    }
    if (owned.size === group.size) return owned.view([group.size]);
    return (this.parallel as ParallelStrategy).gather(group, owned);
  }

  /**
   * All of a group's weights, wherever they are kept; every process of the run calls it. Belongs to the current scope, or
   * to the store.
   */
  wholeWeights(group: ParameterGroup): Tensor {
    checkInstance("wholeWeights", "group", group, ParameterGroup, "a group of the store");
    if (group.slot) return this.whole(group, group.ownedWeights);
    // Updated weights may still be on their way to this process.
    this.parallel?.needed(group, false);
    return group.weights;
  }

  /** Whether this process keeps any of `size` elements of a group's weights from `offset` on. */
  holds(group: ParameterGroup, offset: number, size: number): boolean {
    const op = "ParameterStore.holds";
    checkInstance(op, "group", group, ParameterGroup, "a group of the store");
    checkInteger(op, "offset", offset, { min: 0 });
    checkInteger(op, "size", size, { min: 0 });
    return !group.slot || overlap({ offset, size }, group.owned) !== null;
  }

  /** Whether each process keeps only its part of the weights. */
  get divided(): boolean {
    return this.parallel?.layout.weights === "part";
  }

  /**
   * Numbers from Philox: each parameter reads its own range of one sequence, in the order of names, so they depend on the
   * seed and the model alone.
   */
  #initialise(module: Module, seed: number): void {
    const places = new Map<Parameter, { group: ParameterGroup; offset: number }>();
    for (const group of this.groups) {
      for (const { parameter, offset } of group.entries) places.set(parameter, { group, offset });
    }
    let position = 0;
    for (const parameter of module.namedParameters().values()) {
      const { init, size } = parameter;
      const { group, offset } = places.get(parameter) as { group: ParameterGroup; offset: number };
      // A process that holds only a part of the weights makes only that.
      const held = group.slot ? overlap({ offset, size }, group.owned) : { offset, size };
      if (held) {
        const start = untracked([held.size], "f32", this.device, "initialise");
        const first = position + held.offset - offset;
        if (init.kind === "normal") native.philoxNormal(start.native, 0, init.std, seed, first);
        else native.fill(start.native, init.value);
        group.write(held.offset, start);
        start.dispose();
      }
      position += size;
    }
  }
}

/** Each parameter must be in one group, and in no other store. */
function checkParameters(module: Module): void {
  const named = module.namedParameters();
  const refuse = (reason: string): never => {
    throw new ArgumentError(`[ParameterStore] ${reason}`);
  };
  if (named.size === 0) {
    refuse(
      "the module has no parameters: a Module's properties that are Parameters, Modules or arrays of Modules are seen, " +
        "Parameters in arrays and #private fields are not",
    );
  }
  const grouped = module.parameterGroups().flatMap(({ parameters }) => [...parameters.values()]);
  const groups = new Set(grouped);
  if (groups.size < grouped.length) refuse("parameterGroups() names a parameter twice");
  for (const [name, parameter] of named) {
    if (parameter.placed) refuse("the module's parameters have been placed already");
    if (!groups.has(parameter)) refuse(`parameterGroups() leaves out the parameter ${name}`);
  }
}

/** Two, of the size of the largest groups with an even and with an odd index: while one computes, the next one is fetched. */
function makeSlots(plans: readonly GroupPlan[], device: Device, dtype: "f32" | "bf16"): Slot[] {
  return outsideScopes(() =>
    [0, 1].map((parity) => {
      const sizes = plans.filter(({ index }) => index % 2 === parity).map(({ size }) => size);
      return new Slot(Math.max(1, ...sizes), device, dtype);
    }),
  );
}

/**
 * Sets a parameter, in its weights and its master copy, from an f32 tensor of its shape. Graphs that have saved weights of its
 * group refuse their backward from then on.
 * @throws ArgumentError, DTypeError, ShapeError, DeviceError for a value that does not fit
 */
export function writeParameter(parameter: Parameter, value: Tensor): void {
  const op = "writeParameter";
  checkInstance(op, "parameter", parameter, Parameter, "a Parameter");
  checkDType(op, "value", value, "f32");
  checkShape(op, "value", value, parameter.shape, "the parameter's shape");
  const { tensor, master } = parameter;
  checkSameDevice(op, tensor, value);
  for (const copy of master === tensor ? [tensor] : [tensor, master]) {
    native.cast(value.native, copy.native);
    copy.changed(op);
  }
}
