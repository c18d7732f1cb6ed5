import { zeros } from "../core/create.js";
import type { Device } from "../core/device.js";
import { outsideScopes } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";

/**
 * The ids that the latest step has drawn and their log-probabilities, in one place on the device, so
 * that the next step finds the ids and the host reads both at once.
 */
export class StepResults {
  readonly #most: number;
  readonly #values: Tensor;
  /** i32, the ids of the latest step. */
  readonly ids: Tensor;

  /** @param most rows of the largest step */
  constructor(most: number, device: Device) {
    this.#most = most;
    [this.#values, this.ids] = outsideScopes(() => {
      const values = zeros([2 * most], { dtype: "i32", device });
      return [values, values.view([most])];
    });
  }

  /** The places of a step's results. They belong to the current scope. */
  readonly rowsOf = (rows: number): { ids: Tensor; logprobs: Tensor } => ({
    ids: this.#values.view([rows], 0),
    logprobs: this.#values.view([rows], this.#most).bits("f32"),
  });

  /** Reads the first `rows` results at this point of the device's work. */
  async read(rows: number): Promise<{ ids: Int32Array; logprobs: Float32Array }> {
    const bytes = await this.#values.toBytes();
    return {
      ids: new Int32Array(bytes, 0, rows),
      logprobs: new Float32Array(bytes, 4 * this.#most, rows),
    };
  }

  dispose(): void {
    this.ids.dispose();
    this.#values.dispose();
  }
}
