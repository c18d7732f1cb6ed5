import {
  checkArray,
  checkChoice,
  checkInteger,
  checkNumber,
  checkObject,
  checkShapeArgument,
} from "../core/check.js";
import { ArgumentError, AutogradError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";

/** Initial values of a parameter: normal around 0, or one value. */
export type Initialisation =
  | { readonly kind: "normal"; readonly std: number }
  | { readonly kind: "constant"; readonly value: number };

function checkInitialisation(init: unknown): asserts init is Initialisation {
  const op = "Parameter";
  checkObject(op, "init", init, 'an initialisation, such as { kind: "normal", std: 0.02 }');
  const { kind, std, value } = init as { kind?: unknown; std?: unknown; value?: unknown };
  checkChoice(op, "init.kind", kind, ["normal", "constant"]);
  if (kind === "normal") checkNumber(op, "init.std", std, { min: 0 });
  else checkNumber(op, "init.value", value);
}

function checkMatrices(shape: readonly number[], matrices: readonly number[]): void {
  const op = "Parameter";
  checkArray(op, "matrices", matrices);
  for (const rows of matrices) checkInteger(op, "rows of a matrix", rows, { min: 1 });
  const rows = matrices.reduce((sum, count) => sum + count, 0);
  if (shape.length === 2 && rows === shape[0]) return;
  throw new ArgumentError(
    `[${op}] expected matrices with the ${shape[0]} rows of the shape [${shape}] but received [${matrices}]`,
  );
}

/**
 * A trainable tensor of a module. It is created with a shape and an initialisation. A
 * ParameterStore later places it in a flat group, and `tensor` is a view of the group's memory.
 */
export class Parameter {
  readonly shape: readonly number[];
  readonly init: Initialisation;
  /** Number of elements. */
  readonly size: number;
  /**
   * Rows of each matrix that the parameter holds, one below the other (packed q, k and v are three);
   * null for a parameter that is no matrix of a layer: a norm, a bias, an embedding. Muon makes the
   * updates of such matrices orthogonal, each by itself.
   */
  readonly matrices: readonly number[] | null;
  #tensor: Tensor | null = null;
  #master: Tensor | "divided" | null = null;
  #trainable = true;
  #needed: (() => void) | null = null;

  /**
   * @param matrices rows of the matrices that it holds. Default: null
   * @throws ArgumentError if the matrices do not have all of the shape's rows
   */
  constructor(
    shape: readonly number[],
    init: Initialisation,
    matrices: readonly number[] | null = null,
  ) {
    this.shape = checkShapeArgument("Parameter", "shape", shape);
    checkInitialisation(init);
    this.init = init;
    this.size = this.shape.reduce((product, extent) => product * extent, 1);
    if (matrices !== null) checkMatrices(this.shape, matrices);
    this.matrices = matrices;
  }

  /**
   * The weights that the model computes with. @throws AutogradError before the module has been
   * placed on a device
   */
  get tensor(): Tensor {
    if (!this.#tensor) {
      throw new AutogradError(
        `[Parameter] a parameter of shape [${this.shape}] has no memory yet: make a store for the whole module, ` +
          "new ParameterStore(module, { device }). If there is one, it has not found this parameter: it sees those that " +
          "are properties of a Module, not those in arrays or #private fields",
      );
    }
    this.#needed?.();
    return this.#tensor;
  }

  /**
   * The tensor of the weights, for uses that do not read them: no gather is started for it.
   * @internal
   */
  get leaf(): Tensor {
    return this.#tensor ?? this.tensor;
  }

  /**
   * The f32 weights that the optimizer updates: `tensor` itself, or the master copy of bf16
   * weights.
   * @throws AutogradError if they are divided between processes
   */
  get master(): Tensor {
    if (this.#master === "divided") {
      throw new AutogradError(
        "[Parameter] the f32 weights are divided between the processes of this run: read them from a checkpoint",
      );
    }
    return this.#master ?? this.tensor;
  }

  get placed(): boolean {
    return this.#tensor !== null;
  }

  /** Whether `backward()` computes its gradient and the optimizer updates it. */
  get trainable(): boolean {
    return this.#trainable;
  }

  set trainable(value: boolean) {
    this.#trainable = value;
    if (this.#tensor) this.#tensor.requiresGrad = value;
  }

  /**
   * Gives the parameter its memory. The store calls it.
   * @param needed called before each use of the weights
   * @internal
   */
  place(
    tensor: Tensor,
    master: Tensor | "divided" | null,
    needed: (() => void) | null = null,
  ): void {
    this.#tensor = tensor;
    this.#master = master;
    this.#needed = needed;
    tensor.requiresGrad = this.#trainable;
  }
}
