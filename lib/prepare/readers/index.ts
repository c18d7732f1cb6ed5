// Formats that a preparation can read. To add one, write a reader of its records in this folder,
// let find.ts assign the format to its files, and let documents.ts choose the reader.

export { parseFilter } from "./filter.js";
export { findInput, formatOf, textExtensions } from "./find.js";
export type { Input, InputKind } from "./input.js";
