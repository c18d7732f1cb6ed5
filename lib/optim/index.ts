export { AdamW, type AdamWOptions, type GroupStep, type Moments } from "./adamw.js";
export {
  finiteGuard,
  type GuardOptions,
  readDecision,
  type SkipReason,
  type StepDecision,
} from "./guard.js";
export { Muon, type MuonOptions } from "./muon.js";
export type { Optimizer, StepResult } from "./optimizer.js";
export {
  type CosineSchedule,
  cosineSchedule,
  type DecayShape,
  type WsdSchedule,
  wsdSchedule,
} from "./schedule.js";
