import { writeFile } from "node:fs/promises";
import { ArgumentError, type LlamaForgeError, UsageError } from "../core/errors.js";
import type { ChatMessage } from "../generate/chat-messages.js";
import type { AnswerOptions, Engine } from "../generate/engine.js";

/** How an answer went. */
export interface Answered {
  tokens: number;
  seconds: number;
  /** Messages at the beginning of the chat that the model's context had no room for. */
  leftOut: number;
  /** Why it ended: of itself, at the number of tokens, or because it was stopped. */
  reason: "stop" | "length" | "stopped";
}

/** A chat with a model: its messages so far, and the answers to new ones. */
export class ChatSession {
  readonly #engine: Engine;
  readonly #options: Omit<AnswerOptions, "n" | "signal">;
  #system: string | null;
  #messages: ChatMessage[] = [];

  constructor(engine: Engine, system: string | null, options: Omit<AnswerOptions, "n" | "signal">) {
    this.#engine = engine;
    this.#system = system;
    this.#options = options;
  }

  /** All messages, the system's first. */
  get messages(): ChatMessage[] {
    const system = this.#system === null ? [] : [{ role: "system", content: this.#system }];
    return [...system, ...this.#messages];
  }

  /** Forgets the messages, but not the system's. */
  reset(): void {
    this.#messages = [];
  }

  /** Sets the system's message; null for none. It counts from the next answer on. */
  setSystem(text: string | null): void {
    this.#system = text;
  }

  /** Writes the messages as JSON into a new file. @throws UsageError if it cannot be written */
  async save(file: string): Promise<void> {
    const text = `${JSON.stringify({ messages: this.messages }, null, 2)}\n`;
    await writeFile(file, text, { flag: "wx" }).catch((cause: NodeJS.ErrnoException) => {
      const why = cause.code === "EEXIST" ? "a file of this name is there already" : cause.message;
      throw new UsageError(`${file}: ${why}`, { cause });
    });
  }

  /**
   * Answers a message. A stopped answer stays in the chat as far as it came; a message without an
   * answer does not.
   * @throws the engine's and the template's errors
   */
  async answer(
    text: string,
    signal: AbortSignal,
    onText: (text: string) => void,
  ): Promise<Answered> {
    this.#messages.push({ role: "user", content: text });
    const from = performance.now();
    let [answer, tokens, reason]: [string, number, Answered["reason"]] = ["", 0, "stopped"];
    try {
      const { ids, leftOut } = await this.#fitting();
      for await (const part of this.#engine.generate(ids, { ...this.#options, signal })) {
        tokens += part.tokens.length;
        answer += part.text;
        onText(part.text);
        reason = part.finishReason ?? reason;
      }
      return { tokens, seconds: (performance.now() - from) / 1000, leftOut, reason };
    } catch (error) {
      if (!signal.aborted) {
        answer = "";
        throw error;
      }
      return { tokens, seconds: (performance.now() - from) / 1000, leftOut: 0, reason };
    } finally {
      if (answer === "" && reason === "stopped") this.#messages.pop();
      else this.#messages.push({ role: "assistant", content: answer });
    }
  }

  /** The chat's ids, without as many of the oldest messages as the context has no room for. */
  async #fitting(): Promise<{ ids: number[]; leftOut: number }> {
    const { maxLength } = this.#engine;
    const system = this.messages.slice(0, this.messages.length - this.#messages.length);
    for (let leftOut = 0; ; leftOut += 2) {
      const rest = this.#messages.slice(leftOut);
      if (rest.length === 0) {
        throw new ArgumentError(
          `[chat] expected a message that leaves room in the ${maxLength} tokens of the context`,
        );
      }
      const ids = await this.#engine.encodeChat([...system, ...rest]);
      if (ids.length < maxLength) return { ids, leftOut };
    }
  }
}

/** Whether a chat can go on after an error: one of the user's messages or settings. */
export function isUsersError(error: unknown): error is LlamaForgeError {
  return error instanceof ArgumentError || error instanceof UsageError;
}
