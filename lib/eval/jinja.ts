import * as jinja from "@huggingface/jinja";
import { DataError } from "../core/errors.js";
import { type PythonValue, pythonRepr } from "./python-literal.js";
import { capitalize, strip, stripEnd, stripStart } from "./python-text.js";
import type { Row } from "./task.js";

// Jinja templates as Python's Jinja renders them for lm-evaluation-harness: undefined names are
// errors, no line break is trimmed, values print as in Python. Only values printed inside of
// `{% if %}`, `{% for %}` and macros print as `@huggingface/jinja` prints them; texts and integers
// are the same there.

/** A value while a template is rendered. */
interface RuntimeValue {
  type: string;
  value: unknown;
  /** Methods and attributes. */
  builtins: ReadonlyMap<string, RuntimeValue>;
}

/** A part of a parsed template. */
interface TemplateNode {
  type: string;
}

/** The variables of a template. */
interface Variables {
  set(name: string, value: unknown): RuntimeValue;
}

// The package's own types import each other without extensions, which Node's resolution does not
// find.
const { Environment, Interpreter, parse, tokenize } = jinja as unknown as {
  Environment: new () => Variables;
  Interpreter: new (
    variables: Variables,
  ) => {
    evaluate(node: TemplateNode | undefined, variables: Variables): RuntimeValue;
  };
  parse(tokens: unknown): { body: TemplateNode[] };
  tokenize(source: string): unknown;
};

const statements = new Set([
  "Set",
  "If",
  "For",
  "Macro",
  "CallStatement",
  "FilterStatement",
  "Comment",
]);

/** A parsed template. */
export class RowTemplate {
  readonly #source: string;
  readonly #nodes: readonly TemplateNode[];

