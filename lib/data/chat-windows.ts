import { DataError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";
import { indexEntryBytes, maskBits } from "./dataset-file.js";
import { packChats } from "./pack-chats.js";
import { type FilePool, readBytes } from "./token-file.js";

/** A shard of chats or pairs. */
export interface ChatShard {
  /** Paths of its index and of its mask. */
  index: string;
  mask: string;
  documents: number;
  tokens: number;
}

/** The place of a chat in a window. */
export interface PlacedChat {
  shard: number;
  /** First token in its shard. */
  start: number;
  /** Tokens of it that the window holds. */
  length: number;
  /** Of a pair that is longer than a window: its halves, as they are cut. */
  halves?: Halves;
}

/** The halves of a pair, which begin with the same tokens. */
export interface Halves {
  /** Tokens of the first half in its shard. */
  first: number;
  /** Tokens that a window holds of each half. */
  kept: readonly [chosen: number, rejected: number];
}

/**
 * Windows of whole chats, or of whole pairs of answers. A window holds T+1 ids: chats one after the
 * other, then padding. A chat that is longer is cut at its end, and of a pair both halves are, at
 * one length. A chat or pair of which nothing would be left of an answer is left out, so that every
 * window has a loss.
 */
export class ChatWindows {
  /** Number of windows. */
  readonly windows: number;
  readonly chats: number;
  /** Number of chats that are longer than a window, and how many of their tokens are cut off. */
  readonly cut: { chats: number; tokens: number };
  /** Number of chats or pairs that are left out. */
  readonly leftOut: number;
  /** Share of the windows' ids that is no padding. */
  readonly filled: number;
  readonly #shards: readonly ChatShard[];
  /** Of each chat in a window: its shard, first token in it, and length in a window. */
  readonly #shardOf: Uint32Array;
  readonly #starts: Float64Array;
  readonly #lengths: Uint32Array;
  readonly #halves: ReadonlyMap<number, Halves>;
  readonly #packed: ReturnType<typeof packChats>;

  private constructor(shards: readonly ChatShard[], found: readonly MeasuredChat[], size: number) {
    this.#shards = shards;
    this.chats = found.length;
    const kept = found.filter(({ length }) => length > 0);
    this.leftOut = found.length - kept.length;
    this.#shardOf = Uint32Array.from(kept, ({ shard }) => shard);
    this.#starts = Float64Array.from(kept, ({ start }) => start);
    this.#lengths = Uint32Array.from(kept, ({ length }) => length);
    this.#halves = new Map(
      kept.flatMap(({ halves }, chat): [number, Halves][] => (halves ? [[chat, halves]] : [])),
    );
    const cut = kept.filter(({ length, whole }) => length < whole);
    this.cut = {
      chats: cut.length,
      tokens: cut.reduce((sum, { length, whole }) => sum + whole - length, 0),
    };
    const used = this.#lengths.reduce((sum, length) => sum + length, 0);
    this.#packed = packChats(this.#lengths, size);
    this.windows = this.#packed.starts.length - 1;
    this.filled = used / (this.windows * size);
  }

  /**
   * Reads where the chats of all shards begin, and packs them.
   * @param size ids of a window: T+1
   * @param how  `pairs`: whether they are pairs, each of two halves; `longest`: most ids of a half
   * @throws DataError naming an index or a mask that cannot be read
   */
  static async open(
    shards: readonly ChatShard[],
    size: number,
    how: { pairs: boolean; longest: number; pool: FilePool },
  ): Promise<ChatWindows> {
    const { pairs, pool } = how;
    const longest = Math.min(how.longest, size);
    const found: MeasuredChat[] = [];
    for (const [shard, one] of shards.entries()) {
      const starts = await readStarts(one);
      for (let at = 0; at + 1 < starts.length; at++) {
        const start = starts[at] as number;
        const whole = (starts[at + 1] as number) - start;
        const chat = { shard, start, whole, length: Math.min(whole, size) };
        if (whole <= (pairs ? longest : size)) found.push(chat);
        else if (pairs) {
          const mask = await readMask(one, start, whole, pool);
          found.push({ ...chat, ...cutPair(mask, size, longest) });
        } else {
          const mask = await readMask(one, start, size, pool);
          found.push({ ...chat, length: hasAnswer(mask) ? size : 0 });
        }
      }
    }
    return new ChatWindows(shards, found, size);
  }

  /** The chats of a window, in their order. */
  chatsOf(window: number): PlacedChat[] {
    const { order, starts } = this.#packed;
    return Array.from(order.subarray(starts[window], starts[window + 1]), (chat) => {
      const halves = this.#halves.get(chat);
      return {
        shard: this.#shardOf[chat] as number,
        start: this.#starts[chat] as number,
        length: this.#lengths[chat] as number,
        ...(halves && { halves }),
      };
    });
  }

  /** Reads the mask of a chat: for each of its first tokens the bits of `maskBits`. */
  async readMask(
    { shard, start }: PlacedChat,
    length: number,
    pool: FilePool,
  ): Promise<Uint8Array> {
    return await readMask(this.#shards[shard] as ChatShard, start, length, pool);
  }
}

/** A chat, and how much of it a window holds: 0 if it is left out. */
interface MeasuredChat {
  shard: number;
  start: number;
  whole: number;
  length: number;
  halves?: Halves;
}

/** Whether any of the tokens counts. */
function hasAnswer(mask: Uint8Array): boolean {
  return mask.some((bits) => (bits & maskBits.counted) !== 0);
}

/** The first token of a pair's second half. */
export function secondHalf(mask: Uint8Array): number {
  return mask.findIndex((bits) => (bits & maskBits.rejected) !== 0);
}

/**
 * Cuts both halves of a pair at one length, so that together they fit a window. Tokens that the
 * shorter half does not need go to the longer one.
 */
function cutPair(
  mask: Uint8Array,
  size: number,
  longest: number,
): { length: number; halves?: Halves } {
  const first = secondHalf(mask);
  const lengths = [first, mask.length - first] as const;
  const shared = Math.max(Math.floor(size / 2), size - Math.min(...lengths));
  const kept = lengths.map((length) => Math.min(length, shared, longest)) as [number, number];
  if (kept[0] + kept[1] === mask.length) return { length: mask.length };
  const halves = [mask.subarray(0, kept[0]), mask.subarray(first, first + kept[1])];
  if (!halves.every(hasAnswer)) return { length: 0 };
  return { length: kept[0] + kept[1], halves: { first, kept } };
}

async function readMask(
  { mask }: ChatShard,
  start: number,
  length: number,
  pool: FilePool,
): Promise<Uint8Array> {
  const bits = new Uint8Array(length);
  await readBytes(pool, mask, start, bits);
  const wrong = bits.findIndex((byte) => byte > (maskBits.counted | maskBits.rejected));
  if (wrong < 0) return bits;
  throw new DataError(
    `[data] ${mask}: byte ${start + wrong} is ${bits[wrong]}, expected 0 to ${maskBits.counted | maskBits.rejected}`,
  );
}

async function readStarts({ index, documents, tokens }: ChatShard): Promise<Float64Array> {
  const starts = new Float64Array(documents + 1);
  let bytes: Buffer;
  try {
    const handle = await openRegular(index);
    try {
      bytes = await handle.readFile();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw new DataError(`[data] cannot read ${index}: ${(cause as Error).message}`, { cause });
  }
  for (let at = 0; at <= documents; at++) {
    const start = Number(bytes.readBigUInt64LE(at * indexEntryBytes));
    if (start > tokens || (at > 0 && start <= (starts[at - 1] as number))) {
      throw new DataError(
        `[data] ${index}: entry ${at} is token ${start}, not behind the one before`,
      );
    }
    starts[at] = start;
  }
  return starts;
}
