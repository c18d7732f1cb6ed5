export { AdamW, type AdamWOptions, type Moments } from "./adamw.js";
export {
  finiteGuard,
  type GuardOptions,
  readDecision,
  type SkipReason,
  type StepDecision,
} from "./guard.js";
export type { Optimizer, StepResult } from "./optimizer.js";
export {
  type CosineSchedule,
  cosineSchedule,
  type DecayShape,
  type WsdSchedule,
  wsdSchedule,
} from "./schedule.js";
