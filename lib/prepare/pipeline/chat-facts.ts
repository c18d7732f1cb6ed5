import { createHash } from "node:crypto";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { ChatSource } from "../../generate/chat-template.js";

/** What is known of chats before the first is read. */
export interface ChatFacts {
  source: ChatSource;
  templateSha256: string;
  /** Special token that ends the assistant's message; null if the template writes none. */
  endId: number | null;
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
  const rendered = template.render({
    messages: [
      { role: "user", content: "Hello" },
      { role: "assistant", content: "Hello." },
    ],
  });
  const [encoded] = await tokenizer.encodeSpans([rendered]);
  const { ids, counted } = encoded as NonNullable<typeof encoded>;
  const endId = ids.findLast((id, index) => counted[index] === 1 && tokenizer.isSpecial(id));
  const templateSha256 = createHash("sha256").update(source.text).digest("hex");
  return { source, templateSha256, endId: endId ?? null };
}
