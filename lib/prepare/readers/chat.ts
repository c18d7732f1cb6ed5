import { DataError } from "../../core/errors.js";
import { optionName, optionValue } from "../../core/option-names.js";
import type { TrainingChat } from "../../generate/training-chat.js";

/** Fields that hold a chat's messages, by default. The first one that a record has is used. */
export const chatFields = ["messages", "conversations"] as const;

/** Top-level fields of a record that belong to its chat besides the messages. */
export const chatExtras = ["tools", "system"] as const;

/** Largest chat in UTF-16 units: a chat is encoded as a whole. */
export const maxChatLength = 2 ** 20;

/** The speakers of ShareGPT's chats, by the roles that templates know. */
const roleOfSpeaker: Readonly<Record<string, string>> = {
  human: "user",
  user: "user",
  gpt: "assistant",
  chatgpt: "assistant",
  bing: "assistant",
  bard: "assistant",
  model: "assistant",
  assistant: "assistant",
  function_call: "assistant",
  system: "system",
  tool: "tool",
  function_response: "tool",
  observation: "tool",
};

/** Ends the reading of a record with an error that names it. */
export type FailRecord = (problem: string) => never;

/** Makes the errors of a record. @param where names the record */
export function failureOf(where: string): FailRecord {
  return (problem) => {
    throw new DataError(
      `[prepare] ${where}: ${problem}; correct it, or pass ${optionValue("badRecords", "skip")} to leave such records out`,
    );
  };
}

/**
 * The chat of a record: `messages` of `{ role, content }`, or ShareGPT's `conversations` of
 * `{ from, value }`. A record's `system` text goes in front, and its `tools` to the template.
 * @param list  value of the field with the messages
 * @param where names the record in the error
 * @param name  name of the list in the error
 * @throws DataError naming the message and the field that is wrong
 */
export function chatOf(
  list: unknown,
  record: unknown,
  where: string,
  name = "messages",
): TrainingChat {
  const fail = failureOf(where);
  const messages = messagesOf(list, name, fail);
  const { system = null, tools = null } = record as { system?: unknown; tools?: unknown };
  if (typeof system === "string" && system !== "" && messages[0]?.role !== "system") {
    messages.unshift({ role: "system", content: system });
  } else if (system !== null && typeof system !== "string") fail("system: expected a text");
  const hasTools = tools !== null && tools !== "" && tools !== "null";
  const toolList = typeof tools === "string" ? parsed(tools) : tools;
  if (!hasTools) return { messages };
  if (!Array.isArray(toolList)) {
    return fail(`tools: expected a list of tools, or one as JSON, got ${show(tools)}`);
  }
  return toolList.length === 0 ? { messages } : { messages, tools: toolList };
}

/** A list of messages, or its JSON, as templates expect them. At least one message. */
export function messagesOf(
  list: unknown,
  name: string,
  fail: FailRecord,
): Record<string, unknown>[] {
  const given = typeof list === "string" ? parsed(list) : list;
  if (!Array.isArray(given)) return fail(`${name}: expected a list of messages`);
  if (given.length === 0) return fail(`${name}: a chat without messages`);
  return given.map((message: unknown, index) => {
    if (typeof message !== "object" || message === null || Array.isArray(message)) {
      return fail(`${name}[${index}]: expected { role, content } or { from, value }`);
    }
    return messageOf(message as Record<string, unknown>, (problem) =>
      fail(`${name}[${index}]${problem}`),
    );
  });
}

function messageOf(
  message: Record<string, unknown>,
  fail: (problem: string) => never,
): Record<string, unknown> {
  const present = Object.entries(message).filter(
    // Columns of parquet are null where a record has no such field.
    ([name, value]) => (value !== null && value !== undefined) || name === "content",
  );
  const { from, value, ...rest } = Object.fromEntries(present);
  if (rest.role === undefined && from !== undefined) {
    const role = typeof from === "string" ? roleOfSpeaker[from] : undefined;
    const known = Object.keys(roleOfSpeaker).join(", ");
    if (role === undefined) return fail(`.from: expected one of ${known}, got ${show(from)}`);
    if (typeof value !== "string") return fail(`.value: expected a text, got ${show(value)}`);
    return { ...rest, role, content: value };
  }
  const { role, content } = rest;
  if (typeof role !== "string" || role === "") {
    return fail(`.role: expected a role such as "user", got ${show(role)}`);
  }
  const calls = Array.isArray(rest.tool_calls) && rest.tool_calls.length > 0;
  if (content === null || content === undefined) {
    return calls
      ? { ...rest, content: "" }
      : fail(`.content: expected a text, got ${show(content)}`);
  }
  return { ...rest, content: textOf(content, fail) };
}

/** A content's text: parts of text, as OpenAI's format has them, become one. */
function textOf(content: unknown, fail: (problem: string) => never): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return fail(`.content: expected a text, got ${show(content)}`);
  const parts = content.map((part: unknown, place) => {
    const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
    if (type === "text" && typeof text === "string") return text;
    return fail(`.content[${place}]: expected { type: "text", text }, got ${show(part)}`);
  });
  return parts.join("");
}

/** JSON's value; null for a text that is no JSON. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** The error for a record without messages. */
export function noMessages(where: string, names: readonly string[], fields: unknown): DataError {
  const present = Object.keys(fields as object);
  return new DataError(
    `[prepare] ${where}: no field ${names.join(" or ")}; it has ${present.slice(0, 20).join(", ") || "nothing"}; ` +
      `name the field of the messages as ${optionName("textField")}, or pass ${optionValue("badRecords", "skip")} ` +
      "to leave such records out",
  );
}
