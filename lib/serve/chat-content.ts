import type { ChatMessage } from "../generate/chat-messages.js";
import { ApiError } from "./api-error.js";

/**
 * The messages of a request as the engine takes them. OpenAI's clients may send a text as a list of
 * parts, and null for what they leave out. The engine checks the rest.
 * @throws ApiError for parts that are not text
 */
export function messagesOf(messages: readonly unknown[]): ChatMessage[] {
  return messages.map((message, index) => {
    if (typeof message !== "object" || message === null || Array.isArray(message)) {
      throw wrong(`messages[${index}]`, "an object with role and content", message);
    }
    const given = Object.entries(message).filter(
      ([name, value]) => value !== null || name === "content" || name === "role",
    );
    const fields = Object.fromEntries(given) as { content?: unknown };
    if (!Array.isArray(fields.content)) return fields as ChatMessage;
    const parts = fields.content.map((part: unknown, place) => {
      const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
      if (type === "text" && typeof text === "string") return text;
      const at = `messages[${index}].content[${place}]`;
      throw wrong(at, 'a part { type: "text", text }, since this model reads nothing else', part);
    });
    return { ...fields, content: parts.join("") } as ChatMessage;
  });
}

function wrong(param: string, expected: string, got: unknown): ApiError {
  const text = JSON.stringify(got) ?? String(got);
  const shown = text.length > 80 ? `${text.slice(0, 77)}...` : text;
  return new ApiError(400, `${param}: expected ${expected}, got ${shown}`, {
    param,
    code: "invalid_value",
  });
}
