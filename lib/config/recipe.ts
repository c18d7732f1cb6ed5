/**
 * Compares a checkpoint's options with those of the resumed run, and describes the consequences of
 * changes.
 */
import { ConfigError } from "../core/errors.js";
import { pathName } from "../core/option-names.js";
import { leaves, valueAt } from "../core/option-tree.js";
import { checkConfig, type LoadedConfig } from "./resolve.js";
import { scheduleOf } from "./schedule.js";
import { runSchema } from "./schema.js";

/** An option whose value differs; null stands for an absent value. */
export interface RecipeChange {
  option: string;
  from: unknown;
  to: unknown;
}

/** A change as `run.json` records it. It applies to the steps after `step`. */
export interface RecordedChange extends RecipeChange {
  step: number;
  /** ISO 8601. */
  time: string;
}

/** A run's configuration and its number of processes. */
export interface Recipe {
  config: LoadedConfig;
  ranks: number;
}

/**
 * Options, or sections of them, that do not affect any trained number. All options not listed do.
 */
const harmless = [
  "name",
  "out",
  "data.prefetch",
  "data.slowSeconds",
  "data.hangSeconds",
  "distributed.timeoutSeconds",
  "distributed.startTimeoutSeconds",
  "checkpoint",
  "canary",
  "evaluate",
  "sample",
  // Only a new run reads it.
  "init",
];

/**
 * Options with checks of their own on a resume; `data.train` is checked by the data's fingerprint.
 */
const identifying = [
  "model",
  "lora.rank",
  "lora.alpha",
  "lora.targets",
  "precision",
  "seed",
  "data.train",
  "data.sequenceLength",
  "data.maskDocuments",
  "data.resetPositions",
];

/** Options that only change the order of sums or the choice of kernels. */
const bitsOnly = ["device", "threads", "recompute", "parallel", "distributed", "batch", "ranks"];

const isIn = (list: readonly string[], option: string): boolean =>
  list.some((name) => option === name || option.startsWith(`${name}.`));

/** The recipe stored in a checkpoint; null if this version cannot parse it. */
export function savedRecipe(config: unknown, ranks: unknown): Recipe | null {
  const saved = checkConfig(config).config;
  if (saved === undefined) return null;
  return { config: saved, ranks: Number.isSafeInteger(ranks) ? (ranks as number) : 1 };
}

/** Lists the changed options that affect training, in the schema's order. */
export function compareRecipes(before: Recipe, now: Recipe): RecipeChange[] {
  const changes: RecipeChange[] = [];
  const add = (option: string, from: unknown, to: unknown): void => {
    if (JSON.stringify(from) === JSON.stringify(to)) return;
    changes.push({ option, from: from ?? null, to: to ?? null });
  };
  for (const [path] of leaves(runSchema)) {
    const option = pathName(path);
    if (isIn(harmless, option) || isIn(identifying, option)) continue;
    add(option, valueAt(before.config, path), valueAt(now.config, path));
  }
  add("ranks", before.ranks, now.ranks);
  return changes;
}

/**
 * Describes changes for the user, one per line: first the options, then the consequences.
 * @param step number of steps that the checkpoint has done
 */
export function describeChanges(
  changes: readonly RecipeChange[],
  before: Recipe,
  now: Recipe,
  step: number,
): string[] {
  const lines = changes.map(
    ({ option, from, to }) => `${option}: ${show(from)} in the checkpoint, ${show(to)} now`,
  );
  const next = step + 1;
  const [old, fresh] = [before.config, now.config];
  const rates = [old, fresh].map(({ optimizer }) => scheduleOf(optimizer)(step).toExponential(3));
  const ends = [old, fresh].map(({ optimizer }) => optimizer.decaySteps);
  if (rates[0] !== rates[1]) {
    lines.push(`=> the learning rate of step ${next} was to be ${rates[0]} and is ${rates[1]}`);
  }
  if (ends[0] !== ends[1]) {
    lines.push(`=> the learning rate reaches its end at step ${ends[1]}, not ${ends[0]}`);
  }
  const windows = [before, now].map(windowsOf);
  const tokens = windows.map((count) => count * fresh.data.sequenceLength);
  if (tokens[0] !== tokens[1]) {
    lines.push(
      `=> a step trains on ${count(tokens[1])} tokens, not ${count(tokens[0])}: ` +
        `${count(windows[1])} windows, from the first that has not been trained on`,
    );
  }
  if (old.steps !== fresh.steps) {
    const over = fresh.steps <= step ? ", which is done already" : "";
    lines.push(`=> the run ends after step ${fresh.steps}, not ${old.steps}${over}`);
  }
  const betas = (["beta1", "beta2"] as const).filter(
    (b) => old.optimizer[b] !== fresh.optimizer[b],
  );
  if (betas.length > 0) {
    const names = betas.map((b) => `${b} ${old.optimizer[b]}`).join(" and ");
    lines.push(`=> moments gathered with ${names} fade as the new values say from step ${next} on`);
  }
  if (changes.some(({ option }) => isIn(bitsOnly, option))) {
    lines.push("=> sums are taken in another order: the last bits differ from an unbroken run's");
  }
  return lines;
}

/**
 * Refuses changes with which a run cannot continue, and with `strict` every change.
 * @throws ConfigError naming each option
 */
export function checkChanges(
  changes: readonly RecipeChange[],
  source: string,
  strict: boolean,
): void {
  const refused = changes.filter(({ option }) => strict || unchangeable.has(option));
  if (refused.length === 0) return;
  const problems = refused.map(({ option, from, to }) => ({
    path: option,
    message: `the checkpoint has ${show(from)}, this run ${show(to)}: ${why(option, strict)}`,
  }));
  throw new ConfigError(`cannot go on from ${source}`, problems);
}

/** Options that the state in a checkpoint depends on, each with the reason. */
const unchangeable = new Map([
  ["guard.window", "the guard's history in the checkpoint has that length"],
  ["optimizer.type", "the checkpoint holds that optimizer's state"],
]);

function why(option: string, strict: boolean): string {
  const reason = unchangeable.get(option);
  if (reason !== undefined) return reason;
  return strict ? "--resume-strict takes no changed recipe" : "";
}

function windowsOf({ config: { batch }, ranks }: Recipe): number {
  return batch.microBatch * batch.accumulation * ranks;
}

const count = (n: number | undefined): string => (n ?? 0).toLocaleString("en-US");

function show(value: unknown): string {
  return value === null ? "none" : JSON.stringify(value);
}
