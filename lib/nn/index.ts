export { Embedding } from "./embedding.js";
export {
  type GroupOptions,
  type GroupPlan,
  ParameterGroup,
  type PlacedParameter,
  type Range as ElementRange,
  type Slot as ParameterSlot,
} from "./group.js";
export { type Fp8Use, Linear } from "./linear.js";
export { Module, type ParameterGroupSpec } from "./module.js";
export type { Layout, ParallelStrategy } from "./parallel.js";
export { type Initialisation, Parameter } from "./parameter.js";
export { RMSNorm } from "./rms-norm.js";
export {
  ParameterStore,
  type StoreOptions,
  writeParameter,
} from "./store.js";
