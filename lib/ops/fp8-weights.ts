import { outsideScopes } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import {
  castInto,
  columnsOf,
  dropCopy,
  emptyCopy,
  type Fp8Copy,
  type Fp8Part,
  fp8Cast,
  fp8Choices,
  fp8Maximum,
  rowsOf,
} from "./fp8.js";

interface Kept {
  readonly copy: Fp8Copy;
  /** Version of the weight's memory that the copy was made from. */
  version: number;
}

/**
 * The weights of a model in fp8: rows for the forward pass, columns for the input's gradient. Where a
 * process holds all weights, a copy is kept and made again when the optimizer has changed the weight,
 * once a step. Where weights are divided between processes, their memory holds other weights in turn,
 * and a copy is made for each use.
 */
export class Fp8Weights {
  readonly #keeps: boolean;
  readonly #kept = new Map<Tensor, Kept>();

  /** @param keeps whether copies are kept from one use to the next */
  constructor(keeps: boolean) {
    this.#keeps = keeps;
  }

  /** A weight (outputs, inputs) as an operand of the forward product. */
  rows(weight: Tensor): Fp8Part {
    if (this.#keeps) return rowsOf(this.#current(weight));
    return rowsOf(fp8Cast(weight, { rows: true, columns: false }, fp8Choices.forward));
  }

  /** The weight's transpose (inputs, outputs), for the gradient of the input. */
  columns(weight: Tensor): Fp8Part {
    if (this.#keeps) return columnsOf(this.#current(weight));
    return columnsOf(fp8Cast(weight, { rows: false, columns: true }, fp8Choices.forward));
  }

  dispose(): void {
    for (const { copy } of this.#kept.values()) dropCopy(copy);
    this.#kept.clear();
  }

  #current(weight: Tensor): Fp8Copy {
    let kept = this.#kept.get(weight);
    const { version } = weight.memory;
    if (kept?.version === version) return kept.copy;
    if (!kept) {
      const both = { rows: true, columns: true };
      const copy = outsideScopes(() => emptyCopy(weight.shape, weight, both, fp8Choices.forward));
      kept = { copy, version };
      this.#kept.set(weight, kept);
    }
    const maximum = fp8Maximum(weight);
    castInto(weight, maximum, kept.copy);
    maximum.dispose();
    kept.version = version;
    return kept.copy;
  }
}
