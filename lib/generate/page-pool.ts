import { checkInteger } from "../core/check-values.js";

/** The contents of a remembered page: the tokens of one page, after those of its parent. */
interface Known {
  key: string;
  /** Number that stands for the whole text up to the end of this page. */
  node: number;
}

/**
 * Divides the pages of a key/value cache among sequences, and remembers the contents of full pages
 * (a prefix cache): a sequence whose text begins with remembered pages shares them instead of
 * computing them. A page is free when no sequence holds it; free pages keep their contents until
 * they are needed, and the page that has been free longest goes first.
 */
export class PagePool {
  readonly count: number;
  /** Tokens of a page. */
  readonly size: number;
  readonly #holders: Int32Array;
  readonly #known = new Map<number, Known>();
  readonly #byKey = new Map<string, number>();
  /** Free pages, the one that has been free longest first. */
  readonly #free = new Set<number>();
  #nodes = 0;

  constructor(count: number, size: number) {
    checkInteger("PagePool", "count", count, { min: 1 });
    checkInteger("PagePool", "size", size, { min: 1 });
    this.count = count;
    this.size = size;
    this.#holders = new Int32Array(count);
    for (let page = 0; page < count; page++) this.#free.add(page);
  }

  /** Number of pages that no sequence holds. */
  get free(): number {
    return this.#free.size;
  }

  /** A page without contents for one sequence; null if every page is held. */
  take(): number | null {
    const [page] = this.#free;
    if (page === undefined) return null;
    this.#forget(page);
    this.#hold(page);
    return page;
  }

  /** The remembered pages that a text begins with, now held once more. At most `limit` pages. */
  share(tokens: readonly number[], limit: number): number[] {
    const pages: number[] = [];
    let node = 0;
    for (let i = 0; i < limit; i++) {
      const page = this.#byKey.get(this.#key(node, tokens, i));
      if (page === undefined) break;
      this.#hold(page);
      pages.push(page);
      node = (this.#known.get(page) as Known).node;
    }
    return pages;
  }

  /**
   * Remembers that `pages[index]` holds the tokens of its place in a text, whose earlier pages are
   * remembered too. Does nothing where another page with these contents is remembered.
   */
  remember(tokens: readonly number[], pages: readonly number[], index: number): void {
    const page = pages[index] as number;
    if (this.#known.has(page)) return;
    const parent = index === 0 ? 0 : this.#known.get(pages[index - 1] as number)?.node;
    // The earlier page has a twin that was remembered first, so no text leads to this page.
    if (parent === undefined) return;
    const key = this.#key(parent, tokens, index);
    if (this.#byKey.has(key)) return;
    this.#byKey.set(key, page);
    this.#known.set(page, { key, node: ++this.#nodes });
  }

  /** Gives up one hold of each page. The last pages of a text are reused before its first. */
  release(pages: readonly number[]): void {
    for (const page of pages.toReversed()) {
      const holders = --this.#holders[page]!;
      if (holders === 0) this.#free.add(page);
    }
  }

  /** Forgets the contents of all pages, for weights that have changed. */
  forgetAll(): void {
    this.#known.clear();
    this.#byKey.clear();
  }

  #hold(page: number): void {
    this.#holders[page]!++;
    this.#free.delete(page);
  }

  #forget(page: number): void {
    const known = this.#known.get(page);
    if (!known) return;
    this.#known.delete(page);
    this.#byKey.delete(known.key);
  }

  #key(node: number, tokens: readonly number[], index: number): string {
    return `${node}:${tokens.slice(index * this.size, (index + 1) * this.size).join()}`;
  }
}
