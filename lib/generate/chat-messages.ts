import { argumentError, checkArray, checkObject, checkString, describe } from "../core/check.js";
import { ArgumentError } from "../core/errors.js";

/** One message of a chat. */
export interface ChatMessage {
  /** Who speaks: "system", "user", "assistant", or another role that the model's template knows. */
  role: string;
  content: string;
  /** The speaker's name, for templates that show it. */
  name?: string;
  /** An assistant's thoughts before the answer, for templates that show them. */
  reasoning_content?: string;
}

const fields = ["role", "content", "name", "reasoning_content"] as const;

/** Fields of tool calls, which other programs know. */
const toolFields = ["tool_calls", "tool_call_id", "function_call", "tools"];

/**
 * Checks the messages of a chat. Returns a copy, so that later changes cannot bypass the check.
 * @throws ArgumentError naming the index and the field of the message that is wrong
 */
export function checkMessages(op: string, messages: unknown): ChatMessage[] {
  checkArray(op, "messages", messages, "an array of { role, content }");
  if (messages.length === 0) {
    throw new ArgumentError(`[${op}] expected at least one message in messages, got none`);
  }
  return Array.from(messages, (message: unknown, index) => checked(op, message, index));
}

function checked(op: string, message: unknown, index: number): ChatMessage {
  const at = `messages[${index}]`;
  checkObject(op, at, message, "{ role, content }");
  const given = message as Record<string, unknown>;
  const unknown = Object.keys(given).find((key) => !fields.includes(key as never));
  if (unknown !== undefined) {
    const why = toolFields.includes(unknown) ? "; tools are not supported" : "";
    throw new ArgumentError(
      `[${op}] expected only the fields ${fields.join(", ")} for ${at}, got ${JSON.stringify(unknown)}${why}`,
    );
  }
  const { role, content } = given;
  if (typeof role !== "string" || role === "") {
    throw argumentError(op, 'a role such as "user"', `${at}.role`, role);
  }
  if (typeof content !== "string") {
    throw argumentError(op, "a string", `${at}.content`, content);
  }
  const copy: ChatMessage = { role, content };
  for (const field of ["name", "reasoning_content"] as const) {
    const value = given[field];
    if (value === undefined) continue;
    checkString(op, `${at}.${field}`, value);
    copy[field] = value;
  }
  return copy;
}

/** Refuses tools by name. @throws ArgumentError if there are any */
export function refuseTools(op: string, tools: unknown): void {
  if (tools === undefined || tools === null) return;
  throw new ArgumentError(
    `[${op}] expected no tools, got ${describe(tools)}: tools are not supported`,
  );
}
