import { createHash } from "node:crypto";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { ChatSource } from "../../generate/chat-template.js";

/** What is known of chats before the first is read. */
export interface ChatFacts {
  source: ChatSource;
  templateSha256: string;
  /** Special token that ends the assistant's message; null if the template writes none. */
  endId: number | null;
  /** What is wrong with the template, though it can be used. */
  warnings: string[];
}

/**
 * Reads the template that writes chats, and finds the token that ends the assistant's message.
 * @param path a model's folder or a file in Jinja
 * @throws TokenizerError if there is no template, or if it is damaged
 */
export async function readChatFacts(path: string, tokenizer: Tokenizer): Promise<ChatFacts> {
  const { ChatTemplate } = await import("../../generate/chat-template.js");
  const { TrainingTemplate } = await import("../../generate/training-chat.js");
  const { parts: source } = await ChatTemplate.load(path, tokenizer);
  const template = new TrainingTemplate(source);
  const question = { role: "user", content: "Hello" };
  const rendered = template.render({
    messages: [question, { role: "assistant", content: "Hello." }],
  });
  const [encoded] = await tokenizer.encodeSpans([rendered]);
  const { ids, counted } = encoded as NonNullable<typeof encoded>;
  const endId =
    ids.findLast((id, index) => counted[index] === 1 && tokenizer.isSpecial(id)) ?? null;
  const templateSha256 = createHash("sha256").update(source.text).digest("hex");
  const warnings: string[] = [];
  if (endId === null) {
    warnings.push(
      "the chat template ends the assistant's message with no special token: a model that learns from " +
        "these chats does not learn where to stop",
    );
  }
  const asked = template.prompt([question]);
  const learned = rendered.text.slice(0, rendered.spans[0]?.[0]);
  if (asked !== learned) {
    warnings.push(
      `the chat template asks for an answer after ${JSON.stringify(asked)}, but the answers that the model learns ` +
        `stand after ${JSON.stringify(learned)}`,
    );
  }
  return { source, templateSha256, endId, warnings };
}
