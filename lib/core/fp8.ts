/** The formats of 8 bits (Micikevicius et al. 2022, arXiv 2209.05433), on the host. */
import { hostArray } from "./host-array.js";

/** Both have one sign bit. e4m3 has no infinities, and e5m2 is the upper half of a float16. */
export type Fp8Format = "f8e4m3" | "f8e5m2";

/** Multiple that the widths of an fp8 product must have. */
export const fp8Multiple = 16;

export function isFp8(dtype: string): dtype is Fp8Format {
  return dtype === "f8e4m3" || dtype === "f8e5m2";
}

/** The number that 8 bits stand for. */
function numberOf(bits: number, format: Fp8Format): number {
  const mantissa = format === "f8e4m3" ? 3 : 2;
  const bias = format === "f8e4m3" ? 7 : 15;
  const size = bits & 0x7f;
  const field = size >> mantissa;
  const fraction = (size & ((1 << mantissa) - 1)) / (1 << mantissa);
  const sign = bits & 0x80 ? -1 : 1;
  if (format === "f8e4m3" && size === 0x7f) return Number.NaN;
  if (format === "f8e5m2" && field === 31) {
    return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  }
  if (field === 0) return sign * fraction * 2 ** (1 - bias);
  return sign * (1 + fraction) * 2 ** (field - bias);
}

/** Widens the bytes of an fp8 tensor, without its scale. */
export function widenFp8(bytes: ArrayBuffer, format: Fp8Format): Float32Array {
  const table = Float32Array.from({ length: 256 }, (_, bits) => numberOf(bits, format));
  const bits = new Uint8Array(bytes);
  const result = hostArray("toArray", Float32Array, bits.length);
  for (let i = 0; i < bits.length; i++) result[i] = table[bits[i] as number] as number;
  return result;
}
