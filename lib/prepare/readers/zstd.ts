import { Decompress } from "fzstd";

/**
 * Largest window that a frame may demand, the zstd command's own limit. `zstd --long` asks for
 * exactly this much.
 */
const maxWindowBytes = 2 ** 27;
const maxBlockBytes = 2 ** 17;

const frameMagic = 0xfd2fb528;
const isSkippable = (magic: number): boolean => magic >>> 4 === 0x184d2a5;

/**
 * Decompresses a zstd file of any number of frames. Node's own decompressor exists only from 22.15
 * on, and stops at the end of a frame when the same write holds more.
 *
 * The decompressor receives one block at a time. A block yields at most 128 KiB, but four bytes may
 * stand for as much, and everything received at once is returned at once. Memory is the frame's
 * window, at most 128 MiB.
 * @throws Error for a file that is damaged or truncated, or whose window is larger
 */
export async function* unzstd(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const input = new ByteReader(source);
  for (;;) {
    const magic = await input.take(4, true);
    if (magic === null) return;
    const number = magic.readUInt32LE();
    if (isSkippable(number)) await input.skip((await input.take(4)).readUInt32LE());
    else if (number === frameMagic) yield* frame(input, magic);
    else throw new Error("invalid zstd data: no frame where one should begin");
  }
}

async function* frame(input: ByteReader, magic: Buffer): AsyncGenerator<Buffer> {
  const { bytes, hasChecksum } = await frameHeader(input);
  let parts: Buffer[] = [];
  const stream = new Decompress((data) => {
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  });
  stream.push(Buffer.concat([magic, bytes]));
  for (let last = false; !last; ) {
    const head = await input.take(3);
    const value = head.readUIntLE(0, 3);
    last = (value & 1) === 1;
    const type = (value >> 1) & 3;
    const size = type === 1 ? 1 : value >> 3;
    if (value >> 3 > maxBlockBytes || type === 3) throw new Error("invalid zstd data: a bad block");
    stream.push(Buffer.concat([head, await input.take(size)]));
    yield* parts;
    parts = [];
  }
  if (hasChecksum) stream.push(await input.take(4));
  stream.push(new Uint8Array(0), true);
  yield* parts;
}

/** Reads the header of a frame after its magic number. */
async function frameHeader(input: ByteReader): Promise<{ bytes: Buffer; hasChecksum: boolean }> {
  const descriptor = await input.take(1);
  const flags = descriptor[0] as number;
  const isSingle = (flags & 0x20) !== 0;
  const contentField = [isSingle ? 1 : 0, 2, 4, 8][flags >> 6] as number;
  const dictionaryField = [0, 1, 2, 4][flags & 3] as number;
  const rest = await input.take((isSingle ? 0 : 1) + dictionaryField + contentField);
  const window = isSingle
    ? contentSize(rest.subarray(dictionaryField))
    : windowSize(rest[0] as number);
  if (window > maxWindowBytes) {
    throw new Error(
      `a window of ${Math.ceil(window / 2 ** 20)} MiB, more than the limit of ${maxWindowBytes / 2 ** 20} MiB: ` +
        "compress the file again without --ultra and --long beyond 27",
    );
  }
  return { bytes: Buffer.concat([descriptor, rest]), hasChecksum: (flags & 4) !== 0 };
}

function windowSize(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

function contentSize(field: Buffer): number {
  if (field.length === 8) return Number(field.readBigUInt64LE());
  return field.readUIntLE(0, field.length) + (field.length === 2 ? 256 : 0);
}

/** Reads exact numbers of bytes from a stream. */
class ByteReader {
  readonly #source: AsyncIterator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  take(count: number): Promise<Buffer>;
  take(count: number, mayEnd: true): Promise<Buffer | null>;
  async take(count: number, mayEnd = false): Promise<Buffer | null> {
    const parts: Buffer[] = [];
    let missing = count;
    while (missing > 0) {
      if (this.#chunk.length === 0 && !(await this.#next())) {
        if (mayEnd && missing === count) return null;
        throw new Error("invalid zstd data: it is cut short");
      }
      const part = this.#chunk.subarray(0, missing);
      this.#chunk = this.#chunk.subarray(part.length);
      parts.push(part);
      missing -= part.length;
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  async skip(count: number): Promise<void> {
    for (let left = count; left > 0; left -= Math.min(left, 2 ** 16)) {
      await this.take(Math.min(left, 2 ** 16));
    }
  }

  async #next(): Promise<boolean> {
    const { value, done } = await this.#source.next();
    if (done) return false;
    this.#chunk = value;
    return true;
  }
}
