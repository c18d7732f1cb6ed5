/** Types of numbers in GGUF files, and the conversion of float32 into them. */

export const ggufTypes = ["f32", "f16", "bf16", "q8_0", "q4_0"] as const;
export type GgufType = (typeof ggufTypes)[number];

interface BlockType {
  /** Number of the type in a file. */
  id: number;
  /** Number that tells a file's main type. */
  fileType: number;
  /** Numbers of a block, and the bytes that they take. */
  size: number;
  bytes: number;
  /** Converts one block. */
  write(values: Float32Array, from: number, into: DataView, at: number): void;
}

export const blockTypes: Record<GgufType, BlockType> = {
  f32: {
    id: 0,
    fileType: 0,
    size: 1,
    bytes: 4,
    write: (values, from, into, at) => into.setFloat32(at, values[from] as number, true),
  },
  f16: {
    id: 1,
    fileType: 1,
    size: 1,
    bytes: 2,
    write: (values, from, into, at) => into.setUint16(at, toF16(values[from] as number), true),
  },
  bf16: {
    id: 30,
    fileType: 32,
    size: 1,
    bytes: 2,
    write: (values, from, into, at) => into.setUint16(at, toBf16(values[from] as number), true),
  },
  q8_0: { id: 8, fileType: 7, size: 32, bytes: 34, write: writeQ8 },
  q4_0: { id: 2, fileType: 2, size: 32, bytes: 18, write: writeQ4 },
};

/** Bytes of `count` numbers, which are whole blocks. */
export function bytesOf(type: GgufType, count: number): number {
  const { size, bytes } = blockTypes[type];
  return (count / size) * bytes;
}

/** Converts whole blocks of numbers. */
export function toBlocks(type: GgufType, values: Float32Array): Uint8Array {
  const { size, bytes, write } = blockTypes[type];
  const result = new Uint8Array(bytesOf(type, values.length));
  const view = new DataView(result.buffer);
  for (let block = 0; block * size < values.length; block++) {
    write(values, block * size, view, block * bytes);
  }
  return result;
}

/** 32 numbers as int8 with one scale: ggml's reference, every operation in float32. */
function writeQ8(values: Float32Array, from: number, into: DataView, at: number): void {
  let largest = 0;
  for (let i = 0; i < 32; i++) largest = Math.max(largest, Math.abs(values[from + i] as number));
  const scale = Math.fround(largest / 127);
  const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
  into.setUint16(at, toF16(scale), true);
  for (let i = 0; i < 32; i++) {
    const scaled = Math.fround((values[from + i] as number) * inverse);
    // Halves are rounded away from zero, as C's roundf does.
    const size = Math.abs(scaled);
    const rounded = Math.floor(size) + Math.floor(2 * (size - Math.floor(size)));
    into.setInt8(at + 2 + i, scaled < 0 ? -rounded : rounded);
  }
}

/**
 * 32 numbers as 4 bits with one scale, so that the one of largest size becomes -8. Byte i holds
 * numbers i and i + 16.
 */
function writeQ4(values: Float32Array, from: number, into: DataView, at: number): void {
  let extreme = 0;
  for (let i = 0; i < 32; i++) {
    const value = values[from + i] as number;
    if (Math.abs(value) > Math.abs(extreme)) extreme = value;
  }
  const scale = Math.fround(extreme / -8);
  const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
  const level = (i: number): number => {
    const scaled = Math.fround((values[from + i] as number) * inverse);
    return Math.min(15, Math.trunc(Math.fround(scaled + 8.5)));
  };
  into.setUint16(at, toF16(scale), true);
  for (let i = 0; i < 16; i++) into.setUint8(at + 2 + i, level(i) | (level(i + 16) << 4));
}

const bits = new DataView(new ArrayBuffer(4));

function bitsOf(value: number): number {
  bits.setFloat32(0, value);
  return bits.getUint32(0);
}

/** The bits of a float32 as bfloat16, rounded to the nearest, ties to even. */
export function toBf16(value: number): number {
  const word = bitsOf(value);
  if (Number.isNaN(value)) return (word >>> 16) | 0x40;
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The bits of a float32 as float16, rounded to the nearest, ties to even. */
export function toF16(value: number): number {
  const word = bitsOf(value);
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  // 65520 is the first number that rounds to infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below 2^-14 the steps are 2^-24 wide. The sum puts the number's units into the lowest bits.
    const steps = bitsOf(Math.fround(Math.abs(Math.fround(value)) + 0.5)) - bitsOf(0.5);
    return sign | steps;
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}
