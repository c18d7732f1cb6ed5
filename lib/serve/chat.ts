import { randomUUID } from "node:crypto";
import { flag, integer, section, unwrap } from "../core/option-kinds.js";
import type { AnswerPart } from "../generate/answer.js";
import { answerSchema } from "../generate/engine-schema.js";
import { ApiError } from "./api-error.js";
import { messagesOf } from "./chat-content.js";
import {
  checkAnswerIds,
  checkChats,
  checkLength,
  checkModel,
  type ServerContext,
} from "./context.js";
import { EventFrame } from "./event-frame.js";
import type { Reply } from "./reply.js";
import { answerOptions, checkFields, sharedFields, whole } from "./request-fields.js";
import { runAnswers } from "./run-answers.js";

const chatSchema = section("a chat", {
  ...sharedFields,
  messages: whole<unknown[]>(
    (value) => Array.isArray(value) && value.length > 0,
    "a list of messages, at least one",
    "the chat so far",
  ),
  max_completion_tokens: unwrap(answerSchema.shape.maxTokens).nullish(),
  logprobs: flag("give the tokens' log-probabilities").nullish(),
  top_logprobs: integer(0, 20, "likeliest tokens beside each token").nullish(),
});

/** `POST /v1/chat/completions` */
export async function chatCompletions(
  context: ServerContext,
  body: Record<string, unknown>,
  reply: Reply,
): Promise<void> {
  const startMs = performance.now();
  const fields = checkFields(chatSchema, body);
  checkModel(context, fields.model);
  checkChats(context);
  checkAnswerIds(context, fields);
  const { top_logprobs: top, max_tokens, max_completion_tokens } = fields;
  if (top && !fields.logprobs) {
    throw new ApiError(400, "top_logprobs: expected logprobs: true beside it", {
      param: "top_logprobs",
      code: "invalid_value",
    });
  }
  const given = answerOptions(fields);
  // Without a limit, an answer ends with the text or with the context.
  const maxTokens = (max_completion_tokens ?? max_tokens) as number | null | undefined;
  const options = {
    ...given,
    ...(typeof maxTokens === "number" && { maxTokens }),
    topLogprobs: top ?? 0,
  };
  if (options.n > context.maxAnswers) {
    throw new ApiError(400, `n: expected at most ${context.maxAnswers}, got ${options.n}`, {
      param: "n",
      code: "invalid_value",
    });
  }
  const ids = await context.engine.encodeChat(messagesOf(fields.messages));
  checkLength(context, ids, "messages");
  const head = {
    id: `chatcmpl-${randomUUID().replaceAll("-", "")}`,
    object: fields.stream ? "chat.completion.chunk" : "chat.completion",
    created: Math.floor(Date.now() / 1000),
    model: context.modelName,
  };
  const logprobsOf = ({ tokens }: Pick<AnswerPart, "tokens">) =>
    fields.logprobs ? { content: context.texts.ofChat(tokens), refusal: null } : null;
  const route = "/v1/chat/completions";
  const run = (onPart: (part: AnswerPart) => string) =>
    runAnswers(context, { route, prompts: [ids], options, reply, startMs, onPart });
  if (fields.stream) {
    const withUsage = fields.stream_options?.include_usage ?? false;
    const rest = withUsage ? { usage: null } : {};
    const begun = new Set<number>();
    const frame = new EventFrame(head, rest);
    const usage = await run((part) => {
      const { index, text, finishReason } = part;
      const content = `"content":${JSON.stringify(text)}`;
      let delta = text === "" ? "" : content;
      if (!begun.has(index)) {
        // The first part of an answer names its author.
        begun.add(index);
        delta = `"role":"assistant",${content}`;
      }
      return frame.event(index, `"delta":{${delta}}`, logprobsOf(part), finishReason);
    });
    if (withUsage) await reply.event({ ...head, choices: [], usage });
    await reply.endEvents();
    return;
  }
  const answers = Array.from({ length: options.n }, () => ({
    text: "",
    tokens: [] as AnswerPart["tokens"][number][],
    reason: null as AnswerPart["finishReason"],
  }));
  const usage = await run(({ index, text, tokens, finishReason }) => {
    const answer = answers[index];
    if (answer) {
      answer.text += text;
      answer.tokens.push(...tokens);
      answer.reason = finishReason;
    }
    return "";
  });
  const choices = answers.map(({ text, tokens, reason }, index) => ({
    index,
    message: { role: "assistant", content: text, refusal: null },
    logprobs: logprobsOf({ tokens }),
    finish_reason: reason,
  }));
  await reply.json(200, { ...head, choices, usage });
}
