import { ArgumentError } from "../../core/errors.js";

/** A condition on the fields of a record. */
export interface Filter {
  /** The expression as it was written. */
  readonly source: string;
  /** Top-level fields of a record that the filter reads. */
  readonly fields: ReadonlySet<string>;
  matches(record: unknown): boolean;
}

type Evaluate = (record: unknown) => unknown;
type Token = { kind: "word" | "string" | "number" | "sign" | "end"; text: string; at: number };

const comparisons: Readonly<Record<string, (a: unknown, b: unknown) => boolean>> = {
  "==": equal,
  "!=": (a, b) => !equal(a, b),
  "<": (a, b) => ordered(a, b, (order) => order < 0),
  "<=": (a, b) => ordered(a, b, (order) => order <= 0),
  ">": (a, b) => ordered(a, b, (order) => order > 0),
  ">=": (a, b) => ordered(a, b, (order) => order >= 0),
};

const reserved = new Set(["and", "or", "not", "in", "contains", "true", "false", "null"]);

/** Deepest nesting allowed. Nobody writes a filter deeper than this by hand. */
const maxDepth = 100;

/**
 * Parses a condition such as
 *
 *     meta.redpajama_set_name != "RedPajamaGithub" and (stars >= 10 or lang in ["c", "rust"])
 *
 * - fields: `text`, `meta.source`, `tags[0]`, `meta["odd name"]`
 * - values: "text" or 'text' with JSON's escapes, numbers, true, false, null; lists in brackets
 *   after `in`
 * - operators: `==` `!=` `<` `<=` `>` `>=`, `in`, `not in`, `contains` (a text in a text, a value
 *   in a list)
 * - `and`, `or`, `not`, and parentheses; `not` binds tightest, `or` least
 *
 * A missing field is null. Values of different types are never equal and never ordered. Nothing in
 * a record is executed and none of its methods is called, so a filter is safe on untrusted data.
 * @throws ArgumentError with the column of the first unexpected token
 */
export function parseFilter(source: string): Filter {
  const fields = new Set<string>();
  const parser = new Parser(source, fields);
  const evaluate = parser.parse();
  return { source, fields, matches: (record) => evaluate(record) === true };
}

/** A field named on its own, such as the text field. */
export interface FieldPath {
  /** Keys from the top of a record down to the field. */
  keys: readonly string[];
  /** Reads the field from a record; null if it is missing. */
  read: (record: unknown) => unknown;
  /** Whether the field, or an object on the way to it, is present but null. */
  isNull: (record: unknown) => boolean;
}

/** @throws ArgumentError unless `source` is a path such as `text` or `meta.content` */
export function parseFieldPath(source: string): FieldPath {
  const keys = new Parser(source, new Set()).parsePath();
  return {
    keys,
    read: (record) => keys.reduce<unknown>(own, record),
    isNull: (record) => {
      let value = record;
      for (const key of keys) {
        if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) break;
        value = (value as Record<string, unknown>)[key] ?? null;
        if (value === null) return true;
      }
      return false;
    },
  };
}

class Parser {
  readonly #source: string;
  readonly #fields: Set<string>;
  readonly #tokens: Token[];
  #place = 0;
  #depth = 0;

  constructor(source: string, fields: Set<string>) {
    this.#source = source;
    this.#fields = fields;
    this.#tokens = tokenise(source);
  }

  parse(): Evaluate {
    const expression = this.#or();
    if (this.#peek.kind !== "end") this.#fail("and, or, or the end");
    return expression;
  }

  parsePath(): string[] {
    const keys = this.#keys();
    if (this.#peek.kind !== "end") this.#fail("the end of the field's name");
    return keys;
  }

  get #peek(): Token {
    return this.#tokens[this.#place] as Token;
  }

  #take(...texts: string[]): boolean {
    const { kind, text } = this.#peek;
    if ((kind !== "word" && kind !== "sign") || !texts.includes(text)) return false;
    this.#place++;
    return true;
  }

  #or(): Evaluate {
    if (++this.#depth > maxDepth) this.#fail(`at most ${maxDepth} nested parts`);
    let left = this.#and();
    while (this.#take("or", "||")) {
      const [a, b] = [left, this.#and()];
      left = (record) => a(record) === true || b(record) === true;
    }
    this.#depth--;
    return left;
  }

  #and(): Evaluate {
    let left = this.#not();
    while (this.#take("and", "&&")) {
      const [a, b] = [left, this.#not()];
      left = (record) => a(record) === true && b(record) === true;
    }
    return left;
  }

  #not(): Evaluate {
    let negated = false;
    while (this.#take("not", "!")) negated = !negated;
    const inner = this.#comparison();
    return negated ? (record) => inner(record) !== true : inner;
  }

  #comparison(): Evaluate {
    if (this.#take("(")) {
      const inner = this.#or();
      if (!this.#take(")")) this.#fail(")");
      return inner;
    }
    const left = this.#operand();
    const { text, kind } = this.#peek;
    const compare = kind === "sign" && Object.hasOwn(comparisons, text) && comparisons[text];
    if (compare) {
      this.#place++;
      const right = this.#operand();
      return (record) => compare(left(record), right(record));
    }
    if (this.#take("contains")) {
      const right = this.#operand();
      return (record) => contains(left(record), right(record));
    }
    const negated = this.#take("not");
    if (this.#take("in")) {
      const list = this.#list();
      return (record) => {
        const value = left(record);
        return list.some((item) => equal(value, item)) !== negated;
      };
    }
    if (negated) this.#fail("in");
    return left; // a boolean field on its own
  }

  #operand(): Evaluate {
    const { kind, text } = this.#peek;
    if (kind === "string" || kind === "number" || ["true", "false", "null"].includes(text)) {
      const value = this.#literal();
      return () => value;
    }
    return this.#path();
  }

