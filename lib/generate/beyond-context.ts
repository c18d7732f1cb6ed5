import type { AnswerPart } from "./answer.js";
import { AnswerText } from "./answer-text.js";
import type { AnswerOptions, Engine } from "./engine.js";

/**
 * Continues a prompt beyond what the engine holds: when a text of `maxLength` tokens is full, it
 * goes on from the newest half, so the length is unlimited. The parts are those of one answer.
 * @throws as `Engine.generate`, but not for a prompt that is too long
 */
export async function* generateBeyondContext(
  engine: Engine,
  prompt: string | readonly number[],
  options: Omit<AnswerOptions, "n">,
): AsyncGenerator<AnswerPart, void, void> {
  const { stop = [], seed = 0, maxTokens = Number.MAX_SAFE_INTEGER, ...rest } = options;
  const all = await engine.encode(prompt);
  const { maxLength } = engine;
  // One decoder reads the whole text, because a character or a stop string may begin before a
  // restart and end after it.
  const text = new AnswerText(engine.tokenizer.decodeStream(), all, stop);
  let left = maxTokens;
  for (let round = 0; ; round++) {
    const fresh = all.length >= maxLength ? all.slice(-Math.ceil(maxLength / 2)) : all.slice();
    // Draws are numbered from 0 in each round, so each has a seed of its own.
    const own = { ...rest, seed: (seed + round) % Number.MAX_SAFE_INTEGER, maxTokens: left };
    for await (const { index, tokens, finishReason } of engine.generate(fresh, own)) {
      let piece = "";
      for (const { id } of tokens) {
        all.push(id);
        left--;
        piece += text.push(id);
      }
      const ended = text.stopped || finishReason === "stop";
      const whole = ended || (finishReason !== null && left <= 0);
      const reason = ended ? "stop" : whole ? "length" : null;
      yield { index, text: whole ? piece + text.end() : piece, tokens, finishReason: reason };
      if (whole) return;
    }
  }
}
