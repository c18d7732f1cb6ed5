import { jsonText } from "../core/check-values.js";
import { DataError } from "../core/errors.js";
import { RowTemplate } from "./jinja.js";
import { type PythonValue, parsePythonLiteral } from "./python-literal.js";
import type { Row } from "./task.js";
import { NamedFunction } from "./yaml-file.js";
import { publishedFunction } from "./yaml-functions.js";

// The fields of a YAML task as functions of a row: a column's name, a template, a function of a
// published task or a fixed value, as the harness reads them.

/** A field that may be a column, a template, a function or a fixed value. */
export type FieldOf<T> = (row: Row) => T;

/** `doc_to_text`: a text, or the index of the right one of several prompts. */
export function textField(
  key: string,
  value: unknown,
  dataset: string,
  hasChoices: boolean,
): FieldOf<string | number> {
  if (typeof value === "number") return () => value;
  const read = textOrFunction(key, value, dataset);
  return (row) => {
    const found = read(row);
    if (typeof found === "number") return found;
    if (typeof found !== "string") throw wrongValue(key, "a text", found);
    const isColumn = typeof value === "string" && Object.hasOwn(row, value);
    return hasChoices && !isColumn && /^\d+$/.test(found) ? Number(found) : found;
  };
}

/** `doc_to_target`: a text, the index of a choice, or several texts. */
export function targetField(
  key: string,
  value: unknown,
  dataset: string,
  hasChoices: boolean,
): FieldOf<string | number | readonly unknown[]> {
  if (typeof value === "number") return () => value;
  if (Array.isArray(value)) return () => value;
  const read = textOrFunction(key, value, dataset);
  return (row) => {
    const found = read(row);
    if (typeof found === "boolean") return Number(found);
    if (typeof found === "number" || Array.isArray(found)) return found;
    if (typeof found !== "string") throw wrongValue(key, "a text or an integer", found);
    if (typeof value === "string" && Object.hasOwn(row, value)) return found;
    if (hasChoices && /^\d+$/.test(found)) return Number(found);
    return found.startsWith("[") && found.endsWith("]") && found.length > 1
      ? listOrText(found)
      : found;
  };
}

/** `doc_to_choice`: the choices as texts. */
export function choiceField(key: string, value: unknown, dataset: string): FieldOf<string[]> {
  const fixed = Array.isArray(value)
    ? value
    : typeof value === "object" && value !== null && !(value instanceof NamedFunction)
      ? Object.values(value)
      : null;
  if (fixed !== null) {
    const texts = asTexts(key, fixed);
    return () => texts;
  }
  const read = textOrFunction(key, value, dataset);
  return (row) => {
    const found = read(row);
    const isTemplate = typeof value === "string" && !Object.hasOwn(row, value);
    if (isTemplate && /^\w+$/.test(value)) {
      throw wrongValue(key, `one of the columns ${Object.keys(row).join(", ")}`, value);
    }
    return asTexts(key, isTemplate ? parsePythonLiteral(String(found)) : found);
  };
}

/** `description`: a column or a template. */
export function descriptionField(value: unknown): string | FieldOf<string> {
  if (value === undefined || value === null) return "";
  if (typeof value !== "string") throw wrongValue("description", "a text", value);
  const read = textOrFunction("description", value, "");
  const isPlain = !/\{[{%#]|^\w+$/.test(value);
  return isPlain ? value : (row) => String(read(row));
}

function textOrFunction(key: string, value: unknown, dataset: string): FieldOf<unknown> {
  if (value instanceof NamedFunction) return publishedFunction(value, dataset, key);
  if (typeof value !== "string") {
    throw wrongValue(key, "a column, a template or !function", value);
  }
  const template = new RowTemplate(value);
  return (row) => (Object.hasOwn(row, value) ? row[value] : template.render(row));
}

function asTexts(key: string, value: unknown): string[] {
  if (Array.isArray(value) && value.every((entry) => typeof entry === "string")) return value;
  throw wrongValue(key, "a list of texts", value);
}

function listOrText(text: string): string | PythonValue[] {
  try {
    return parsePythonLiteral(text) as PythonValue[];
  } catch {
    return text;
  }
}

export function wrongValue(key: string, expected: string, value: unknown): DataError {
  const text = jsonText(value);
  const got = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return new DataError(`expected ${expected} for ${key}, got ${got}`);
}
