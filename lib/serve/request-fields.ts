import { randomInt } from "node:crypto";
import { z } from "zod";
import { flag, metaOf, section, text, unwrap } from "../core/option-kinds.js";
import { pathName } from "../core/option-names.js";
import { inWords, problemsOf, suggestKey } from "../core/option-problems.js";
import type { AnswerOptions } from "../generate/engine.js";
import { answerSchema } from "../generate/engine-schema.js";
import { ApiError } from "./api-error.js";
import { refuseUnsupported } from "./unsupported.js";

// The fields that completions and chat share, as OpenAI's reference names them. Ranges and meanings
// are those of the engine's own options.

const engineFields = answerSchema.shape;

/** An option of the engine. Clients send null for a field that they leave out. */
function field<K extends keyof typeof engineFields>(name: K) {
  const kind = unwrap(engineFields[name]) as z.ZodType<NonNullable<AnswerOptions[K]>>;
  return kind.nullish();
}

/** A value that is checked as a whole, so that a long wrong list is one problem, not thousands. */
export function whole<T>(accepts: (value: unknown) => boolean, expects: string, purpose: string) {
  return z.custom<T>(accepts).meta({ description: purpose, expects });
}

export const isId = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;

const isStop = (value: unknown): boolean =>
  typeof value === "string" && value.length <= 500 && /^\P{Surrogate}+$/u.test(value);

const isBias = (value: unknown): boolean =>
  typeof value === "object" &&
  value !== null &&
  !Array.isArray(value) &&
  Object.entries(value).every(
    ([id, bias]) =>
      /^(0|[1-9]\d{0,8})$/.test(id) && typeof bias === "number" && Math.abs(bias) <= 100,
  );

const anything = z.unknown().meta({ description: "not used", expects: "anything" }).optional();

export const sharedFields = {
  model: text(/[\s\S]/, "the name of the model", "name of the model").nullish(),
  stream: flag("send the text as it is written").nullish(),
  stream_options: section("what a stream has", {
    include_usage: flag("tell the number of tokens at the end").nullish(),
  }).nullish(),
  max_tokens: field("maxTokens"),
  temperature: field("temperature"),
  top_p: field("topP"),
  top_k: field("topK"),
  min_p: field("minP"),
  repetition_penalty: field("repetitionPenalty"),
  presence_penalty: field("presencePenalty"),
  frequency_penalty: field("frequencyPenalty"),
  seed: field("seed"),
  n: z
    .int()
    .min(1)
    .max(128)
    .meta({ description: "number of answers", expects: "an integer from 1 to 128" })
    .nullish(),
  stop: whole<string | string[]>(
    (value) => isStop(value) || (Array.isArray(value) && value.length <= 16 && value.every(isStop)),
    "a text or up to 16 texts, of 1 to 500 whole characters each",
    "texts that end the answer",
  ).nullish(),
  stop_token_ids: whole<number[]>(
    (value) => Array.isArray(value) && value.length <= 256 && value.every(isId),
    "up to 256 token ids",
    "tokens that end the answer",
  ).nullish(),
  logit_bias: whole<Record<string, number>>(
    isBias,
    "numbers from -100 to 100 by token id",
    "additions to the logits of tokens",
  ).nullish(),
  ignore_eos: flag(metaOf(engineFields.ignoreEnd).description).nullish(),
  // These describe the caller, not the answer.
  user: anything,
  metadata: anything,
  safety_identifier: anything,
  prompt_cache_key: anything,
};

type SharedFields = z.output<z.ZodObject<typeof sharedFields>>;

/**
 * Checks a request's fields.
 * @throws ApiError naming the first field that is unsupported, unknown, missing or wrong
 */
export function checkFields<T extends z.ZodRawShape>(
  schema: z.ZodObject<T, z.core.$strict>,
  body: Record<string, unknown>,
): z.output<z.ZodObject<T, z.core.$strict>> {
  for (const name of Object.keys(body)) {
    if (Object.hasOwn(schema.shape, name)) continue;
    if (refuseUnsupported(name, body[name])) {
      delete body[name];
      continue;
    }
    // A name may be as long as the body.
    const param = name.slice(0, 100);
    const message = `unknown field ${JSON.stringify(param)}${suggestKey(schema, [], param)}`;
    throw new ApiError(400, message, { param, code: "unknown_parameter" });
  }
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [problem] = problemsOf(schema, body, parsed);
  if (!problem) throw new ApiError(400, "expected a JSON object of fields");
  const { path, message } = inWords(problem);
  throw new ApiError(400, `${path}: ${message}`, {
    param: pathName(problem.path),
    code: problem.kind === "missing" ? "missing_parameter" : "invalid_value",
  });
}

/** The engine's options for the shared fields, with OpenAI's defaults. */
export function answerOptions(fields: SharedFields): AnswerOptions & { n: number } {
  const given = {
    repetitionPenalty: fields.repetition_penalty,
    presencePenalty: fields.presence_penalty,
    frequencyPenalty: fields.frequency_penalty,
    minP: fields.min_p,
    logitBias: fields.logit_bias,
    stopTokens: fields.stop_token_ids,
    ignoreEnd: fields.ignore_eos,
  };
  return {
    n: fields.n ?? 1,
    temperature: fields.temperature ?? 1,
    topP: fields.top_p ?? 1,
    topK: fields.top_k ?? 0,
    // Without a seed, each request has its own.
    seed: fields.seed ?? randomInt(2 ** 47),
    stop: typeof fields.stop === "string" ? [fields.stop] : (fields.stop ?? []),
    ...Object.fromEntries(
      Object.entries(given).filter(([, value]) => value !== undefined && value !== null),
    ),
  };
}
