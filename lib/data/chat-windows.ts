import { DataError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";
import { indexEntryBytes } from "./dataset-file.js";
import { packChats } from "./pack-chats.js";
import { type FilePool, readBytes } from "./token-file.js";

/** A shard of chats. */
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
}

/**
 * Windows of whole chats. A window holds T+1 ids: chats one after the other, then padding. A chat
 * that is longer is cut at its end.
 */
export class ChatWindows {
  /** Number of windows. */
  readonly windows: number;
  readonly chats: number;
  /** Number of chats that are longer than a window, and how many of their tokens are cut off. */
  readonly cut: { chats: number; tokens: number };
  /** Share of the windows' ids that is no padding. */
  readonly filled: number;
  readonly #shards: readonly ChatShard[];
  /** Of each chat: its shard, first token in it, and length in a window. */
  readonly #shardOf: Uint16Array | Uint32Array;
  readonly #starts: Float64Array;
  readonly #lengths: Uint32Array;
  readonly #packed: ReturnType<typeof packChats>;

  private constructor(shards: readonly ChatShard[], starts: readonly Float64Array[], size: number) {
    this.#shards = shards;
    this.chats = shards.reduce((sum, { documents }) => sum + documents, 0);
    this.#shardOf = new (shards.length > 65536 ? Uint32Array : Uint16Array)(this.chats);
    this.#starts = new Float64Array(this.chats);
    this.#lengths = new Uint32Array(this.chats);
    this.cut = { chats: 0, tokens: 0 };
    let chat = 0;
    let used = 0;
    for (const [shard, places] of starts.entries()) {
      for (let at = 0; at + 1 < places.length; at++, chat++) {
        const length = (places[at + 1] as number) - (places[at] as number);
        if (length > size) {
          this.cut.chats++;
          this.cut.tokens += length - size;
        }
        this.#shardOf[chat] = shard;
        this.#starts[chat] = places[at] as number;
        this.#lengths[chat] = Math.min(length, size);
        used += Math.min(length, size);
      }
    }
    this.#packed = packChats(this.#lengths, size);
    this.windows = this.#packed.starts.length - 1;
    this.filled = used / (this.windows * size);
  }

  /**
   * Reads where the chats of all shards begin, and packs them.
   * @param size ids of a window: T+1
   * @throws DataError naming an index that cannot be read
   */
  static async open(shards: readonly ChatShard[], size: number): Promise<ChatWindows> {
    const starts: Float64Array[] = [];
    for (const shard of shards) starts.push(await readStarts(shard));
    return new ChatWindows(shards, starts, size);
  }

  /** The chats of a window, in their order. */
  chatsOf(window: number): PlacedChat[] {
    const { order, starts } = this.#packed;
    return Array.from(order.subarray(starts[window], starts[window + 1]), (chat) => ({
      shard: this.#shardOf[chat] as number,
      start: this.#starts[chat] as number,
      length: this.#lengths[chat] as number,
    }));
  }

  /** Reads the mask of a chat: a byte for each of its tokens, 1 if the loss counts it. */
  async readMask({ shard, start }: PlacedChat, into: Uint8Array, pool: FilePool): Promise<void> {
    const { mask } = this.#shards[shard] as ChatShard;
    await readBytes(pool, mask, start, into);
    const wrong = into.findIndex((byte) => byte > 1);
    if (wrong < 0) return;
    throw new DataError(`[data] ${mask}: byte ${start + wrong} is ${into[wrong]}, expected 0 or 1`);
  }
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
