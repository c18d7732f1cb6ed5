// biome-ignore-all lint/style/noNonNullAssertion: every index here is in range by construction
/**
 * Float64 tensors in plain JavaScript, the reference of every kernel. They are slow and obvious and
 * follow NumPy's rules. They use nothing of the library, so a mistake of the library cannot hide
 * here.
 */

export type Shape = readonly number[];

/** Row-major values; a scalar has shape []. */
export interface Reference {
  readonly shape: Shape;
  readonly data: Float64Array;
}

export type FloatDType = "f32" | "bf16";

/** Allowed ||out - ref|| / ||ref||. */
export const tolerances = {
  f32: { forward: 1e-5, gradient: 1e-5 },
  bf16: { forward: 1e-2, gradient: 2e-2 },
} as const;

export const sizeOf = (shape: Shape): number => shape.reduce((product, size) => product * size, 1);

/** Makes a tensor from values in row-major order, or from a function of the flat index. */
export function reference(
  shape: Shape,
  values: ArrayLike<number> | ((index: number) => number),
): Reference {
  const data = new Float64Array(sizeOf(shape));
  if (typeof values !== "function" && values.length !== data.length) {
    throw new Error(`shape [${shape}] holds ${data.length} values, got ${values.length}`);
  }
  const valueAt = typeof values === "function" ? values : (index: number) => values[index]!;
  for (let i = 0; i < data.length; ++i) data[i] = valueAt(i);
  return { shape: [...shape], data };
}

// ---- random numbers and rounding

/** Reproducible uniform numbers in [0, 1) from a seed (mulberry32). */
export function uniformSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const word = new DataView(new ArrayBuffer(4));

/** Rounds to bf16, to nearest even, as the library does. */
export function roundToBf16(value: number): number {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  if (Number.isNaN(value)) return value;
  word.setUint32(0, ((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000) >>> 0);
  return word.getFloat32(0);
}

/** The values of a tensor of this dtype made from x. */
export function rounded(x: Reference, dtype: FloatDType): Reference {
  return map(x, dtype === "bf16" ? (v) => roundToBf16(Math.fround(v)) : Math.fround);
}

/**
 * Uniform in [low, high), rounded to the dtype, so that tensor and reference hold equal numbers.
 */
export function random(
  shape: Shape,
  seed: number,
  { low = -1, high = 1, dtype = "f32" }: { low?: number; high?: number; dtype?: FloatDType } = {},
): Reference {
  const uniform = uniformSource(seed);
  return rounded(
    reference(shape, () => low + (high - low) * uniform()),
    dtype,
  );
}

/** Integers in [low, high). */
export function randomIntegers(shape: Shape, seed: number, low: number, high: number): Reference {
  const uniform = uniformSource(seed);
  return reference(shape, () => low + Math.floor((high - low) * uniform()));
}

// ---- indexing and broadcasting

/** Row-major strides in elements. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= shape[axis]!;
  }
  return strides;
}

/** The coordinates of a flat index. */
export function coordinates(index: number, shape: Shape): number[] {
  const result = new Array<number>(shape.length);
  for (let axis = shape.length - 1; axis >= 0; --axis) {
    result[axis] = index % shape[axis]!;
    index = Math.floor(index / shape[axis]!);
  }
  return result;
}

/** The value at coordinates; axes of size 1 repeat, missing leading axes too (broadcasting). */
export function at(x: Reference, position: readonly number[]): number {
  const strides = stridesOf(x.shape);
  const lead = position.length - x.shape.length;
  let index = 0;
  for (let axis = 0; axis < x.shape.length; ++axis) {
    if (x.shape[axis] !== 1) index += position[lead + axis]! * strides[axis]!;
  }
  return x.data[index]!;
}

/** The common shape of two shapes by NumPy's rule, or null. */
export function broadcastShape(a: Shape, b: Shape): number[] | null {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let axis = 0; axis < rank; ++axis) {
    const sizeA = a[axis - (rank - a.length)] ?? 1;
    const sizeB = b[axis - (rank - b.length)] ?? 1;
    if (sizeA !== sizeB && sizeA !== 1 && sizeB !== 1) return null;
    shape.push(sizeA === 1 ? sizeB : sizeA);
  }
  return shape;
}

// ---- operations

export function map(x: Reference, f: (value: number) => number): Reference {
  return { shape: x.shape, data: x.data.map((value) => f(value)) };
}

/** f over two tensors with broadcasting. */
export function zip(a: Reference, b: Reference, f: (a: number, b: number) => number): Reference {
  const shape = broadcastShape(a.shape, b.shape);
  if (!shape) throw new Error(`[${a.shape}] and [${b.shape}] do not broadcast`);
  return build(shape, (position) => f(at(a, position), at(b, position)));
}

/** Makes a tensor from a function of the coordinates. */
export function build(shape: Shape, f: (position: number[]) => number): Reference {
  return reference(shape, (index) => f(coordinates(index, shape)));
}

export const reshape = (x: Reference, shape: Shape): Reference => reference(shape, x.data);

export function permute(x: Reference, permutation: readonly number[]): Reference {
  const shape = permutation.map((axis) => x.shape[axis]!);
  return build(shape, (position) => {
    const source = new Array<number>(shape.length);
    permutation.forEach((axis, k) => {
      source[axis] = position[k]!;
    });
    return at(x, source);
  });
}

