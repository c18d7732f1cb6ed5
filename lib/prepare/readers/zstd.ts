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
  const { hasChecksum, window } = await frameHeader(input);
  let parts: Buffer[] = [];
  const stream = new Decompress((block) => {
    if (block.length === 0) return;
    parts.push(Buffer.from(block.buffer, block.byteOffset, block.byteLength));
    past.add(block);
  });
  stream.push(headerFor(magic, window, hasChecksum));
  const past = new Past(stream, window);
  for (let last = false; !last; ) {
    const head = await input.take(3);
    const value = head.readUIntLE(0, 3);
    last = (value & 1) === 1;
    const type = (value >> 1) & 3;
    const size = type === 1 ? 1 : value >> 3;
    if (value >> 3 > maxBlockBytes || type === 3) throw new Error("invalid zstd data: a bad block");
    const block = Buffer.concat([head, await input.take(size)]);
    past.lend();
    stream.push(block);
    past.forgetInput();
    yield* parts;
    parts = [];
  }
  if (hasChecksum) stream.push(await input.take(4));
  stream.push(new Uint8Array(0), true);
  yield* parts;
}

interface FrameHeader {
  hasChecksum: boolean;
  /** Bytes that a block may copy from, rounded up to what a window's descriptor can say. */
  window: number;
}

/** Reads the header of a frame after its magic number. */
async function frameHeader(input: ByteReader): Promise<FrameHeader> {
  const flags = (await input.take(1))[0] as number;
  if ((flags & 8) !== 0) throw new Error("invalid zstd data: a reserved bit of a frame is set");
  const isSingle = (flags & 0x20) !== 0;
  const contentField = [isSingle ? 1 : 0, 2, 4, 8][flags >> 6] as number;
  const dictionaryField = [0, 1, 2, 4][flags & 3] as number;
  const rest = await input.take((isSingle ? 0 : 1) + dictionaryField + contentField);
  const dictionary = rest.subarray(isSingle ? 0 : 1).subarray(0, dictionaryField);
  if (dictionary.some((byte) => byte !== 0)) {
    throw new Error("it needs a dictionary: compress the file again without one");
  }
  const bytes = isSingle
    ? contentSize(rest.subarray(dictionaryField))
    : windowSize(rest[0] as number);
  if (bytes > maxWindowBytes) {
    throw new Error(
      `a window of ${Math.ceil(bytes / 2 ** 20)} MiB, more than the limit of ${maxWindowBytes / 2 ** 20} MiB: ` +
        "compress the file again without --ultra and --long beyond 27",
    );
  }
  return { hasChecksum: (flags & 4) !== 0, window: windowSize(descriptorOf(bytes)) };
}

/**
 * The longest form of a frame's header, 18 bytes. fzstd collects shorter ones, and would then take
 * several blocks at once.
 */
function headerFor(magic: Buffer, window: number, hasChecksum: boolean): Buffer {
  const header = Buffer.alloc(18);
  magic.copy(header);
  header[4] = 0xc3 | (hasChecksum ? 4 : 0);
  header[5] = descriptorOf(window);
  return header;
}

/** The parts of fzstd's state that its types leave out. */
interface Internals {
  /** State of the frame: `w` holds what blocks may copy from. */
  s: { w: Uint8Array };
  /** Input that is not decompressed yet. */
  c: Uint8Array[];
}

/**
 * The text before a block, which the block may copy from. fzstd moves its whole window for each
 * block, 128 MiB for 128 KiB at worst. Here the window slides along a longer buffer, so that each
 * byte is moved a few times at most.
 */
class Past {
  readonly #stream: Internals;
  readonly #window: number;
  readonly #buffer: Uint8Array;
  #end: number;

  constructor(stream: Decompress, window: number) {
    this.#stream = stream as unknown as Internals;
    const { s: state, c: input } = this.#stream;
    if (state?.w?.length !== window || !Array.isArray(input)) {
      throw new Error("the installed version of fzstd is not one that can be used: install 0.1.1");
    }
    this.#window = window;
    const room = window <= 2 ** 20 ? window : Math.max(2 ** 20, window >> 2);
    this.#buffer = new Uint8Array(window + room);
    this.#end = window;
  }

  /** Gives fzstd the text before the next block. */
  lend(): void {
    this.#stream.s.w = this.#buffer.subarray(this.#end - this.#window, this.#end);
  }

  /** Adds a block that fzstd has just decompressed. */
  add(block: Uint8Array): void {
    if (block.length > this.#window) throw new Error("invalid zstd data: a block above its window");
    if (this.#end + block.length > this.#buffer.length) {
      this.#buffer.copyWithin(0, this.#end - this.#window, this.#end);
      this.#end = this.#window;
    }
    this.#buffer.set(block, this.#end);
    this.#end += block.length;
    // fzstd now moves what it takes for its window. Of the block itself nothing is left to move.
    this.#stream.s.w = block;
  }

  /** Drops the blocks that fzstd keeps although it has decompressed them. */
  forgetInput(): void {
    this.#stream.c = this.#stream.c.filter(({ length }) => length > 0);
  }
}

function windowSize(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

/** Descriptor of the smallest window of at least so many bytes. */
function descriptorOf(bytes: number): number {
  let descriptor = 0;
  while (windowSize(descriptor) < bytes) descriptor++;
  return descriptor;
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
