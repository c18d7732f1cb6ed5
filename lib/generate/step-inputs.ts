import { drawNumber, encodeSampling } from "../ops/sample.js";
import type { Sequence } from "./sequence.js";
import type { Slots } from "./slots.js";

/** Numbers of a row of `sampleRows`, and reals of a row. */
export const samplingNumbers = 6;

/** Sizes of the inputs of a recorded step. */
export interface StepSize {
  /** Tokens of the step, of one sequence each. Rows without a sequence fill it up. */
  rows: number;
  /** Pages of the longest sequence. */
  width: number;
}

/** What `encodeSampling` makes of a sequence's settings while it has its rows of the tables. */
interface Encoded {
  slot: number | null;
  bias: number | undefined;
  reals: Float32Array;
  numbers: Int32Array;
}

const noSettings = {
  reals: Float32Array.of(0, 1, 0, 1, 0, 0),
  numbers: Int32Array.of(0, 0, 0, 0, -1, -1),
};

/**
 * The inputs of one recorded step on the host, in one array that is copied to the device at once.
 * Parts, in their order: ids that are known (rows), places of the others among the latest ids or -1
 * (rows), positions (rows), numbers (rows, 6) and, as bits, reals (rows, 6) of sampling, pages (rows,
 * width).
 */
export class StepInputs {
  readonly values: Int32Array;
  readonly parts: Readonly<
    Record<"known" | "source" | "positions" | "numbers" | "reals" | "table", number>
  >;
  readonly #size: StepSize;
  readonly #reals: Float32Array;
  /** Rows that a sequence used last. */
  #used: number;
  readonly #sparePage: number;
  static readonly #encoded = new WeakMap<Sequence, Encoded>();

  /** @param sparePage a page that no sequence has, for rows without a sequence */
  constructor(size: StepSize, sparePage: number) {
    const { rows, width } = size;
    this.#size = size;
    this.#sparePage = sparePage;
    this.#used = rows;
    const starts = { known: 0, source: rows, positions: 2 * rows, numbers: 3 * rows };
    const reals = (3 + samplingNumbers) * rows;
    this.parts = { ...starts, reals, table: reals + samplingNumbers * rows };
    this.values = new Int32Array(this.parts.table + rows * width);
    this.#reals = new Float32Array(this.values.buffer, 4 * reals, samplingNumbers * rows);
  }

  /** Fills the rows with the newest token of each sequence. */
  fill(sequences: readonly Sequence[], slots: Slots): void {
    const { values, parts } = this;
    for (const [row, sequence] of sequences.entries()) {
      const { tokens, pending, length, pages } = sequence;
      values[parts.known + row] = pending === null ? (tokens.at(-1) as number) : 0;
      values[parts.source + row] = pending === null ? -1 : pending.row;
      values[parts.positions + row] = length - 1;
      const { reals, numbers } = this.#encode(sequence, slots);
      this.#reals.set(reals, samplingNumbers * row);
      values.set(numbers, parts.numbers + samplingNumbers * row);
      const draw = (sequence.settings.firstDraw ?? 0) + sequence.drawn;
      values[parts.numbers + samplingNumbers * row + drawNumber] = draw;
      values.set(pages, parts.table + row * this.#size.width);
    }
    for (let row = sequences.length; row < this.#used; row++) this.#clear(row);
    this.#used = sequences.length;
  }

  #clear(row: number): void {
    const { values, parts } = this;
    const { width } = this.#size;
    values[parts.known + row] = 0;
    values[parts.source + row] = -1;
    values[parts.positions + row] = 0;
    this.#reals.set(noSettings.reals, samplingNumbers * row);
    values.set(noSettings.numbers, parts.numbers + samplingNumbers * row);
    values.fill(this.#sparePage, parts.table + row * width, parts.table + (row + 1) * width);
  }

  #encode(sequence: Sequence, slots: Slots): Encoded {
    const bias = slots.biasRow(sequence);
    const { slot, settings, usesPenalties } = sequence;
    const earlier = StepInputs.#encoded.get(sequence);
    if (earlier && earlier.slot === slot && earlier.bias === bias) return earlier;
    const rows = {
      ...(slot !== null && usesPenalties && { counts: slot }),
      ...(bias !== undefined && { bias }),
    };
    const encoded = encodeSampling([{ ...settings.sampling, ...rows }], slots.tables);
    const kept = { slot, bias, ...encoded };
    StepInputs.#encoded.set(sequence, kept);
    return kept;
  }
}
