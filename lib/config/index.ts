/** A run's configuration: the schema and everything derived from it. */

export { loadConfig, readConfig } from "./file.js";
export { configHelp, describeOption } from "./help.js";
export { parseConfig, parseOverride } from "./load.js";
export {
  type LoadedConfig,
  type Precision,
  type RunConfig,
  resolveConfig,
} from "./resolve.js";
export { type RunConfigInput, runSchema } from "./schema.js";
