/** The formats of 8 bits in plain JavaScript, from their definition and without the library. */

export interface Format {
  readonly name: "f8e4m3" | "f8e5m2";
  readonly mantissa: number;
  readonly leastExponent: number;
  readonly largest: number;
}

export const e4m3: Format = { name: "f8e4m3", mantissa: 3, leastExponent: -6, largest: 448 };
export const e5m2: Format = { name: "f8e5m2", mantissa: 2, leastExponent: -14, largest: 57344 };

/** The nearest number of a format, the even one of two; beyond the largest number, that. */
export function roundToFp8(x: number, { mantissa, leastExponent, largest }: Format): number {
  if (Number.isNaN(x)) return x;
  const size = Math.abs(x);
  if (size >= largest) return Math.sign(x) * largest;
  const exponent = Math.max(leastExponent, size > 0 ? Math.floor(Math.log2(size)) : leastExponent);
  const step = 2 ** (exponent - mantissa);
  const below = Math.floor(size / step);
  const rest = size / step - below;
  const up = rest > 0.5 || (rest === 0.5 && below % 2 === 1);
  const rounded = (below + (up ? 1 : 0)) * step;
  return x < 0 || Object.is(x, -0) ? -rounded : rounded;
}

/** The scale of numbers up to `bound`: the least power of two with bound / scale <= largest. */
export function scaleOf(bound: number, { largest }: Format): number {
  if (bound === 0) return 1;
  if (!Number.isFinite(bound)) return Number.NaN;
  let scale = 2 ** Math.floor(Math.log2(bound / largest));
  while (bound / scale > largest) scale *= 2;
  return scale;
}

/** What a tensor with the largest number `bound` holds after a cast. */
export function throughFp8(x: ArrayLike<number>, bound: number, format: Format): Float64Array {
  const scale = scaleOf(bound, format);
  return Float64Array.from(x, (value) => roundToFp8(value / scale, format) * scale);
}
