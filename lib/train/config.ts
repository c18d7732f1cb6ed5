/** A run's configuration: the schema and what derives from it. */
export { configHelp, describeOption } from "./config-help.js";
export { loadConfig, parseConfig, parseOverride } from "./config-load.js";
export { type RunConfig, resolveConfig } from "./config-resolve.js";
export { type RunConfigInput, runSchema } from "./config-schema.js";
