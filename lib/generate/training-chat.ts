import { ArgumentError } from "../core/errors.js";
import { type ChatSource, ChatTemplate } from "./chat-template.js";
import { anyMark, type RenderedChat, spanMarks, unmarked } from "./span-marks.js";

/** A chat to learn from, with the fields that its messages have. */
export interface TrainingChat {
  messages: readonly Readonly<Record<string, unknown>>[];
  /** Tools that the assistant may call, as the template expects them. Default: none. */
  tools?: readonly unknown[];
}

const generationTag = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;

/**
 * Writes chats for training, and finds the assistant's words in them: where the template marks them
 * with `{% generation %}` and `{% endgeneration %}`, as transformers does, else by the difference
 * between the text up to an answer's beginning and the text up to its end.
 */
export class TrainingTemplate {
  readonly #template: ChatTemplate;
  /** The template with marks as text in place of its generation tags; null if it has none. */
  readonly #marked: ChatTemplate | null;

  /** @throws TokenizerError for a template that is not valid */
  constructor(source: ChatSource) {
    this.#template = ChatTemplate.from(source);
    const text = withMarks(source.text);
    this.#marked = text === source.text ? null : ChatTemplate.from({ ...source, text });
  }

  /** Whether the template itself marks the assistant's words. */
  get marksAnswers(): boolean {
    return this.#marked !== null;
  }

  /**
   * Writes a chat.
   * @throws ArgumentError if the template refuses the messages, if no part is the assistant's, or
   *   if the template writes earlier messages in another way once later ones follow
   */
  render(chat: TrainingChat): RenderedChat {
    if (anyMark.test(JSON.stringify(chat))) {
      throw new ArgumentError(
        "[chat] a message holds U+FDD0, U+FDD1 or U+FDD2, which are no characters",
      );
    }
    const rendered = this.#marked
      ? unmarked(this.#run(this.#marked, chat.messages, chat, false))
      : this.#byDifference(chat);
    if (rendered.spans.length === 0) {
      throw new ArgumentError("[chat] no message of the assistant, so nothing to learn from");
    }
    return rendered;
  }

  /** The text after which the assistant answers. */
  prompt(messages: TrainingChat["messages"], extras: Pick<TrainingChat, "tools"> = {}): string {
    return this.#run(this.#template, messages, { messages, ...extras }, true);
  }

  /** A chat as text, without its parts. @throws ArgumentError if the template refuses it */
  text(chat: TrainingChat): string {
    return this.#run(this.#template, chat.messages, chat, false);
  }

  #byDifference(chat: TrainingChat): RenderedChat {
    const { messages } = chat;
    const text = this.#run(this.#template, messages, chat, false);
    const spans: [number, number][] = [];
    for (const [index, { role }] of messages.entries()) {
      if (role !== "assistant") continue;
      const before =
        index === 0 ? "" : this.#run(this.#template, messages.slice(0, index), chat, true);
      const last = index === messages.length - 1;
      const after = last
        ? text
        : this.#run(this.#template, messages.slice(0, index + 1), chat, false);
      if (!text.startsWith(after) || !after.startsWith(before)) {
        throw new ArgumentError(
          `[chat] the assistant's words in messages[${index}] cannot be told apart: the template writes ` +
            "messages in another way once others follow. Give a template that marks them with " +
            "{% generation %} and {% endgeneration %}",
        );
      }
      if (after.length > before.length) spans.push([before.length, after.length]);
    }
    return { text, spans };
  }

  #run(
    template: ChatTemplate,
    messages: TrainingChat["messages"],
    { tools }: TrainingChat,
    addGenerationPrompt: boolean,
  ): string {
    return template.run({
      messages,
      ...(tools && { tools }),
      add_generation_prompt: addGenerationPrompt,
    });
  }
}

/**
 * Replaces the generation tags of a template. A block around each mark keeps the tags' rules on
 * white space.
 */
function withMarks(template: string): string {
  return template.replace(
    generationTag,
    (_, left: string, end: string | undefined, right: string) => {
      const mark = end ? spanMarks.close : spanMarks.open;
      return `{%${left} if true %}${mark}{% endif ${right}%}`;
    },
  );
}
