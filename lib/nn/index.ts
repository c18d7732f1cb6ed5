export { Embedding } from "./embedding.js";
export { Linear } from "./linear.js";
export { Module, type ParameterGroupSpec } from "./module.js";
export { type Initialisation, Parameter } from "./parameter.js";
export { RMSNorm } from "./rms_norm.js";
export {
  ParameterGroup,
  ParameterStore,
  type PlacedParameter,
  type StoreOptions,
  writeParameter,
} from "./store.js";
