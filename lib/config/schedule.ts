import { ArgumentError } from "../core/errors.js";
import { cosineSchedule, wsdSchedule } from "../optim/schedule.js";
import type { LoadedConfig } from "./resolve.js";

/** The learning rate of each step, counted from 0, that a recipe asks for. */
export function scheduleOf(optimizer: LoadedConfig["optimizer"]): (step: number) => number {
  if (optimizer.schedule === "cosine") return cosineSchedule(optimizer);
  const { decayFrom, ...rest } = optimizer;
  if (decayFrom === undefined) throw new ArgumentError("[scheduleOf] wsd has no decayFrom");
  return wsdSchedule({ ...rest, decayFrom });
}
