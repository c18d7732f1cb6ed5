import { toJson } from "../checkpoint/durable.js";
import { DataError } from "../core/errors.js";
import { chatTemplateFile } from "../data/dataset-file.js";
import type { Mixture } from "../data/mixture.js";
import type { Tokenizer } from "../data/tokenizer.js";
import { readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { ChatTemplate } from "../generate/chat-template.js";

/** The form of chats that a run trains on. */
export interface RunChat {
  template: ChatTemplate;
  /** Special token that ends the assistant's message; null if the template writes none. */
  endId: number | null;
}

/**
 * The form of a mixture's chats; null for text, and for pairs of plain text.
 * @throws DataError naming the template's file if it cannot be read
 */
export async function openChat(mixture: Mixture, tokenizer: Tokenizer): Promise<RunChat | null> {
  const { chats } = mixture;
  if (chats === null || chats.template === null) return null;
  const { template, endId } = chats;
  let text: string;
  try {
    text = utf8Of(await readSmallFile(template, { limit: sizeLimits.tokenizerConfig }));
  } catch (cause) {
    throw new DataError(`[data] cannot read ${template}: ${(cause as Error).message}`, { cause });
  }
  return { template: ChatTemplate.of(text, tokenizer), endId };
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
        `${folder}: ${count(leftOut)} of ${count(chats.count)} ${what} are left out: in a window of ` +
          `${sequenceLength} tokens nothing would be left of an answer`,
      );
    }
    return notes;
  });
}

/**
 * Files of a checkpoint that say how an answer ends: of chats the template, and the tokens that end
 * an answer if they are not the end-of-text token alone.
 */
export function answerFiles(
  chat: RunChat | null,
  mixture: Pick<Mixture, "sources">,
  tokenizer: Tokenizer,
): Record<string, string> {
  const ends = answerEnds(chat, mixture, tokenizer);
  const generation = {
    ...(tokenizer.bosId !== null && { bos_token_id: tokenizer.bosId }),
    eos_token_id: ends.length === 1 ? ends[0] : ends,
  };
  const file = "generation_config.json";
  return {
    ...(chat && { [chatTemplateFile]: chat.template.source }),
    ...((chat || ends.length > 1) && { [file]: toJson(file, generation) }),
  };
}

/** The tokens that end an answer of a run's model. */
export function answerEnds(
  chat: RunChat | null,
  mixture: Pick<Mixture, "sources">,
  tokenizer: Tokenizer,
): number[] {
  const own = [...(chat ? [chat.endId] : []), ...documentEnds(mixture)];
  return [...new Set([...own, tokenizer.eosId])].filter((id) => id !== null);
}

/** The tokens that end documents of text, in the order of the sources. */
export function documentEnds({ sources }: Pick<Mixture, "sources">): number[] {
  const ends = sources.map(({ dataset }) => (dataset.chats ? null : dataset.marks.endId));
  return [...new Set(ends)].filter((id) => id !== null);
}
