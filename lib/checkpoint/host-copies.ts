import { addon, type NativeHostMemory, typedNativeError } from "../core/native.js";
import type { Tensor } from "../core/tensor.js";
import type { TensorSource } from "./safetensors.js";

/**
 * Copies of tensors in host memory. The memory is reused from one snapshot to the next, because the
 * system hands out new memory page by page, which takes several times as long as the copying. The
 * result of `copy` for a name is therefore valid until the next `copy` of that name, and must have
 * been written to disk by then.
 */
export class HostCopies {
  readonly #memory = new Map<string, NativeHostMemory>();

  /** Copies an f32 or bf16 tensor as it is at this point of the stream. */
  async copy(name: string, tensor: Tensor, shape: readonly number[]): Promise<TensorSource> {
    tensor.checkAlive("copy");
    const dtype = tensor.dtype === "bf16" ? "BF16" : "F32";
    try {
      const memory = this.#memoryFor(name, tensor.size * (dtype === "BF16" ? 2 : 4));
      await tensor.native.readInto(memory, 0);
      const bytes = new Uint8Array(memory.buffer);
      return { name, dtype, shape, bytes: () => bytes };
    } catch (error) {
      throw typedNativeError(error);
    }
  }

  #memoryFor(name: string, bytes: number): NativeHostMemory {
    const kept = this.#memory.get(name);
    if (kept?.buffer.byteLength === bytes) return kept;
    const made = new addon.HostMemory(bytes);
    this.#memory.set(name, made);
    return made;
  }
}
