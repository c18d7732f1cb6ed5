import { writeDurably } from "../checkpoint/durable.js";
import { blockTypes, bytesOf, type GgufType } from "./gguf-blocks.js";

/** A value of a GGUF file's metadata. */
export type GgufValue =
  | { type: "u32" | "i32" | "f32"; value: number }
  | { type: "bool"; value: boolean }
  | { type: "string"; value: string }
  | { type: "strings"; value: readonly string[] }
  | { type: "f32s" | "i32s"; value: readonly number[] };

/** A tensor of a GGUF file. */
export interface GgufTensor {
  name: string;
  /** Rows first, as in the Hugging Face files. */
  shape: readonly number[];
  type: GgufType;
  /** Called at the tensor's turn. */
  bytes: () => Promise<Uint8Array>;
}

const alignment = 32;
const typeIds = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;

/**
 * Writes a GGUF file of version 3, little-endian, one tensor in memory at a time.
 * @see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
export async function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): Promise<void> {
  const header = new Bytes();
  header.text("GGUF");
  header.u32(3);
  header.u64(tensors.length);
  header.u64(metadata.size);
  for (const [name, value] of metadata) {
    header.string(name);
    header.value(value);
  }
  let offset = 0;
  for (const { name, shape, type } of tensors) {
    header.string(name);
    header.u32(shape.length);
    for (const extent of [...shape].reverse()) header.u64(extent);
    header.u32(blockTypes[type].id);
    header.u64(offset);
    offset = aligned(offset + sizeOf({ shape, type }));
  }
  await writeDurably(path, async (write) => {
    const head = header.finish();
    await write(head);
    await write(new Uint8Array(aligned(head.length) - head.length));
    for (const tensor of tensors) {
      const bytes = await tensor.bytes();
      const expected = sizeOf(tensor);
      if (bytes.length !== expected) {
        throw new Error(`[export] ${tensor.name}: ${bytes.length} bytes, expected ${expected}`);
      }
      await write(bytes);
      await write(new Uint8Array(aligned(expected) - expected));
    }
  });
}

function sizeOf({ shape, type }: Pick<GgufTensor, "shape" | "type">): number {
  return bytesOf(
    type,
    shape.reduce((product, extent) => product * extent, 1),
  );
}

const aligned = (bytes: number): number => Math.ceil(bytes / alignment) * alignment;

/** A growing piece of a file. */
class Bytes {
  #buffer = Buffer.alloc(2 ** 16);
  #length = 0;

  text(text: string): void {
    const bytes = Buffer.from(text, "utf8");
    this.#room(bytes.length);
    bytes.copy(this.#buffer, this.#length);
    this.#length += bytes.length;
  }

  u32(value: number): void {
    this.#room(4);
    this.#length = this.#buffer.writeUInt32LE(value, this.#length);
  }

  u64(value: number): void {
    this.#room(8);
    this.#length = this.#buffer.writeBigUInt64LE(BigInt(value), this.#length);
  }

  string(text: string): void {
    this.u64(Buffer.byteLength(text));
    this.text(text);
  }

  value(given: GgufValue): void {
    switch (given.type) {
      case "strings":
        this.#array(typeIds.string, given.value, (text) => this.string(text));
        return;
      case "f32s":
        this.#array(typeIds.f32, given.value, (value) => this.#f32(value));
        return;
      case "i32s":
        this.#array(typeIds.i32, given.value, (value) => this.#i32(value));
        return;
      default:
        this.u32(typeIds[given.type]);
        this.#scalar(given);
    }
  }

  finish(): Uint8Array {
    return this.#buffer.subarray(0, this.#length);
  }

  #scalar(given: Exclude<GgufValue, { type: "strings" | "f32s" | "i32s" }>): void {
    if (given.type === "string") this.string(given.value);
    else if (given.type === "bool") {
      this.#room(1);
      this.#length = this.#buffer.writeUInt8(given.value ? 1 : 0, this.#length);
    } else if (given.type === "u32") this.u32(given.value);
    else if (given.type === "i32") this.#i32(given.value);
    else this.#f32(given.value);
  }

  #array<T>(type: number, values: readonly T[], write: (value: T) => void): void {
    this.u32(typeIds.array);
    this.u32(type);
    this.u64(values.length);
    for (const value of values) write(value);
  }

  #i32(value: number): void {
    this.#room(4);
    this.#length = this.#buffer.writeInt32LE(value, this.#length);
  }

  #f32(value: number): void {
    this.#room(4);
    this.#length = this.#buffer.writeFloatLE(value, this.#length);
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#buffer.length) return;
    const grown = Buffer.alloc(2 * (this.#length + bytes));
    this.#buffer.copy(grown, 0, 0, this.#length);
    this.#buffer = grown;
  }
}
