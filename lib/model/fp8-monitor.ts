import { zeros } from "../core/create.js";
import type { Device } from "../core/device.js";
import { native } from "../core/native.js";
import type { Tensor } from "../core/tensor.js";
import type { Fp8Observer, Fp8Role } from "../ops/fp8.js";

/** Figures of one tensor in fp8: csrc/ops/ops.def, fp8_statistics. */
const figuresPerTensor = 4;

/** A layer that computes in bf16 again. */
export interface Fp8Fallback {
  layer: number;
  /** The first step, counted from 0, that computes it in bf16. */
  from: number;
}

/**
 * Figures of a model's tensors in fp8, by the place of the tensor and then by layer; null for a tensor
 * that the pass did not make.
 */
export interface Fp8Figures {
  /** Largest finite number of each layer's tensor, as fp8 holds it. */
  largest: Record<string, (number | null)[]>;
  /** Shares of elements that fp8 holds as 0, 0 to 1. */
  zeros: Record<string, (number | null)[]>;
  /** Shares of elements at the format's largest number, or not finite. */
  saturated: Record<string, (number | null)[]>;
  /** Layers that compute in bf16, and have no figures. Absent if there are none. */
  bf16Layers?: number[];
}

/**
 * A share of elements at the largest number that no scale from the largest number explains, except
 * for tensors of equal numbers.
 */
const mostSaturated = 0.01;

const roles = ["input", "weight", "gradient"] as const satisfies Fp8Role[];

/**
 * Watches a model's tensors in fp8 in chosen passes, and knows which layers compute in bf16 again.
 * The figures stay on the device until they are read, so watching waits for nothing.
 */
export class Fp8Monitor {
  /** `product.role` of each watched tensor, in the order of the figures. */
  readonly places: readonly string[];
  readonly layers: number;
  readonly #products: readonly string[];
  readonly #fallen = new Map<number, number>();
  #figures: Tensor | null = null;
  #step = 0;

  /** @param products names of a layer's products, in the order of the forward pass */
  constructor(layers: number, products: readonly string[]) {
    this.layers = layers;
    this.#products = products;
    this.places = products.flatMap((product) => roles.map((role) => `${product}.${role}`));
  }

  /** The layers that compute in bf16 now or soon, in order. */
  get fallbacks(): Fp8Fallback[] {
    return [...this.#fallen].map(([layer, from]) => ({ layer, from })).sort(byLayer);
  }

  /** Makes a layer compute in bf16 from a step on. */
  fallBack({ layer, from }: Fp8Fallback): void {
    if (!this.#fallen.has(layer)) this.#fallen.set(layer, from);
  }

  /** Names the step that computes next, counted from 0. */
  beginStep(step: number): void {
    this.#step = step;
  }

  /** Whether a layer's products run in fp8 in this step. */
  uses(layer: number): boolean {
    return this.#step < (this.#fallen.get(layer) ?? Number.POSITIVE_INFINITY);
  }

  /** Watches from now on. */
  start(device: Device): void {
    const { length } = this.places;
    this.#figures = zeros([this.layers, length, figuresPerTensor], { device });
  }

  /**
   * Ends watching.
   * @returns the figures (layers, places, 4), which belong to the scope of `start`
   */
  stop(): Tensor {
    const figures = this.#figures as Tensor;
    this.#figures = null;
    return figures;
  }

  /** Who looks at the tensors of a layer's product. @internal */
  observer(layer: number, product: string): Fp8Observer {
    const figures = this.#figures;
    if (figures === null) return null;
    return (role, { bits, scale }) => {
      // Backward may run after the watch has ended.
      if (this.#figures !== figures) return;
      const place = this.places.indexOf(`${product}.${role}`);
      const at = (layer * this.places.length + place) * figuresPerTensor;
      const slot = figures.view([figuresPerTensor], at);
      native.fp8Statistics(bits.native, scale.native, slot.native);
      slot.dispose();
    };
  }

  /** Sorts figures that have been read, (layers, places, 4), for a step's record. */
  describe(values: ArrayLike<number>): Fp8Figures {
    const figures: Fp8Figures = { largest: {}, zeros: {}, saturated: {} };
    const round = (x: number) => (Number.isFinite(x) ? Number(x.toPrecision(4)) : null);
    const value = (at: number): number => values[at] as number;
    // Not every pass computes each gradient. A tensor of zeros has a share of zeros.
    const isSeen = (at: number): boolean => [0, 1, 2, 3].some((figure) => value(at + figure) !== 0);
    for (const [index, place] of this.places.entries()) {
      const of = (number: (at: number) => number) =>
        Array.from({ length: this.layers }, (_, layer) => {
          const at = this.#at(layer, index);
          return this.uses(layer) && isSeen(at) ? round(number(at)) : null;
        });
      figures.largest[place] = of((at) => value(at));
      figures.zeros[place] = of((at) => value(at + 1));
      figures.saturated[place] = of((at) => value(at + 2) + value(at + 3));
    }
    const fallen = [...this.#fallen.keys()].filter((layer) => !this.uses(layer));
    return fallen.length > 0 ? { ...figures, bf16Layers: fallen.sort((a, b) => a - b) } : figures;
  }

  /**
   * The layer whose products should run in bf16, judged by the first tensor of a pass that is
   * saturated or not finite. Everything after it is not finite for its sake. A number that is not
   * finite when it enters a layer comes from the layer before it in the pass.
   * @returns null if every tensor is in order, or if the fault is none of a layer in fp8
   */
  faulty(values: ArrayLike<number>): { layer: number; place: string; why: string } | null {
    for (const { layer, place, source } of this.#order()) {
      const at = this.#at(layer, this.places.indexOf(place));
      const saturated = values[at + 2] as number;
      const broken = values[at + 3] as number;
      const finite = broken === 0 && Number.isFinite(values[at]);
      if (finite && saturated <= mostSaturated) continue;
      const blamed = finite ? layer : source;
      if (blamed < 0 || blamed >= this.layers || !this.uses(blamed)) return null;
      const why = finite
        ? `${(100 * saturated).toFixed(1)}% of ${place} of layer ${layer} are at fp8's largest number`
        : `${place} of layer ${layer} has numbers that are not finite`;
      return { layer: blamed, place, why };
    }
    return null;
  }

  #at(layer: number, place: number): number {
    return (layer * this.places.length + place) * figuresPerTensor;
  }

  /** The watched tensors in the order in which a pass makes them, each with the layer that made it. */
  *#order(): Generator<{ layer: number; place: string; source: number }> {
    const products = this.#products;
    for (let layer = 0; layer < this.layers; layer++) {
      for (const [index, product] of products.entries()) {
        yield { layer, place: `${product}.weight`, source: -1 };
        yield { layer, place: `${product}.input`, source: index === 0 ? layer - 1 : layer };
      }
    }
    for (let layer = this.layers - 1; layer >= 0; layer--) {
      for (const [index, product] of [...products].reverse().entries()) {
        yield { layer, place: `${product}.gradient`, source: index === 0 ? layer + 1 : layer };
      }
    }
  }
}

const byLayer = (a: Fp8Fallback, b: Fp8Fallback): number => a.layer - b.layer;
