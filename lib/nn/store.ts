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

/** Device, number format and seed of a model's parameters. */
export interface StoreOptions {
  device?: Device;
  /** Dtype of the weights. With bf16, training keeps an f32 master copy. */
  dtype?: "f32" | "bf16";
  /** Seed of the initialisation. Equal seeds give equal weights on every device. */
  seed?: number;
  /**
   * Whether the model will be trained. Default: true; false saves the memory of the master copy.
   */
  training?: boolean;
  /** Strategy for training together with other processes. Default: this process trains alone. */
  parallel?: ParallelStrategy;
}

/**
 * Owns the memory of a module's parameters, in flat groups. The optimizer, checkpoints and parallel
 * strategies work on these groups; the model does not know them.
 */
export class ParameterStore {
  readonly groups: readonly ParameterGroup[];
  readonly device: Device;
  readonly dtype: "f32" | "bf16";
  /** The strategy that keeps the store in step with other processes; null if there are none. */
  readonly parallel: ParallelStrategy | null;
  readonly #slots: readonly Slot[];

  /**
   * @throws ArgumentError for invalid options, and for a module whose parameters cannot be placed
   */
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

  /** All parameters with their places in the groups. */
  *entries(): Generator<PlacedParameter> {
    for (const group of this.groups) yield* group.entries;
  }

  /** Forgets all gradients. The next backward overwrites them without reading. */
  zeroGrad(): void {
    for (const group of this.groups) group.zeroGrad();
  }

  /** Frees all memory. The module cannot be used afterwards. */
  dispose(): void {
    for (const group of this.groups) group.dispose();
    for (const slot of this.#slots) slot.dispose();
  }

  /**
   * The group and offset of a parameter of this store.
   * @throws ArgumentError for a parameter of another store
   */
  placeOf(parameter: Parameter): { group: ParameterGroup; offset: number } {
    for (const group of this.groups) {
      const entry = group.entries.find((candidate) => candidate.parameter === parameter);
      if (entry) return { group, offset: entry.offset };
    }
    throw new ArgumentError("[ParameterStore] this parameter belongs to another store");
  }

  /**
   * Gathers a whole buffer of a group, of which this process holds the owned part. Every process of
   * the run must call it. The result belongs to the current scope.
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
   * The whole weights of a group, gathered if they are sharded. Every process of the run must call
   * it. The result belongs to the current scope, or to the store.
   */
  wholeWeights(group: ParameterGroup): Tensor {
    checkInstance("wholeWeights", "group", group, ParameterGroup, "a group of the store");
    if (group.slot) return this.whole(group, group.ownedWeights);
    // Updated weights may still be in transit to this process.
    this.parallel?.needed(group, false);
    return group.weights;
  }

  /**
   * Whether this process stores any of the `size` elements from `offset` on in a group's weights.
   */
  holds(group: ParameterGroup, offset: number, size: number): boolean {
    const op = "ParameterStore.holds";
    checkInstance(op, "group", group, ParameterGroup, "a group of the store");
    checkInteger(op, "offset", offset, { min: 0 });
    checkInteger(op, "size", size, { min: 0 });
    return !group.slot || overlap({ offset, size }, group.owned) !== null;
  }

  /** Whether the weights are sharded: each process keeps only its part. */
  get divided(): boolean {
    return this.parallel?.layout.weights === "part";
  }

  /**
   * Initialises the weights with Philox random numbers. Each parameter reads its own range of one
   * sequence, in the order of names. The numbers therefore depend only on the seed and the model.
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
      // A process that holds a part of the weights generates only that part.
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

/** Checks that each parameter is in exactly one group, and in no other store. */
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

/**
 * Makes two slots: one fetches the next group while the other's group computes. Each has the size
 * of its largest group, among those with an even or with an odd index.
 */
function makeSlots(plans: readonly GroupPlan[], device: Device, dtype: "f32" | "bf16"): Slot[] {
  return outsideScopes(() =>
    [0, 1].map((parity) => {
      const sizes = plans.filter(({ index }) => index % 2 === parity).map(({ size }) => size);
      return new Slot(Math.max(1, ...sizes), device, dtype);
    }),
  );
}

/**
 * Sets a parameter, in its weights and its master copy, from an f32 tensor of its shape. Graphs
 * that have saved weights of the parameter's group can no longer run backward.
 * @throws ArgumentError, DTypeError, ShapeError, DeviceError for an invalid value
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
