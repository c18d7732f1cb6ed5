import { AutogradError } from "../errors.js";
import type { Tensor } from "../tensor.js";

/** How a parameter starts: normal around 0, or one value. */
export type Initialisation =
  | { readonly kind: "normal"; readonly std: number }
  | { readonly kind: "constant"; readonly value: number };

/**
 * A trainable tensor of a module. It has a shape and a start; its memory comes when a ParameterStore places it in a flat
 * group, and `tensor` is a view of that.
 */
export class Parameter {
  readonly shape: readonly number[];
  readonly init: Initialisation;
  /** Number of elements. */
  readonly size: number;
  #tensor: Tensor | null = null;
  #master: Tensor | null = null;
  #trainable = true;

  constructor(shape: readonly number[], init: Initialisation) {
    this.shape = [...shape];
    this.init = init;
    this.size = shape.reduce((product, extent) => product * extent, 1);
  }

  /** The weights as the model computes with them. @throws AutogradError before the module has been placed on a device */
  get tensor(): Tensor {
    if (!this.#tensor) {
      throw new AutogradError(
        `[Parameter] a parameter of shape [${this.shape}] has no memory yet: ` +
          "create the module with `await create(module, { device })`",
      );
    }
    return this.#tensor;
  }

  /** The f32 weights that the optimizer updates: the same as `tensor`, or the copy beside bf16 weights. */
  get master(): Tensor {
    return this.#master ?? this.tensor;
  }

  get placed(): boolean {
    return this.#tensor !== null;
  }

  /** Whether `backward()` computes its gradient and the optimizer changes it. */
  get trainable(): boolean {
    return this.#trainable;
  }

  set trainable(value: boolean) {
    this.#trainable = value;
    if (this.#tensor) this.#tensor.requiresGrad = value;
  }

  /** @internal The store gives the parameter its memory. */
  place(tensor: Tensor, master: Tensor | null): void {
    this.#tensor = tensor;
    this.#master = master;
    tensor.requiresGrad = this.#trainable;
  }
}
