/** A pair that may be merged next, with its count when it entered the queue. */
export interface QueuedPair {
  pair: number;
  count: number;
  left: number;
  right: number;
  /** The words in which the pair has come to be. */
  words: ArrayLike<number>;
}

/** A binary heap: the most frequent pair first, and of equal ones the pair with the lowest ids. */
export class MergeQueue {
  readonly #heap: QueuedPair[] = [];

  push(entry: QueuedPair): void {
    const heap = this.#heap;
    let at = heap.push(entry) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(entry, heap[parent] as QueuedPair)) break;
      heap[at] = heap[parent] as QueuedPair;
      at = parent;
    }
    heap[at] = entry;
  }

  /** Removes the first entry; undefined if there is none. */
  pop(): QueuedPair | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      const sibling = heap[child + 1];
      if (sibling !== undefined && isBefore(sibling, heap[child] as QueuedPair)) child++;
      if (!isBefore(heap[child] as QueuedPair, last)) break;
      heap[at] = heap[child] as QueuedPair;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(a: QueuedPair, b: QueuedPair): boolean {
  if (a.count !== b.count) return a.count > b.count;
  return a.left !== b.left ? a.left < b.left : a.right < b.right;
}
