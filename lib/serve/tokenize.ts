import { z } from "zod";
import { flag, section } from "../core/option-kinds.js";
import { messagesOf } from "./chat-content.js";
import { checkChats, checkIds, checkModel, type ServerContext } from "./context.js";
import type { Reply } from "./reply.js";
import { checkFields, isId, whole } from "./request-fields.js";

const model = z.string().meta({ description: "name of the model", expects: "a text" }).nullish();

const tokenizeSchema = section("a text or a chat", {
  model,
  prompt: whole<string>((value) => typeof value === "string", "a text", "the text").nullish(),
  messages: whole<unknown[]>(
    (value) => Array.isArray(value) && value.length > 0,
    "a list of messages, at least one",
    "the chat",
  ).nullish(),
  add_special_tokens: flag("begin as a prompt begins").nullish(),
});

/** `POST /tokenize`: the ids of a prompt, or of a chat as the model reads it. */
export async function tokenize(
  context: ServerContext,
  body: Record<string, unknown>,
  reply: Reply,
): Promise<void> {
  const { engine } = context;
  const fields = checkFields(tokenizeSchema, body);
  checkModel(context, fields.model);
  const { prompt, messages, add_special_tokens: special } = fields;
  let ids: readonly number[];
  if (messages) checkChats(context);
  if (messages) ids = await engine.encodeChat(messagesOf(messages));
  else if (special === false) ids = [...(await engine.tokenizer.encode(prompt ?? ""))];
  else ids = await engine.encode(prompt ?? "");
  await reply.json(200, { count: ids.length, max_model_len: engine.maxLength, tokens: ids });
}

/** Decoding takes the event loop's time, so its amount is bounded. */
const maxTokens = 65_536;

const detokenizeSchema = section("tokens", {
  model,
  tokens: whole<number[]>(
    (value) => Array.isArray(value) && value.length <= maxTokens && value.every(isId),
    `a list of up to ${maxTokens} token ids`,
    "the tokens",
  ),
});

/** `POST /detokenize`: the text of ids. */
export async function detokenize(
  context: ServerContext,
  body: Record<string, unknown>,
  reply: Reply,
): Promise<void> {
  const { tokenizer } = context.engine;
  const fields = checkFields(detokenizeSchema, body);
  checkModel(context, fields.model);
  checkIds(context, fields.tokens, "tokens");
  const prompt = tokenizer.decode(fields.tokens, { specialTokens: "keep" });
  await reply.json(200, { prompt });
}
