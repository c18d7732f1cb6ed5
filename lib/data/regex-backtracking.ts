/**
 * Finds regular expressions that may backtrack for long. The `tokenizers` package ends the process
 * when a match has been retried ten million times, and no caller can catch that.
 */

/** Sequences of one pattern, as far as backtracking is concerned. */
interface PatternPart {
  /** Exponent of the length of a text in the number of retries of a match; Infinity: exponential. */
  exponent: number;
  /** Whether it matches texts of one length alone, in one way. */
  isFixed: boolean;
  /** Whether it may fail to match. */
  mayFail: boolean;
}

/** Groups within each other; each is read twice. */
const deepest = 12;

const unboundedQuantifier = /^(?:[*+]|\{\d+,\})([?+]?)/;
const boundedQuantifier = /^(?:\?|\{\d*(?:,\d+)?\})([?+]?)/;

/**
 * Whether the number of retries of one match may grow faster than the text. Patterns that are not
 * understood count as such.
 */
export function mayBacktrackLong(pattern: string): boolean {
  const scanner = new Scanner(pattern);
  const { exponent } = scanner.alternatives(false);
  return exponent > 1 || !scanner.atEnd;
}

class Scanner {
  readonly #pattern: string;
  #at = 0;
  #depth = 0;

  constructor(pattern: string) {
    this.#pattern = pattern;
  }

  get atEnd(): boolean {
    return this.#at >= this.#pattern.length;
  }

  /** @param follows whether what comes after may fail, so that a match tries again */
  alternatives(follows: boolean): PatternPart {
    const branches: PatternPart[] = [];
    do branches.push(this.#sequence(follows));
    while (this.#take("|"));
    return {
      exponent: Math.max(...branches.map(({ exponent }) => exponent)),
      isFixed: branches.length === 1 && branches.every(({ isFixed }) => isFixed),
      mayFail: branches.every(({ mayFail }) => mayFail),
    };
  }

  #sequence(follows: boolean): PatternPart {
    const begin = this.#at;
    let items = this.#items(follows);
    // An item may only know that a later one fails once that one has been read.
    if (!follows && items.some(({ mayFail }, place) => place > 0 && mayFail)) {
      const last = items.findLastIndex(({ mayFail }) => mayFail);
      this.#at = begin;
      items = this.#items(false, last);
    }
    return {
      exponent: items.reduce((sum, { exponent }) => sum + exponent, 0),
      isFixed: items.every(({ isFixed }) => isFixed),
      mayFail: items.some(({ mayFail }) => mayFail),
    };
  }

  /** @param last place of the last item that may fail, which those before it are followed by */
  #items(follows: boolean, last = -1): PatternPart[] {
    const items: PatternPart[] = [];
    while (!this.atEnd && !this.#sees("|") && !this.#sees(")")) {
      items.push(this.#item(follows || items.length < last));
    }
    return items;
  }

  #item(follows: boolean): PatternPart {
    const begin = this.#at;
    const atom = this.#atom(follows);
    const rest = this.#pattern.slice(this.#at);
    const unbounded = unboundedQuantifier.exec(rest);
    const bounded = unbounded ? null : boundedQuantifier.exec(rest);
    const found = unbounded ?? bounded;
    if (!found) return atom;
    this.#at += found[0].length;
    const isSingle = this.#at > begin && atom.isFixed && atom.exponent === 0;
    const isOnce = bounded !== null && found[0].startsWith("?");
    const mayFail = !/^(?:[*?]|\{0?,)/.test(found[0]) && atom.mayFail;
    // Nothing is tried again within a possessive repetition.
    if (found[1] === "+" && isSingle) return { exponent: 0, isFixed: false, mayFail };
    if (isOnce) return { exponent: atom.exponent, isFixed: false, mayFail };
    if (!isSingle) return { exponent: Number.POSITIVE_INFINITY, isFixed: false, mayFail };
    const exponent = unbounded && follows ? 1 : 0;
    return { exponent, isFixed: false, mayFail };
  }

  #atom(follows: boolean): PatternPart {
    const fixed: PatternPart = { exponent: 0, isFixed: true, mayFail: true };
    if (this.#take("(")) {
      const kind = /^\?(?::|[imx-]+:|=|!|<=|<!|>|<\w+>)/.exec(this.#pattern.slice(this.#at))?.[0];
      if (kind === undefined && this.#sees("?")) return this.#unknown();
      this.#at += kind?.length ?? 0;
      const looks = kind !== undefined && /^\?(?:=|!|<=|<!)$/.test(kind);
      if (this.#depth === deepest) return this.#unknown();
      this.#depth++;
      const inner = this.alternatives(looks ? false : follows);
      this.#depth--;
      if (!this.#take(")")) return this.#unknown();
      return inner;
    }
    if (this.#sees("[")) {
      const length = classLength(this.#pattern.slice(this.#at));
      if (length === null) return this.#unknown();
      this.#at += length;
      return fixed;
    }
    if (this.#take("\\")) {
      const escaped = /^(?:[pP]\{[^}]*\}|x\{[^}]*\}|x[\da-fA-F]{2}|u[\da-fA-F]{4}|[\s\S])/u.exec(
        this.#pattern.slice(this.#at),
      )?.[0];
      // A reference to a group may be of any length; \R and \X match in several ways.
      if (escaped === undefined || /^[1-9kgRX]/.test(escaped)) return this.#unknown();
      this.#at += escaped.length;
      return fixed;
    }
    if (/^[*+?]/.test(this.#pattern.slice(this.#at))) return this.#unknown();
    this.#at += this.#pattern.codePointAt(this.#at)! > 0xffff ? 2 : 1;
    return fixed;
  }

  /** Ends the reading: nothing after it would be understood either. */
  #unknown(): PatternPart {
    this.#at = this.#pattern.length;
    return { exponent: Number.POSITIVE_INFINITY, isFixed: false, mayFail: true };
  }

  #sees(text: string): boolean {
    return this.#pattern.startsWith(text, this.#at);
  }

  #take(text: string): boolean {
    if (!this.#sees(text)) return false;
    this.#at += text.length;
    return true;
  }
}

/** Length of the class of characters that a text begins with; null without its end. */
function classLength(text: string): number | null {
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\\") at++;
    else if (character === "[") depth++;
    else if (character === "]" && !/^\[\^?$/.test(text.slice(0, at))) {
      depth--;
      if (depth === 0) return at + 1;
    }
  }
  return null;
}

/** The regular expressions in a part of a tokenizer.json. */
export function regexesIn(json: unknown): string[] {
  if (typeof json !== "object" || json === null) return [];
  return Object.entries(json).flatMap(([name, value]) =>
    name === "Regex" && typeof value === "string" ? [value] : regexesIn(value),
  );
}
