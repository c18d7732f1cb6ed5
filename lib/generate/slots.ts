import { tensor, zeros } from "../core/create.js";
import { outsideScopes, scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { LanguageModel } from "../model/language-model.js";
import { promptToken, type SampleTables, writeRow } from "../ops/index.js";
import type { Sequence } from "./sequence.js";

/**
 * Rows of the tables on the device that penalties and biases need, a row for each running sequence
 * that uses them. The tables are made when the first such sequence comes. One more row of the biases
 * bans the ids that the tokenizer lacks, for all sequences without a bias of their own.
 */
export class Slots {
  readonly #model: LanguageModel;
  readonly #count: number;
  readonly #banned: readonly number[];
  readonly #free: number[];
  #counts: Tensor | null = null;
  #bias: Tensor | null = null;

  /**
   * @param count sequences that run at once
   * @param banned ids that no sequence may have
   */
  constructor(model: LanguageModel, count: number, banned: readonly number[]) {
    this.#model = model;
    this.#count = count;
    this.#banned = banned;
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i);
    if (banned.length > 0) this.#biases();
  }

  get tables(): SampleTables {
    return {
      ...(this.#counts && { counts: this.#counts }),
      ...(this.#bias && { bias: this.#bias }),
    };
  }

  /** The row of the biases that a sequence uses; undefined for none. */
  biasRow({ settings, slot }: Sequence): number | undefined {
    if (settings.bias && slot !== null) return slot;
    return this.#banned.length > 0 ? this.#count : undefined;
  }

  /** Gives a sequence its rows, if it needs any. */
  enter(sequence: Sequence): void {
    const { settings, usesPenalties } = sequence;
    if (sequence.slot !== null || !(settings.bias || usesPenalties)) return;
    const slot = this.#free.pop() as number;
    sequence.slot = slot;
    const { device } = this.#model;
    scope(() => {
      if (usesPenalties) {
        this.#counts ??= this.#table("i32", this.#count);
        writeRow(this.#counts, slot, tensor(this.#countsOf(sequence), { device }));
      }
      if (settings.bias)
        writeRow(this.#biases(), slot, tensor(this.#biasOf(settings.bias), { device }));
    });
  }

  leave(sequence: Sequence): void {
    if (sequence.slot === null) return;
    this.#free.push(sequence.slot);
    sequence.slot = null;
  }

  dispose(): void {
    this.#counts?.dispose();
    this.#bias?.dispose();
  }

  #table(dtype: "i32" | "f32", rows: number): Tensor {
    const { device, config } = this.#model;
    return outsideScopes(() => zeros([rows, config.vocabSize], { dtype, device }));
  }

  #biases(): Tensor {
    if (this.#bias) return this.#bias;
    const bias = this.#table("f32", this.#count + 1);
    const { vocabSize } = this.#model.config;
    const { device } = this.#model;
    scope(() => {
      const row = this.#biasOf(new Float32Array(vocabSize));
      writeRow(bias, this.#count, tensor(row, { device }));
    });
    this.#bias = bias;
    return bias;
  }

  #biasOf(own: Float32Array): Float32Array {
    const bias = own.slice();
    for (const id of this.#banned) bias[id] = Number.NEGATIVE_INFINITY;
    return bias;
  }

  #countsOf({ tokens, promptLength }: Sequence): Int32Array {
    const counts = new Int32Array(this.#model.config.vocabSize);
    for (const [place, id] of tokens.entries()) {
      if (place >= promptLength) counts[id]!++;
      else counts[id]! |= promptToken;
    }
    return counts;
  }
}