/** f over the values along the axes (all if not given), in row-major order. */
export function reduce(
  x: Reference,
  f: (values: number[]) => number,
  axes: readonly number[] = x.shape.map((_, axis) => axis),
  keepDims = false,
): Reference {
  const reduced = new Set(axes.map((axis) => (axis < 0 ? axis + x.shape.length : axis)));
  const kept = x.shape.map((size, axis) => (reduced.has(axis) ? 1 : size));
  const strides = stridesOf(kept);
  const groups = Array.from({ length: sizeOf(kept) }, (): number[] => []);
  x.data.forEach((value, index) => {
    const position = coordinates(index, x.shape);
    let group = 0;
    position.forEach((p, axis) => {
      if (!reduced.has(axis)) group += p * strides[axis]!;
    });
    groups[group]!.push(value);
  });
  const shape = keepDims ? kept : x.shape.filter((_, axis) => !reduced.has(axis));
  return reference(shape, groups.map(f));
}

export const total = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; ++i) sum += values[i]!;
  return sum;
};

/** Product over the last two axes; leading axes broadcast. */
export function matmul(a: Reference, b: Reference): Reference {
  const [rows, inner] = a.shape.slice(-2) as [number, number];
  const columns = b.shape.at(-1)!;
  const batch = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2))!;
  return build([...batch, rows, columns], (position) => {
    const lead = position.slice(0, -2);
    const [row, column] = position.slice(-2) as [number, number];
    let sum = 0;
    for (let k = 0; k < inner; ++k) sum += at(a, [...lead, row, k]) * at(b, [...lead, k, column]);
    return sum;
  });
}

/** exp(x - max) / sum over one axis. */
export function softmax(x: Reference, axis = -1): Reference {
  const highest = reduce(x, (values) => Math.max(...values), [axis], true);
  const e = zip(x, highest, (value, max) => Math.exp(value - max));
  return zip(e, reduce(e, total, [axis], true), (value, sum) => value / sum);
}

// ---- comparison

/**
 * ||out - ref|| / ||ref||. The error is NaN if either side holds NaN, so that no comparison passes.
 * Equal infinities agree, and a reference of zeros allows only zeros.
 */
export function relativeError(out: ArrayLike<number>, ref: ArrayLike<number>): number {
  if (out.length !== ref.length) {
    throw new Error(`${out.length} values compared with ${ref.length}`);
  }
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < out.length; ++i) {
    const [a, b] = [out[i]!, ref[i]!];
    if (!Number.isFinite(b) && a === b) continue;
    difference += (a - b) ** 2;
    norm += b ** 2;
  }
  if (difference === 0) return 0;
  return Math.sqrt(difference) / Math.sqrt(norm);
}

/** The part of a library tensor that comparisons need. */
export interface TensorLike {
  readonly shape: Shape;
  readonly dtype: string;
  toArray(): Promise<ArrayLike<number>>;
}

/**
 * Fails unless the tensor has the reference's shape and its values within the tolerance (by dtype,
 * forward).
 */
export async function expectClose(
  actual: TensorLike,
  expected: Reference,
  tolerance?: number,
  label = "tensor",
) {
  const allowed = tolerance ?? tolerances[actual.dtype as FloatDType]?.forward ?? 0;
  if (
    actual.shape.length !== expected.shape.length ||
    actual.shape.some((n, i) => n !== expected.shape[i])
  ) {
    throw new Error(`${label}: expected shape [${expected.shape}], got [${actual.shape}]`);
  }
  const values = await actual.toArray();
  const error = relativeError(values, expected.data);
  if (error <= allowed) return; // false for NaN
  let worst = 0;
  const distance = (i: number) => Math.abs(values[i]! - expected.data[i]!);
  for (let i = 0; i < values.length; ++i) {
    if (Number.isNaN(distance(i)) || distance(i) > distance(worst)) worst = i;
    if (Number.isNaN(distance(worst))) break;
  }
  const where = coordinates(worst, expected.shape);
  throw new Error(
    `${label}: relative error ${error} > ${allowed}; at [${where}] expected ${expected.data[worst]}, got ${values[worst]}`,
  );
}

// ---- derivatives

/**
 * Central differences in float64: for each input the gradient of sum(fn(inputs) * weights). Costs
 * two evaluations for each element.
 */
export function finiteDifferences(
  fn: (...inputs: Reference[]) => Reference,
  inputs: readonly Reference[],
  weights: Reference,
  eps = 1e-5,
): Reference[] {
  const project = (changed: Reference[]): number => {
    const y = fn(...changed);
    let sum = 0;
    for (let i = 0; i < y.data.length; ++i) sum += y.data[i]! * weights.data[i]!;
    return sum;
  };
  return inputs.map((input, which) => {
    const data = input.data.slice();
    const changed = inputs.map((x, i) => (i === which ? { shape: x.shape, data } : x));
    return reference(input.shape, (i) => {
      const value = data[i]!;
      data[i] = value + eps;
      const above = project(changed);
      data[i] = value - eps;
      const below = project(changed);
      data[i] = value;
      return (above - below) / (2 * eps);
    });
  });
}
