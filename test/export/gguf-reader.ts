/** Reads a GGUF file by its specification alone. */
import { readFileSync } from "node:fs";

export interface ReadGguf {
  metadata: Record<string, unknown>;
  tensors: Record<string, { shape: number[]; type: number; bytes: Buffer }>;
}

const sizes: Record<number, [size: number, bytes: number]> = {
  0: [1, 4],
  1: [1, 2],
  2: [32, 18],
  8: [32, 34],
  30: [1, 2],
};

export function readGguf(path: string): ReadGguf {
  const file = readFileSync(path);
  let at = 0;
  /** The place of the next `bytes` bytes. */
  const take = (bytes: number): number => {
    at += bytes;
    return at - bytes;
  };
  const u32 = () => file.readUInt32LE(take(4));
  const u64 = () => Number(file.readBigUInt64LE(take(8)));
  const text = (): string => {
    const length = u64();
    const from = take(length);
    return file.toString("utf8", from, at);
  };
  const value = (type: number): unknown => {
    switch (type) {
      case 4:
        return u32();
      case 5:
        return file.readInt32LE(take(4));
      case 6:
        return file.readFloatLE(take(4));
      case 7:
        return file.readUInt8(take(1)) === 1;
      case 8:
        return text();
      case 9: {
        const inner = u32();
        return Array.from({ length: u64() }, () => value(inner));
      }
      default:
        throw new Error(`type ${type} at ${at}`);
    }
  };
  if (file.toString("latin1", 0, 4) !== "GGUF") throw new Error("no GGUF file");
  at = 4;
  if (u32() !== 3) throw new Error("another version");
  const [tensorCount, keyCount] = [u64(), u64()];
  const metadata: Record<string, unknown> = {};
  for (let i = 0; i < keyCount; i++) {
    const key = text();
    metadata[key] = value(u32());
  }
  const infos = Array.from({ length: tensorCount }, () => {
    const name = text();
    const shape = Array.from({ length: u32() }, u64).reverse();
    return { name, shape, type: u32(), offset: u64() };
  });
  const start = Math.ceil(at / 32) * 32;
  const tensors: ReadGguf["tensors"] = {};
  for (const { name, shape, type, offset } of infos) {
    if (offset % 32 !== 0) throw new Error(`${name} is not aligned`);
    const [size, bytes] = sizes[type] as [number, number];
    const length = (shape.reduce((product, extent) => product * extent, 1) / size) * bytes;
    const from = start + offset;
    if (from + length > file.length) throw new Error(`${name} ends behind the file`);
    tensors[name] = { shape, type, bytes: file.subarray(from, from + length) };
  }
  return { metadata, tensors };
}
