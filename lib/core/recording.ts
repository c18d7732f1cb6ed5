import { argumentError, checkDevice } from "./check.js";
import type { Device } from "./device.js";
import { addon, deviceNumber, type NativeRecording, typedNativeError } from "./native.js";

/**
 * A stretch of operations that a device runs as one, as often as `replay` is called: a CUDA graph on
 * a GPU, a list on a CPU. Each run reads and writes the tensors of the operations as they were
 * recorded, so inputs are written into tensors that were made before, and results are read from
 * tensors that were made inside. The recording keeps the memory of all of them until `dispose()`.
 */
export class Recording {
  readonly #native: NativeRecording;

  /** @internal Use `record()` */
  constructor(native: NativeRecording) {
    this.#native = native;
  }

  /** Number of operations. */
  get length(): number {
    return this.#native.length;
  }

  /**
   * Enqueues the operations and returns at once. An error of one of them arrives at the next wait,
   * as of any operation. On a GPU, the second run makes the graph.
   * @throws DisposedError after `dispose()`
   */
  replay(): void {
    try {
      this.#native.replay();
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  /** Gives back what the recording holds. Runs that are on their way end before. */
  dispose(): void {
    this.#native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Records the operations that `fn` enqueues instead of running them. `fn` must not await, and must
 * neither read tensors nor make them of host data. Tensors that it makes have no contents before the
 * first run.
 * @throws ArgumentError for work that a replay could not repeat: copies between host and device, and
 *   waits; nothing is recorded then
 * @throws what `fn` throws
 */
export function record(device: Device, fn: () => void): Recording {
  checkDevice("record", "device", device);
  if (typeof fn !== "function") throw argumentError("record", "a function", "fn", fn);
  try {
    addon.beginRecording(deviceNumber(device));
  } catch (error) {
    throw typedNativeError(error);
  }
  try {
    const result: unknown = fn();
    if (result instanceof Promise) {
      result.catch(() => {});
      throw argumentError("record", "a function that returns at once", "fn", fn);
    }
  } catch (error) {
    addon.dropRecording();
    throw error;
  }
  return new Recording(new addon.NativeRecording());
}
