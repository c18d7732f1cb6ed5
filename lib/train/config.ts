/** A run's configuration: the schema and what derives from it. */

export { loadConfig, readConfig } from "./config-file.js";
export { configHelp, describeOption } from "./config-help.js";
export { parseConfig, parseOverride } from "./config-load.js";
export {
  type LoadedConfig,
  type Precision,
  type RunConfig,
  resolveConfig,
} from "./config-resolve.js";
export { type RunConfigInput, runSchema } from "./config-schema.js";
