import { noGrad } from "../core/autograd.js";
import { tensor } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { type Recording, record } from "../core/recording.js";
import { outsideScopes, scope } from "../core/scope.js";
import { empty, type Tensor } from "../core/tensor.js";
import type { LanguageModel } from "../model/language-model.js";
import { latestIds } from "../ops/index.js";
import { sampleEncodedRows } from "../ops/sample.js";
import type { Sequence } from "./sequence.js";
import type { Slots } from "./slots.js";
import { StepInputs, type StepSize, samplingNumbers } from "./step-inputs.js";
import type { StepResults } from "./step-results.js";
import { paddedRows } from "./step-sizes.js";

/** Recordings that are kept. Each holds the memory of one step's results. */
const mostRecordings = 24;
/** Pages of the shortest table. */
const leastWidth = 8;

/** A step for one number of rows, as the device repeats it. */
interface RecordedStep {
  recording: Recording;
  inputs: StepInputs;
  /** The inputs on the device. */
  packed: Tensor;
  /** (rows, vocabulary) */
  logits: Tensor;
}

/**
 * Steps in which each sequence computes its newest token and draws the next one. They are recorded
 * once for each size, and a step is then one copy of its inputs to the device, one launch, and one
 * copy of its results back. Ids that the step before has drawn stay on the device, so a step begins
 * without waiting for them.
 */
export class RecordedSteps {
  readonly #model: LanguageModel;
  readonly #layers: readonly Tensor[];
  readonly #slots: Slots;
  readonly #results: StepResults;
  readonly #sparePage: number | null;
  readonly #mostPages: number;
  /** By size and tables; the one used last comes last. */
  readonly #steps = new Map<string, RecordedStep>();
  /** Memory of the weights that the recordings read. */
  #weights: readonly object[] = [];
  /** Why the model cannot be recorded. */
  #refusal: ArgumentError | null = null;

  constructor(
    model: LanguageModel,
    layers: readonly Tensor[],
    slots: Slots,
    results: StepResults,
    { sparePage, mostPages }: { sparePage: number | null; mostPages: number },
  ) {
    this.#model = model;
    this.#layers = layers;
    this.#slots = slots;
    this.#results = results;
    this.#sparePage = sparePage;
    this.#mostPages = mostPages;
  }

  /**
   * Enqueues a step, and returns the logits, one row for each sequence and maybe more.
   * @returns null for a model that cannot be recorded, because its `hidden` copies from the host, or
   *   because its weights are gathered from several processes
   */
  run(sequences: readonly Sequence[]): Tensor | null {
    if (this.#refusal || this.#model.store.divided) return null;
    const step = this.#stepFor(sequences);
    if (!step) return null;
    step.inputs.fill(sequences, this.#slots);
    step.packed.native.write(step.inputs.values);
    step.recording.replay();
    return step.logits;
  }

  dispose(): void {
    for (const step of this.#steps.values()) this.#drop(step);
    this.#steps.clear();
  }

  #drop({ recording, packed, logits }: RecordedStep): void {
    recording.dispose();
    packed.dispose();
    logits.dispose();
  }

  #stepFor(sequences: readonly Sequence[]): RecordedStep | null {
    this.#checkWeights();
    const size = this.#sizeFor(sequences);
    const { counts, bias } = this.#slots.tables;
    const key = `${size.rows} ${size.width} ${counts ? 1 : 0} ${bias ? 1 : 0}`;
    const known = this.#steps.get(key);
    this.#steps.delete(key);
    const step = known ?? this.#record(size);
    if (!step) return null;
    this.#steps.set(key, step);
    if (this.#steps.size > mostRecordings) {
      const [oldest, unused] = this.#steps.entries().next().value as [string, RecordedStep];
      this.#steps.delete(oldest);
      this.#drop(unused);
    }
    return step;
  }

  #sizeFor(sequences: readonly Sequence[]): StepSize {
    const pages = Math.max(leastWidth, ...sequences.map(({ pages }) => pages.length));
    return {
      rows: this.#sparePage === null ? sequences.length : paddedRows(sequences.length),
      width: Math.min(2 ** Math.ceil(Math.log2(pages)), Math.max(this.#mostPages, 1)),
    };
  }

  /** Forgets recordings whose weights have moved. Weights that change in place stay theirs. */
  #checkWeights(): void {
    const weights = this.#model.store.groups.flatMap(({ entries: [first] }) =>
      first ? [first.parameter.tensor.memory] : [],
    );
    const same =
      weights.length === this.#weights.length && weights.every((w, i) => w === this.#weights[i]);
    if (!same) this.dispose();
    this.#weights = weights;
  }

  #record(size: StepSize): RecordedStep | null {
    const inputs = new StepInputs(size, this.#sparePage ?? 0);
    const { device } = this.#model;
    const packed = outsideScopes(() =>
      empty([inputs.values.length], { dtype: "i32", device }, "Engine"),
    );
    // Constant: token n belongs to row n.
    const sequences = outsideScopes(() =>
      tensor(
        Int32Array.from({ length: size.rows }, (_, n) => n),
        { shape: [1, size.rows], device },
      ),
    );
    let logits: Tensor | null = null;
    try {
      const recording = record(device, () => {
        logits = noGrad(() => scope(() => this.#enqueue(size, inputs, packed, sequences)));
      });
      return { recording, inputs, packed, logits: logits as unknown as Tensor };
    } catch (error) {
      packed.dispose();
      if (!(error instanceof ArgumentError && error.message.includes("a recording consists of"))) {
        throw error;
      }
      this.#refusal = error;
      return null;
    } finally {
      sequences.dispose();
    }
  }

  /** @returns the logits, outside of every scope */
  #enqueue(size: StepSize, inputs: StepInputs, packed: Tensor, sequences: Tensor): Tensor {
    const { rows, width } = size;
    const { parts } = inputs;
    const model = this.#model;
    const { ids: latest, rowsOf } = this.#results;
    const part = (name: keyof typeof parts, shape: readonly number[]) =>
      packed.view(shape, parts[name]);
    const ids = latestIds(part("known", [1, rows]), part("source", [1, rows]), latest);
    const all = model.forward(ids, {
      layers: this.#layers,
      table: part("table", [rows, width]),
      sequences,
      positions: part("positions", [1, rows]),
      oneEach: true,
    });
    const logits = all.view([rows, all.size / rows]);
    const encoded = {
      numbers: part("numbers", [rows, samplingNumbers]),
      reals: part("reals", [rows, samplingNumbers]).bits("f32"),
    };
    sampleEncodedRows(logits, encoded, this.#slots.tables, rowsOf(rows));
    return outsideScopes(() => logits.view(logits.shape));
  }
}
