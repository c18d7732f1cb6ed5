import { checkChoice, checkInteger } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";
import { Tokenizer } from "../data/tokenizer.js";
import type { PrepareOptions } from "./prepare.js";
import { selectionOf } from "./readers/documents.js";
import type { Input } from "./readers/input.js";

/** Everything that decides what a preparation writes. */
export interface PrepareSettings
  extends Required<
    Pick<
      PrepareOptions,
      | "validationFraction"
      | "shardTokens"
      | "maxRunShare"
      | "documentStart"
      | "documentEnd"
      | "deduplicate"
      | "invalidUtf8"
      | "badRecords"
      | "skipUnreadable"
    >
  > {
  inputs: Input[];
}

/** @throws ArgumentError naming the option, what was expected and what came */
export function settingsOf(options: PrepareOptions): PrepareSettings {
  checkTypes(options);
  const inputs = options.inputs.map((input) =>
    typeof input === "string" ? { path: input } : input,
  );
  const ownValidation = inputs.some((input) => input.to === "validation");
  const settings: PrepareSettings = {
    inputs,
    validationFraction: options.validationFraction ?? (ownValidation ? 0 : 0.05),
    shardTokens: options.shardTokens ?? 2 ** 27,
    maxRunShare: options.maxRunShare ?? 0.1,
    documentStart: options.documentStart ?? "none",
    documentEnd: options.documentEnd ?? "eos",
    deduplicate: options.deduplicate ?? false,
    invalidUtf8: options.invalidUtf8 ?? "error",
    badRecords: options.badRecords ?? "error",
    skipUnreadable: options.skipUnreadable ?? false,
  };
  const { validationFraction, shardTokens, maxRunShare } = settings;
  if (inputs.length === 0) refuse("inputs", "at least one path", "none");
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    refuse("validationFraction", "a number in 0 <= x < 1", validationFraction);
  }
  checkInteger("prepare", optionName("shardTokens"), shardTokens, { min: 1 });
  if (!(maxRunShare >= 0 && maxRunShare <= 1)) {
    refuse("maxRunShare", "a number in 0..1", maxRunShare);
  }
  checkChoice("prepare", optionName("documentStart"), settings.documentStart, ["none", "bos"]);
  checkChoice("prepare", optionName("documentEnd"), settings.documentEnd, ["none", "eos"]);
  if (settings.documentStart === "none" && settings.documentEnd === "none") {
    const both = `${optionName("documentStart")} and ${optionName("documentEnd")}`;
    throw new ArgumentError(`[prepare] ${both} are none: then nothing parts documents`);
  }
  checkChoice("prepare", optionName("invalidUtf8"), settings.invalidUtf8, ["error", "replace"]);
  checkChoice("prepare", optionName("badRecords"), settings.badRecords, ["error", "skip"]);
  if (options.workers !== undefined)
    checkInteger("prepare", optionName("workers"), options.workers, { min: 0, max: 1024 });
  for (const input of inputs) checkInput(input);
  return settings;
}

/** Checks option types for callers in plain JavaScript, which no compiler checks. */
function checkTypes(options: PrepareOptions): void {
  const kind = (value: unknown) =>
    typeof value === "object" ? Object.prototype.toString.call(value).slice(8, -1) : typeof value;
  if (typeof options !== "object" || options === null) refuse("options", "an object", options);
  const { inputs, out, tokenizer, onProgress } = options;
  if (!Array.isArray(inputs)) {
    const what = "an array of paths or inputs (not an iterable: paths are read again)";
    refuse("inputs", what, kind(inputs));
  }
  for (const [place, input] of inputs.entries()) {
    if (typeof input === "string" || (typeof input === "object" && input !== null)) continue;
    refuse(`inputs[${place}]`, "a path or an input", kind(input));
  }
  if (typeof out !== "string" || out === "") refuse("out", "a path", out === "" ? '""' : kind(out));
  if (typeof tokenizer !== "string" && !(tokenizer instanceof Tokenizer)) {
    refuse("tokenizer", "a Tokenizer or the path of one", kind(tokenizer));
  }
  if (onProgress !== undefined && typeof onProgress !== "function") {
    refuse("onProgress", "a function", kind(onProgress));
  }
  for (const name of ["deduplicate", "startOver", "overwrite", "skipUnreadable"] as const) {
    const value: unknown = options[name];
    if (value !== undefined && typeof value !== "boolean") {
      refuse(name, "true or false", kind(value));
    }
  }
}

function checkInput(input: Input): void {
  if (typeof input.path !== "string" || input.path === "") refuse("path", "a path", input.path);
  if (input.minBytes !== undefined)
    checkInteger("prepare", optionName("minBytes"), input.minBytes, { min: 0 });
  if (input.maxBytes !== undefined)
    checkInteger("prepare", optionName("maxBytes"), input.maxBytes, { min: 1 });
  if (input.to !== undefined)
    checkChoice("prepare", optionName("to"), input.to, ["train", "validation"]);
  selectionOf(input);
}

function refuse(name: string, expected: string, got: unknown): never {
  throw new ArgumentError(
    `[prepare] expected ${expected} for ${optionName(name)}, got ${String(got)}`,
  );
}
