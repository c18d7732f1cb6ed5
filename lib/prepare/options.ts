import { z } from "zod";
import { ArgumentError } from "../core/errors.js";
import { section } from "../core/option-kinds.js";
import { optionName, optionValue } from "../core/option-names.js";
import { checkOptionsBy } from "../core/option-problems.js";
import { Tokenizer } from "../data/tokenizer.js";
import type { PrepareOptions } from "./prepare.js";
import { selectionOf } from "./readers/documents.js";
import { type Input, inputSchema, prepareSchema } from "./schema.js";

type PreparePlace = "out" | "tokenizer" | "chatTemplate" | "workers" | "startOver" | "overwrite";

/** All options that affect the output of a preparation. */
export interface PrepareSettings
  extends Required<Omit<z.output<typeof prepareSchema>, PreparePlace>> {
  inputs: Input[];
}

/** The options of a call: those of the schema, and values that only a program can pass. */
const callSchema = section("a preparation", {
  ...prepareSchema.shape,
  inputs: z
    .array(inputSchema.meta({ expects: "a path or an input" }))
    .min(1)
    .meta({
      description: "what to read, in this order",
      expects: "an array of paths or inputs, at least one (not an iterable: paths are read again)",
    }),
  tokenizer: z
    .custom<PrepareOptions["tokenizer"]>(
      (value) =>
        value instanceof Tokenizer || prepareSchema.shape.tokenizer.safeParse(value).success,
    )
    .meta({ description: "what encodes", expects: "a Tokenizer or the path of one" }),
  onProgress: z
    .custom<PrepareOptions["onProgress"]>((value) => typeof value === "function")
    .meta({ description: "called as the work goes on", expects: "a function" })
    .optional(),
  signal: z
    .instanceof(AbortSignal)
    .meta({ description: "stops the work", expects: "an AbortSignal" })
    .optional(),
});

/**
 * Checks the options and fills in their defaults.
 * @throws ArgumentError naming the option, the expected value and the received one
 */
export function settingsOf(options: PrepareOptions): PrepareSettings {
  const checked = checkOptionsBy("prepare", callSchema, withInputs(options));
  const { out, tokenizer, chatTemplate, workers, startOver, overwrite, ...rest } = checked;
  const { onProgress, signal, ...deciding } = rest;
  checkAnswers(deciding, chatTemplate);
  const ownValidation = deciding.inputs.some((input) => input.to === "validation");
  const { validationFraction = ownValidation ? 0 : 0.05 } = deciding;
  const parted = kindOfAnswers(deciding.inputs) !== null;
  if (!parted && deciding.documentStart === "none" && deciding.documentEnd === "none") {
    const both = `${optionName("documentStart")} and ${optionName("documentEnd")}`;
    throw new ArgumentError(`[prepare] ${both} are none: then nothing parts documents`);
  }
  for (const input of deciding.inputs) selectionOf(input);
  return { ...deciding, validationFraction };
}

/** Which answers the inputs hold: all of them or none are chats, or preferences. */
export function kindOfAnswers(inputs: readonly Input[]): "chat" | "preference" | null {
  const kinds = inputs.map(({ kind }) => kind);
  return (["chat", "preference"] as const).find((kind) => kinds.includes(kind)) ?? null;
}

function checkAnswers(
  {
    inputs,
    documentStart,
    documentEnd,
  }: Pick<PrepareSettings, "inputs" | "documentStart" | "documentEnd">,
  chatTemplate: string | undefined,
): void {
  const answers = kindOfAnswers(inputs);
  if (answers === null) {
    if (chatTemplate === undefined) return;
    const needed = ["chat", "preference"].map((kind) => optionValue("kind", kind)).join(" or ");
    throw new ArgumentError(`[prepare] ${optionName("chatTemplate")} needs ${needed}`);
  }
  const other = inputs.find(({ kind }) => kind !== answers);
  if (other !== undefined) {
    throw new ArgumentError(
      `[prepare] ${other.path}: text, chats and preferences make different data sets: prepare each by itself` +
        (answers === "chat" ? ", and name both under data.train to mix chats with text" : ""),
    );
  }
  const named = inputs.find(({ textField }) => textField !== undefined);
  if (answers === "preference" && named) {
    throw new ArgumentError(
      `[prepare] ${named.path}: ${optionName("textField")} is for records of one text: a preference has the fields prompt, chosen, rejected`,
    );
  }
  if (answers === "preference") return;
  if (documentStart !== "none") {
    throw new ArgumentError(
      `[prepare] ${optionValue("documentStart", documentStart)} is for text: a chat begins as its template says`,
    );
  }
  if (documentEnd === "eos") return;
  throw new ArgumentError(
    `[prepare] ${optionValue("documentEnd", documentEnd)} is for text: a chat ends as its template says`,
  );
}

/** Replaces each plain path among the inputs with `{ path }`. */
function withInputs(options: PrepareOptions): unknown {
  if (!Array.isArray(options?.inputs)) return options;
  const inputs = options.inputs.map((input: unknown) =>
    typeof input === "string" ? { path: input } : input,
  );
  return { ...options, inputs };
}
