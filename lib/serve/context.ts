import type { Engine } from "../generate/engine.js";
import { ApiError } from "./api-error.js";
import type { EventPump } from "./event-pump.js";
import type { ServerMetrics } from "./metrics.js";
import type { TokenTexts } from "./token-texts.js";

/** The engine, limits and texts that the handlers of all requests share. */
export interface ServerContext {
  readonly engine: Engine;
  readonly texts: TokenTexts;
  readonly metrics: ServerMetrics;
  readonly pump: EventPump;
  readonly modelName: string;
  /** Start of the server, in seconds since 1970. */
  readonly created: number;
  readonly maxAnswers: number;
  /** Whether the server is about to close. */
  readonly draining: () => boolean;
}

/** @throws ApiError for a model that is not here */
export function checkModel({ modelName }: ServerContext, model: unknown): void {
  if (model === undefined || model === null || model === modelName) return;
  const name = JSON.stringify(String(model).slice(0, 200));
  throw new ApiError(404, `the model ${name} is not here: this server has ${modelName}`, {
    param: "model",
    code: "model_not_found",
  });
}

/** @throws ApiError for a prompt that leaves no room for a token */
export function checkLength({ engine }: ServerContext, ids: readonly number[], param: string) {
  const { maxLength } = engine;
  if (ids.length < maxLength) return;
  throw new ApiError(
    400,
    `expected at most ${maxLength - 1} tokens for ${param}, so that an answer has room in the ` +
      `context of ${maxLength}, got ${ids.length}`,
    { param, code: "context_length_exceeded" },
  );
}

/** @throws ApiError for a model without a chat template */
export function checkChats({ engine, modelName }: ServerContext): void {
  if (engine.chatTemplate) return;
  throw new ApiError(
    400,
    `the model ${modelName} has no chat template: use /v1/completions, or start the server with a template`,
    { param: "messages", code: "no_chat_template" },
  );
}

/** @throws ApiError for ids that the tokenizer does not have */
export function checkIds(
  { engine }: ServerContext,
  ids: readonly (number | string)[],
  param: string,
): void {
  const { vocabSize } = engine.tokenizer;
  const wrong = ids.find((id) => Number(id) >= vocabSize);
  if (wrong === undefined) return;
  const message = `${param}: expected token ids from 0 to ${vocabSize - 1}, got ${wrong}`;
  throw new ApiError(400, message, { param, code: "invalid_value" });
}

/** @throws ApiError for ids in the fields of all answers that the tokenizer does not have */
export function checkAnswerIds(
  context: ServerContext,
  fields: {
    stop_token_ids?: readonly number[] | null | undefined;
    logit_bias?: Readonly<Record<string, number>> | null | undefined;
  },
): void {
  checkIds(context, fields.stop_token_ids ?? [], "stop_token_ids");
  checkIds(context, Object.keys(fields.logit_bias ?? {}), "logit_bias");
}
