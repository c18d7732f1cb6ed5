/** Chats by windows: those of window w are `order[starts[w]]` up to `order[starts[w + 1] - 1]`. */
export interface PackedChats {
  order: Uint32Array;
  starts: Uint32Array;
}

/**
 * Packs chats into windows: the longest first, each into the fullest window that has room for it
 * (best-fit decreasing). Equal lengths give equal windows.
 * @param lengths tokens of each chat, from 1 to `size`
 * @param size    tokens of a window
 */
export function packChats(lengths: Uint32Array, size: number): PackedChats {
  const byLength = Uint32Array.from(lengths, (_, chat) => chat);
  byLength.sort((a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b);
  const rooms = new Rooms(size);
  const windowOf = new Uint32Array(lengths.length);
  let windows = 0;
  for (const chat of byLength) {
    const length = lengths[chat] as number;
    const { window, room } = rooms.take(length) ?? { window: windows++, room: size };
    windowOf[chat] = window;
    if (room > length) rooms.add(window, room - length);
  }
  const starts = new Uint32Array(windows + 1);
  for (const window of windowOf) starts[window + 1] = (starts[window + 1] as number) + 1;
  for (let at = 1; at <= windows; at++) {
    starts[at] = (starts[at] as number) + (starts[at - 1] as number);
  }
  const next = starts.slice();
  const order = new Uint32Array(lengths.length);
  // Within a window, chats keep the order of the data set.
  for (const [chat, window] of windowOf.entries()) {
    const at = next[window] as number;
    order[at] = chat;
    next[window] = at + 1;
  }
  return { order, starts };
}

/**
 * Windows by their room. A binary tree over all sizes tells the smallest room that is large enough
 * without a search through empty ones.
 */
class Rooms {
  readonly #windows: number[][];
  /** Number of windows under each node; node 1 is the root, the leaves are the sizes. */
  readonly #counts: Uint32Array;
  readonly #leaves: number;

  constructor(size: number) {
    this.#leaves = 2 ** Math.ceil(Math.log2(size + 1));
    this.#windows = Array.from({ length: size + 1 }, () => []);
    this.#counts = new Uint32Array(2 * this.#leaves);
  }

  add(window: number, room: number): void {
    (this.#windows[room] as number[]).push(window);
    this.#count(room, 1);
  }

  /** Takes out a window with the smallest room of at least `length`; null if there is none. */
  take(length: number): { window: number; room: number } | null {
    const room = this.#smallest(length);
    if (room === null) return null;
    this.#count(room, -1);
    return { window: (this.#windows[room] as number[]).pop() as number, room };
  }

  #count(room: number, change: number): void {
    for (let node = this.#leaves + room; node >= 1; node = Math.floor(node / 2)) {
      this.#counts[node] = (this.#counts[node] as number) + change;
    }
  }

  #smallest(length: number): number | null {
    let node = this.#leaves + length;
    // Up to the first subtree on the right that is not empty.
    while ((this.#counts[node] as number) === 0) {
      while (node % 2 === 1) {
        if (node === 1) return null;
        node = Math.floor(node / 2);
      }
      node++;
    }
    while (node < this.#leaves) {
      node *= 2;
      if ((this.#counts[node] as number) === 0) node++;
    }
    return node - this.#leaves;
  }
}
