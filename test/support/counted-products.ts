/** Counts the products of the operations that are enqueued. */
import { native } from "../../lib/core/native.js";
import { Tensor } from "../../lib/core/tensor.js";

/** Operations of products with weights, and of attention. */
export interface CountedProducts {
  linear: number;
  attention: number;
}

type Call = (...args: unknown[]) => unknown;

/**
 * Runs a function and counts the products that it enqueues. An attention counts the tokens that
 * each token sees, half of itself among them, and its backward pass as two forward passes.
 */
export async function countProducts(run: () => Promise<unknown>): Promise<CountedProducts> {
  const shapes = new WeakMap<object, readonly number[]>();
  const own = Object.getOwnPropertyDescriptor(Tensor.prototype, "native") as PropertyDescriptor;
  Object.defineProperty(Tensor.prototype, "native", {
    ...own,
    get(this: Tensor) {
      const found = (own.get as () => object).call(this);
      shapes.set(found, this.shape);
      return found;
    },
  });
  const shapeOf = (tensor: unknown): readonly number[] => shapes.get(tensor as object) ?? [];
  const sizeOf = (tensor: unknown): number =>
    shapeOf(tensor).reduce((all, extent) => all * extent, 1);
  let linear = 0;
  const mixed: Promise<number>[] = [];
  const gemm = (a: unknown, b: unknown, c: unknown, turned: unknown): void => {
    const inner = shapeOf(a).at(turned ? -2 : -1) as number;
    linear += 2 * sizeOf(c) * (turned ? sizeOf(a) / (shapeOf(a).at(-1) as number) : inner);
    if (shapeOf(b).length === 0) throw new Error("a product without a shape");
  };
  const fp8Gemm: Call = (a, _scale, _b, _other, c) => {
    linear += 2 * sizeOf(c) * (shapeOf(a).at(-1) as number);
  };
  /** @param width of all heads of q together */
  const mix = (of: unknown, firstKey: unknown, width: number, times: number): void => {
    const [batch, time] = shapeOf(of) as [number, number];
    const starts = firstKey ? (firstKey as { read(): Promise<ArrayBuffer> }).read() : null;
    const count = async (): Promise<number> => {
      const first = starts && new Int32Array(await starts);
      let seen = 0;
      for (let place = 0; place < batch * time; place++) {
        seen += (place % time) + 0.5 - (first ? (first[place] as number) : 0);
      }
      return 4 * width * seen * times;
    };
    mixed.push(count());
  };
  const widthOf = (o: unknown): number => shapeOf(o).at(-1) as number;
  const counters: Record<string, Call> = {
    gemm,
    gemmAccumulate: gemm,
    fp8Gemm,
    fp8GemmAccumulate: fp8Gemm,
    attentionForward: (qkv, firstKey, o) => mix(qkv, firstKey, widthOf(o), 1),
    attentionBackward: (_dO, qkv, o, _statistics, firstKey) => mix(qkv, firstKey, widthOf(o), 2),
    linearCrossEntropy: (x, weight, ...others) => {
      const [dx, dWeight] = [others[5], others[6]];
      const products = 1 + (dx ? 1 : 0) + (dWeight ? 1 : 0);
      linear += 2 * sizeOf(x) * (shapeOf(weight)[0] as number) * products;
    },
  };
  const table = native as unknown as Record<string, Call>;
  const originals = { ...table };
  for (const [name, counter] of Object.entries(counters)) {
    table[name] = (...args) => {
      counter(...args);
      return (originals[name] as Call)(...args);
    };
  }
  try {
    await run();
  } finally {
    Object.assign(table, originals);
    Object.defineProperty(Tensor.prototype, "native", own);
  }
  const attention = (await Promise.all(mixed)).reduce((sum, each) => sum + each, 0);
  return { linear, attention };
}
