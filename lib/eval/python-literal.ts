import { DataError } from "../core/errors.js";

/** A value of Python's literals: text, number, `None`, truth value, list, dictionary. */
export type PythonValue =
  | string
  | number
  | boolean
  | null
  | PythonValue[]
  | { [key: string]: PythonValue };

/** `repr(value)`. A number is an integer if it has no fraction. */
export function pythonRepr(value: PythonValue): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) return `[${value.map(pythonRepr).join(", ")}]`;
  const entries = Object.entries(value).map(
    ([key, inner]) => `${quoted(key)}: ${pythonRepr(inner)}`,
  );
  return `{${entries.join(", ")}}`;
}

const shortEscapes: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\'"]|[\p{C}\p{Z}]/gu, (char) => {
    if (char === " ") return char;
    if (char === "\\" || char === quote) return `\\${char}`;
    if (char === "'" || char === '"') return char;
    return shortEscapes[char] ?? numericEscape(char.codePointAt(0) as number);
  });
  return quote + escaped + quote;
}

function numericEscape(code: number): string {
  const hex = code.toString(16);
  if (code < 0x100) return `\\x${hex.padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
}

/**
 * `ast.literal_eval(text)` for lists, tuples, dictionaries, texts, numbers and constants. Tuples
 * become lists.
 * @throws DataError with the position of the first character that does not fit
 */
export function parsePythonLiteral(text: string): PythonValue {
  return new LiteralParser(text).parse();
}

const constants: Readonly<Record<string, PythonValue>> = { None: null, True: true, False: false };

const escapes: Readonly<Record<string, string>> = {
  n: "\n",
  r: "\r",
  t: "\t",
  a: "\x07",
  b: "\b",
  f: "\f",
  v: "\v",
  "0": "\0",
  "\n": "",
};

const hexDigits: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 };

class LiteralParser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  parse(): PythonValue {
    const value = this.#value();
    this.#skipSpace();
    if (this.#at < this.#text.length) this.#fail("the end");
    return value;
  }

  #value(): PythonValue {
    this.#skipSpace();
    const char = this.#text[this.#at] ?? "";
    if (char === "[") return this.#list("]");
    if (char === "(") return this.#list(")");
    if (char === "{") return this.#dictionary();
    if (char === "'" || char === '"') return this.#texts();
    const [word] = this.#match(/[+-]?[\w.]+(?:(?<=[eE])[+-]?\d+)?/y) ?? this.#fail("a value");
    const constant = constants[word];
    if (constant !== undefined) return constant;
    const number = Number(word.replaceAll("_", ""));
    if (!Number.isFinite(number) || word.startsWith(".")) this.#fail("a number", word.length);
    return number;
  }

  #list(end: string): PythonValue[] {
    const values: PythonValue[] = [];
    this.#at++;
    for (;;) {
      if (this.#take(end)) return values;
      values.push(this.#value());
      if (!this.#take(",") && !this.#peek(end)) this.#fail(`, or ${end}`);
    }
  }

  #dictionary(): PythonValue {
    const entries: [string, PythonValue][] = [];
    this.#at++;
    for (;;) {
      if (this.#take("}")) return Object.fromEntries(entries);
      const key = this.#value();
      if (!this.#take(":")) this.#fail(":");
      entries.push([String(key), this.#value()]);
      if (!this.#take(",") && !this.#peek("}")) this.#fail(", or }");
    }
  }

  /** A text, or several in a row, which Python joins. */
  #texts(): string {
    let text = "";
    for (;;) {
      this.#skipSpace();
      const quote = this.#text[this.#at];
      if (quote !== "'" && quote !== '"') return text;
      this.#at++;
      text += this.#untilQuote(quote);
    }
  }

  #untilQuote(quote: string): string {
    let text = "";
    for (;;) {
      const char = this.#text[this.#at++];
      if (char === quote) return text;
      if (char === undefined || char === "\n") this.#fail(`a closing ${quote}`, 1);
      text += char === "\\" ? this.#escape() : char;
    }
  }

  #escape(): string {
    const char = this.#text[this.#at++] ?? this.#fail("an escape", 1);
    const digits = hexDigits[char];
    if (digits === undefined) return escapes[char] ?? (/[\\'"]/.test(char) ? char : `\\${char}`);
    const hex = this.#text.slice(this.#at, this.#at + digits);
    if (!/^[0-9a-f]+$/i.test(hex) || hex.length < digits) this.#fail(`${digits} hex digits`);
    this.#at += digits;
    return String.fromCodePoint(Number.parseInt(hex, 16));
  }

  #skipSpace(): void {
    this.#match(/[ \t\r\n\f]*/y);
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match) this.#at += match[0].length;
    return match;
  }

  #peek(char: string): boolean {
    this.#skipSpace();
    return this.#text[this.#at] === char;
  }

  #take(char: string): boolean {
    const found = this.#peek(char);
    if (found) this.#at++;
    return found;
  }

  #fail(expected: string, back = 0): never {
    const at = Math.max(0, this.#at - back);
    const got = this.#text.slice(at, at + 20);
    throw new DataError(
      `expected ${expected} at character ${at + 1} of the Python value, got ${JSON.stringify(got)}`,
    );
  }
}
