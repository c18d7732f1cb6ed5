import { jsonText } from "../core/check-values.js";
import { DataError } from "../core/errors.js";
import type { Row } from "./task.js";

// Typed access to the columns of a row. Messages name the column; `inRow` of rows.ts adds file and
// row.

/** @throws DataError if the column is no text */
export function textColumn(row: Row, name: string): string {
  const value = row[name];
  if (typeof value === "string") return value;
  throw wrongColumn(name, "a text", value);
}

/** @throws DataError if the column is no list of texts */
export function textsColumn(row: Row, name: string): readonly string[] {
  const value = row[name];
  if (isTexts(value)) return value;
  throw wrongColumn(name, "a list of texts", value);
}

/**
 * An integer, which may be written as a text ("3"). True and false are 1 and 0, as in Python.
 * @throws DataError if the column is neither
 */
export function integerColumn(row: Row, name: string): number {
  const value = row[name];
  if (Number.isSafeInteger(value)) return value as number;
  if (typeof value === "boolean") return Number(value);
  if (typeof value === "string" && /^-?\d{1,15}$/.test(value)) return Number(value);
  throw wrongColumn(name, "an integer", value);
}

/**
 * The column `choices` of ARC and OpenBookQA: the texts of the answers, and their labels.
 * @throws DataError if it is none, or if the lists differ in length
 */
export function labelledChoices(row: Row): { text: readonly string[]; label: readonly string[] } {
  const value = row.choices as { text?: unknown; label?: unknown } | null | undefined;
  const { text, label } = value ?? {};
  if (isTexts(text) && isTexts(label) && text.length === label.length) return { text, label };
  throw wrongColumn("choices", "{ text, label }, two lists of texts of one length", value);
}

/**
 * Index of the right answer among labelled choices.
 * @throws DataError if no choice has the label
 */
export function labelIndex(label: readonly string[], wanted: string): number {
  const index = label.indexOf(wanted);
  if (index >= 0) return index;
  throw wrongColumn("answerKey", `one of the labels ${label.join(", ")}`, wanted);
}

export function wrongColumn(name: string, expected: string, value: unknown): DataError {
  const text = jsonText(value);
  const got = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return new DataError(`expected ${expected} for column ${name}, got ${got}`);
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === "string");
}
