import type { AnswerPart } from "../generate/answer.js";
import type { AnswerOptions, OpenAnswers } from "../generate/engine.js";
import type { ServerContext } from "./context.js";
import type { PumpedReader } from "./event-pump.js";
import type { TokenClock } from "./metrics.js";
import type { Reply } from "./reply.js";

/** Tokens of a request, as `usage` tells them. */
export interface TokenUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/** Length of the text that is written at once, in characters, unless an event is longer. */
const writeLength = 64 * 1024;

/** Answers to the prompts of one request. */
export interface RequestedAnswers {
  route: string;
  prompts: readonly (readonly number[])[];
  options: AnswerOptions & { n: number };
  /** Where a stream's events go. Its client's leave ends all answers. */
  reply: Reply;
  /** When the request came, by `performance.now()`. */
  startMs: number;
  /**
   * Takes a part of the answer `index`; the n answers to a prompt follow each other.
   * @returns the part as events of a stream; "" for an answer that is sent as a whole
   */
  onPart: (part: AnswerPart) => string;
}

/**
 * Writes all answers to a request at once. The first failure ends them all.
 * @throws the engine's error, or the reason why the client has gone
 */
export async function runAnswers(
  context: ServerContext,
  requested: RequestedAnswers,
): Promise<TokenUsage> {
  const { prompts, reply } = requested;
  reply.signal.throwIfAborted();
  const written = await new Promise<number>((resolve, reject) => {
    const reader = new AnswerReader(context, requested, resolve, reject);
    reader.begin();
  });
  const prompt = prompts.reduce((sum, ids) => sum + ids.length, 0);
  return { prompt_tokens: prompt, completion_tokens: written, total_tokens: prompt + written };
}

/** Takes the parts of a request's answers after each step, and sends those of a stream. */
class AnswerReader implements PumpedReader {
  readonly #context: ServerContext;
  readonly #requested: RequestedAnswers;
  readonly #resolve: (written: number) => void;
  readonly #reject: (reason: unknown) => void;
  readonly #answers: OpenAnswers[] = [];
  readonly #clocks: readonly TokenClock[];
  #written = 0;
  /** Whether a slow reader has to take earlier events first. */
  #blocked = false;
  #done = false;

  constructor(
    context: ServerContext,
    requested: RequestedAnswers,
    resolve: (written: number) => void,
    reject: (reason: unknown) => void,
  ) {
    const { prompts, options, route, startMs } = requested;
    this.#context = context;
    this.#requested = requested;
    this.#resolve = resolve;
    this.#reject = reject;
    const count = prompts.length * options.n;
    this.#clocks = Array.from({ length: count }, () => context.metrics.clock(route, startMs));
  }

  begin(): void {
    const { prompts, options, reply } = this.#requested;
    const { engine, pump } = this.#context;
    reply.signal.addEventListener("abort", this.#leave, { once: true });
    try {
      for (const ids of prompts) {
        this.#answers.push(engine.begin(ids, options, () => pump.wake(this)));
      }
    } catch (error) {
      this.#end(() => this.#reject(error));
    }
  }

  pump(nowMs: number): void {
    if (this.#done || this.#blocked) return;
    try {
      if (!this.#send(nowMs)) return;
      const failed = this.#answers.find(({ queue }) => queue.failure);
      if (failed) throw failed.queue.failure?.reason;
    } catch (error) {
      this.#end(() => this.#reject(error));
      return;
    }
    if (this.#answers.every(({ queue }) => queue.ended)) {
      this.#end(() => this.#resolve(this.#written));
    }
  }

  /** Sends all that waits. @returns whether it did; false for a reader that is behind */
  #send(nowMs: number): boolean {
    let text = "";
    for (const [place, { queue }] of this.#answers.entries()) {
      for (let part = queue.take(); part; part = queue.take()) {
        text += this.#eventsOf(part, place, nowMs);
        if (text.length < writeLength) continue;
        if (!this.#write(text)) return false;
        text = "";
      }
    }
    return text === "" || this.#write(text);
  }

  #eventsOf(part: AnswerPart, place: number, nowMs: number): string {
    const { options, onPart } = this.#requested;
    const { length } = part.tokens;
    part.index += place * options.n;
    this.#written += length;
    this.#clocks[part.index]?.count(length, nowMs);
    return onPart(part);
  }

  #write(text: string): boolean {
    const { reply } = this.#requested;
    if (reply.sendEvents(text)) return true;
    this.#blocked = true;
    reply.drained().then(
      () => {
        this.#blocked = false;
        this.#context.pump.wake(this);
      },
      (error) => this.#end(() => this.#reject(error)),
    );
    return false;
  }

  readonly #leave = (): void => {
    const { signal } = this.#requested.reply;
    this.#end(() => this.#reject(signal.reason));
  };

  #end(settle: () => void): void {
    if (this.#done) return;
    this.#done = true;
    this.#requested.reply.signal.removeEventListener("abort", this.#leave);
    for (const answers of this.#answers) answers.end();
    settle();
  }
}
