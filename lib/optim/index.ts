export { AdamW, type AdamWOptions, type StepResult } from "./adamw.js";
export {
  finiteGuard,
  type GuardOptions,
  readDecision,
  type SkipReason,
  type StepDecision,
} from "./guard.js";
export { type CosineSchedule, cosineSchedule } from "./schedule.js";
