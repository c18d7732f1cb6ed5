import { readFile } from "node:fs/promises";
import { toJson } from "../checkpoint/durable.js";
import { chatTemplateFile } from "../data/dataset-file.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { ChatTemplate } from "../generate/chat-template.js";

/** The form of chats that a run trains on. */
export interface RunChat {
  template: ChatTemplate;
  /** Special token that ends the assistant's message; null if the template writes none. */
  endId: number | null;
}

/** The form of a mixture's chats; null for text, and for pairs of plain text. */
export async function openChat(mixture: Mixture, tokenizer: Tokenizer): Promise<RunChat | null> {
  const { chats } = mixture;
  if (chats === null || chats.template === null) return null;
  const text = await readFile(chats.template, "utf8");
  return { template: ChatTemplate.of(text, tokenizer), endId: chats.endId };
}

/** Says which chats or pairs are longer than a window. */
export function cutNotes({ sources, sequenceLength }: Mixture): string[] {
  const count = (n: number) => n.toLocaleString("en-US");
  return sources.flatMap(({ folder, dataset: { chats } }) => {
    if (chats === null) return [];
    const { cut, leftOut, pairs } = chats;
    const what = pairs ? "pairs" : "chats";
    const notes: string[] = [];
    if (cut.chats > 0) {
      notes.push(
        `${folder}: ${count(cut.chats)} of ${count(chats.count)} ${what} are longer than a window of ` +
          `${sequenceLength} tokens${pairs ? ", or an answer is longer than the model's context," : ""} and ` +
          `lose their ends, ${count(cut.tokens)} tokens together`,
      );
    }
    if (leftOut > 0) {
      notes.push(
        `${folder}: ${count(leftOut)} of ${count(chats.count)} pairs are left out: in a window of ` +
          `${sequenceLength} tokens nothing would be left of an answer`,
      );
    }
    return notes;
  });
}

/**
 * Files that a checkpoint of a chat model has besides those of any model: the template, and the
 * tokens that end an answer.
 */
export function chatFiles(chat: RunChat | null, tokenizer: Tokenizer): Record<string, string> {
  if (chat === null) return {};
  const ends = [...new Set([chat.endId ?? tokenizer.eosId, tokenizer.eosId])];
  const generation = {
    ...(tokenizer.bosId !== null && { bos_token_id: tokenizer.bosId }),
    eos_token_id: ends.length === 1 ? ends[0] : ends,
  };
  const file = "generation_config.json";
  return { [chatTemplateFile]: chat.template.source, [file]: toJson(file, generation) };
}