  #literal(): unknown {
    const { kind, text } = this.#peek;
    if (kind !== "string" && kind !== "number" && !["true", "false", "null"].includes(text)) {
      this.#fail("a value");
    }
    this.#place++;
    return kind === "string" ? text : JSON.parse(text);
  }

  #list(): unknown[] {
    if (!this.#take("[")) this.#fail("[ and a list of values");
    const list: unknown[] = [];
    if (this.#take("]")) return list;
    do list.push(this.#literal());
    while (this.#take(","));
    if (!this.#take("]")) this.#fail(", or ]");
    return list;
  }

  #path(): Evaluate {
    const keys = this.#keys();
    this.#fields.add(keys[0] as string);
    return (record) => keys.reduce<unknown>(own, record);
  }

  #keys(): string[] {
    const { kind, text } = this.#peek;
    if (kind !== "word" || reserved.has(text)) this.#fail("a field or a value");
    this.#place++;
    const keys: string[] = [text];
    for (;;) {
      if (this.#take(".")) {
        if (this.#peek.kind !== "word") this.#fail("a field's name");
        keys.push(this.#peek.text);
        this.#place++;
      } else if (this.#take("[")) {
        const { kind: inner, text: key } = this.#peek;
        if (inner !== "string" && !(inner === "number" && /^\d+$/.test(key))) {
          this.#fail("a number or a quoted name");
        }
        this.#place++;
        keys.push(key);
        if (!this.#take("]")) this.#fail("]");
      } else return keys;
    }
  }

  #fail(expected: string): never {
    const { at, kind, text } = this.#peek;
    const got = kind === "end" ? "the end" : JSON.stringify(text);
    throw syntaxError(this.#source, at, `expected ${expected}, got ${got}`);
  }
}

function syntaxError(source: string, at: number, problem: string): ArgumentError {
  return new ArgumentError(
    `[filter] column ${at + 1}: ${problem}\n  ${source.replace(/\s/g, " ")}\n  ${" ".repeat(at)}^`,
  );
}

function tokenise(source: string): Token[] {
  const pattern =
    /\s+|(?<word>[\p{L}_$][\p{L}\p{N}_$-]*)|(?<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?<sign>==|!=|<=|>=|&&|\|\||[<>!()[\],.])/uy;
  const tokens: Token[] = [];
  while (pattern.lastIndex < source.length) {
    const at = pattern.lastIndex;
    const groups = pattern.exec(source)?.groups;
    if (groups === undefined) {
      const hint = source[at] === "=" ? "; equality is ==" : "";
      const quote = /["']/.test(source[at] as string) ? "; the text does not end" : "";
      throw syntaxError(source, at, `unexpected ${JSON.stringify(source[at])}${hint}${quote}`);
    }
    for (const kind of ["word", "number", "string", "sign"] as const) {
      const text = groups[kind];
      if (text === undefined) continue;
      tokens.push({ kind, text: kind === "string" ? unquote(text, source, at) : text, at });
    }
  }
  tokens.push({ kind: "end", text: "", at: source.length });
  return tokens;
}

function unquote(text: string, source: string, at: number): string {
  const inner = text.slice(1, -1);
  const json = text[0] === "'" ? inner.replace(/\\'/g, "'").replace(/(?<!\\)"/g, '\\"') : inner;
  try {
    return JSON.parse(`"${json}"`) as string;
  } catch {
    throw syntaxError(source, at, `${text} is no text with JSON's escapes`);
  }
}

/** Reads an own property, never an inherited one. */
function own(value: unknown, key: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return null;
  if (Array.isArray(value) && !/^\d+$/.test(key)) return null;
  return (value as Record<string, unknown>)[key] ?? null;
}

function plain(value: unknown): unknown {
  return typeof value === "bigint" ? Number(value) : value;
}

function equal(a: unknown, b: unknown): boolean {
  return plain(a ?? null) === plain(b ?? null);
}

function ordered(left: unknown, right: unknown, accept: (order: number) => boolean): boolean {
  const [a, b] = [plain(left), plain(right)];
  if (typeof a === "number" && typeof b === "number") return accept(a - b);
  if (typeof a === "string" && typeof b === "string") return accept(a < b ? -1 : a > b ? 1 : 0);
  return false;
}

function contains(whole: unknown, part: unknown): boolean {
  if (typeof whole === "string") return typeof part === "string" && whole.includes(part);
  return Array.isArray(whole) && whole.some((item) => equal(item, part));
}
