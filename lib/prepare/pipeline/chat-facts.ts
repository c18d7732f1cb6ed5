import { createHash } from "node:crypto";
import { ArgumentError, TokenizerError } from "../../core/errors.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { TrainingTemplate } from "../../generate/training-chat.js";
import type { AnswerSource } from "./batch.js";

/** Facts about chats or pairs that are known before the first is read. */
export interface AnswerFacts extends AnswerSource {
  /** Null for pairs of plain text. */
  templateSha256: string | null;
  /** Token that ends an answer; null if none does. */
  endId: number | null;
  /** Faults of the template that do not keep it from being used. */
  warnings: string[];
}

/** Facts about pairs of plain text. */
export function textPairFacts(endId: number | null): AnswerFacts {
  return { pairs: true, template: null, templateSha256: null, endId, warnings: [] };
}

/**
 * Reads the template that writes messages, and finds the token that ends the assistant's message.
 * @param path  a model's folder or a file in Jinja
 * @param pairs whether records hold pairs, and not chats
 * @throws TokenizerError if there is no template, or if it is damaged
 */
export async function readChatFacts(
  path: string,
  tokenizer: Tokenizer,
  pairs: boolean,
): Promise<AnswerFacts> {
  const { ChatTemplate } = await import("../../generate/chat-template.js");
  const { TrainingTemplate } = await import("../../generate/training-chat.js");
  const { parts: source } = await ChatTemplate.load(path, tokenizer);
  const template = new TrainingTemplate(source);
  const question = { role: "user", content: "Hello" };
  const rendered = probe(template, question, path);
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
  return { pairs, template: source, templateSha256, endId, warnings };
}

/** The shortest chat through the template. A template that fails for it fails for every chat. */
function probe(template: TrainingTemplate, question: Record<string, string>, path: string) {
  try {
    return template.render({ messages: [question, { role: "assistant", content: "Hello." }] });
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new TokenizerError(
      `[prepare] the chat template of ${path} cannot write a question and its answer: ${error.message}`,
      { cause: error },
    );
  }
}