  /** @throws DataError for a template that does not parse */
  constructor(source: string) {
    this.#source = source;
    try {
      const lines = source.replace(/\r\n?/g, "\n");
      // The parser drops one line break at the end.
      this.#nodes = parse(tokenize(lines.endsWith("\n") ? `${lines}\n` : lines)).body;
    } catch (cause) {
      throw new DataError(
        `expected a Jinja template, got ${shown(source)}: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  /**
   * Renders the template with the columns of a row as its variables.
   * @throws DataError for an undefined variable, and for what the template cannot do with the row
   */
  render(row: Row): string {
    const environment = new Environment();
    for (const [name, value] of constants) environment.set(name, value);
    environment.set("range", range);
    for (const [name, value] of Object.entries(row)) environment.set(name, plain(value));
    const interpreter = new PythonInterpreter(environment);
    try {
      return this.#nodes
        .map((node) => {
          const value = interpreter.evaluate(node, environment);
          return statements.has(node.type) ? statementText(value) : printed(value);
        })
        .join("");
    } catch (cause) {
      const { message } = cause as Error;
      throw new DataError(`template ${shown(this.#source)}: ${message}`, { cause });
    }
  }
}

/** The beginning of a template, for messages. */
function shown(source: string): string {
  return JSON.stringify(source.length <= 200 ? source : `${source.slice(0, 200)}…`);
}

/** Most expressions that a template may evaluate for a row, and entries of lists that these have. */
const maxSteps = 100_000;
/** Longest text that a template may make. A text that doubles in each step soon ends the process. */
const maxLength = 2 ** 24;

const constants = [
  ["true", true],
  ["false", false],
  ["none", null],
  ["True", true],
  ["False", false],
  ["None", null],
] as const;

function range(...bounds: number[]): number[] {
  const [first = 0, second, step = 1] = bounds;
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= maxSteps)) throw new DataError(`expected a range of at most ${maxSteps} numbers`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

/** Nodes that have a value of their own, and may find none. */
const lookups = new Set(["Identifier", "MemberExpression", "SelectExpression"]);

class PythonInterpreter extends Interpreter {
  /** Depth of expressions that may ask for something undefined. */
  #tolerant = 0;
  readonly #known = new WeakSet<object>();
  #steps = 0;

  override evaluate(node: TemplateNode | undefined, environment: Variables): RuntimeValue {
    const tolerates = mayAskUndefined(node);
    if (tolerates) this.#tolerant++;
    let value: RuntimeValue;
    try {
      value = super.evaluate(node, environment);
    } finally {
      if (tolerates) this.#tolerant--;
    }
    this.#steps += value.type === "ArrayValue" ? 1 + (value.value as unknown[]).length : 1;
    if (this.#steps > maxSteps) throw new DataError(`it takes more than ${maxSteps} steps`);
    if (value.type === "StringValue" && (value.value as string).length > maxLength) {
      throw new DataError(`it makes a text of more than ${maxLength} characters`);
    }
    if (value.type === "UndefinedValue" && this.#tolerant === 0 && lookups.has(node?.type ?? "")) {
      throw new DataError(`${nameOf(node)} is undefined`);
    }
    if (!this.#known.has(value)) {
      this.#known.add(value);
      addMethods(value);
    }
    return value;
  }
}

/** Whether a node is a test for definedness, or gives a default. */
function mayAskUndefined(node: TemplateNode | undefined): boolean {
  const { type, test, filter } = (node ?? {}) as {
    type?: string;
    test?: { value?: string };
    filter?: { value?: string; callee?: { value?: string } };
  };
  if (type === "TestExpression") return test?.value === "defined" || test?.value === "undefined";
  const name = filter?.value ?? filter?.callee?.value;
  return type === "FilterExpression" && name === "default";
}

function nameOf(node: unknown): string {
  const { value, object, property } = node as {
    value?: string;
    object?: unknown;
    property?: unknown;
  };
  if (object !== undefined) return `${nameOf(object)}.${nameOf(property)}`;
  return typeof value === "string" || typeof value === "number" ? String(value) : "an expression";
}

/** Gives texts and lists those methods of Python's that the library lacks, or has otherwise. */
function addMethods(value: RuntimeValue): void {
  const methods =
    value.type === "StringValue"
      ? textMethods(value.value as string)
      : value.type === "ArrayValue"
        ? listMethods(value.value as RuntimeValue[])
        : {};
  const scratch = new Environment();
  for (const [name, method] of Object.entries(methods)) {
    (value.builtins as Map<string, RuntimeValue>).set(name, scratch.set(name, method));
  }
}

function textMethods(text: string): Record<string, (...values: string[]) => unknown> {
  return {
    strip: (chars) => (chars ? trimmed(trimmed(text, chars, "start"), chars, "end") : strip(text)),
    lstrip: (chars) => (chars ? trimmed(text, chars, "start") : stripStart(text)),
    rstrip: (chars) => (chars ? trimmed(text, chars, "end") : stripEnd(text)),
    capitalize: () => capitalize(text),
    find: (part = "") => codePoints(text, text.indexOf(part)),
    index: (part = "") => found(codePoints(text, text.indexOf(part)), part),
  };
}

function listMethods(values: readonly RuntimeValue[]): Record<string, (value: unknown) => number> {
  return {
    index: (wanted) =>
      found(
        values.findIndex(({ value }) => value === wanted),
        wanted,
      ),
    count: (wanted) => values.filter(({ value }) => value === wanted).length,
  };
}

function found(index: number, wanted: unknown): number {
  if (index >= 0) return index;
  throw new DataError(`${JSON.stringify(wanted)} is not in the list or text`);
}

/** An index of UTF-16 units as one of characters. */
function codePoints(text: string, index: number): number {
  return index <= 0 ? index : [...text.slice(0, index)].length;
}

function trimmed(text: string, chars: string, side: "start" | "end"): string {
  const all = [...text];
  const isKept = (char: string): boolean => !chars.includes(char);
  if (side === "end") return all.slice(0, all.findLastIndex(isKept) + 1).join("");
  const first = all.findIndex(isKept);
  return first < 0 ? "" : all.slice(first).join("");
}

function statementText(value: RuntimeValue): string {
  return value.type === "StringValue" ? (value.value as string) : "";
}

/** A value as Python's `str` writes it. */
function printed(value: RuntimeValue): string {
  if (value.type === "StringValue") return value.value as string;
  if (value.type === "FloatValue") return value.toString();
  return pythonRepr(pythonValue(value));
}

function pythonValue(value: RuntimeValue): PythonValue {
  switch (value.type) {
    case "StringValue":
    case "IntegerValue":
    case "FloatValue":
    case "BooleanValue":
      return value.value as string | number | boolean;
    case "NullValue":
      return null;
    case "ArrayValue":
      return (value.value as RuntimeValue[]).map(pythonValue);
    case "ObjectValue": {
      const entries = [...(value.value as Map<string, RuntimeValue>)];
      return Object.fromEntries(entries.map(([key, inner]) => [key, pythonValue(inner)]));
    }
    default:
      throw new DataError(`expected a value to print, got ${value.type}`);
  }
}

/** Integers of 64 bits as numbers; the library knows no others. */
function plain(value: unknown): unknown {
  return typeof value === "bigint" ? Number(value) : value;
}
