import { jsonText } from "../core/check-values.js";

/** A value as an error shows it: a text in quotes, and numbers that JSON has no form for. */
export function describeValue(value: unknown): string {
  return typeof value === "number" ? String(value) : jsonText(value);
}
