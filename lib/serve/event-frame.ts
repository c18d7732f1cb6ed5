import type { FinishReason } from "../generate/sequence.js";

/** The text around the choice of each event of one stream. It is the same in all of them. */
export class EventFrame {
  readonly #before: string;
  readonly #after: string;

  /**
   * @param head fields before `choices`
   * @param rest fields after it
   */
  constructor(head: Readonly<Record<string, unknown>>, rest: Readonly<Record<string, unknown>>) {
    this.#before = `data: ${JSON.stringify(head).slice(0, -1)},"choices":[{`;
    const fields = JSON.stringify(rest).slice(1);
    this.#after = fields === "}" ? "}]}\n\n" : `}],${fields}\n\n`;
  }

  /**
   * An event with one choice.
   * @param own the choice's fields of its route, as JSON without brackets
   * @param logprobs a value for JSON, or null
   */
  event(index: number, own: string, logprobs: unknown, reason: FinishReason | null): string {
    const scores = logprobs === null ? "null" : JSON.stringify(logprobs);
    const end = reason === null ? "null" : `"${reason}"`;
    const choice = `"index":${index},${own},"logprobs":${scores},"finish_reason":${end}`;
    return this.#before + choice + this.#after;
  }
}
