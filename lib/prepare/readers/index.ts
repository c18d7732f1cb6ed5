// What a preparation can read. A new format is a reader of its records in this folder, chosen in documents.ts by the
// format that find.ts gives to its files.

export { parseFilter } from "./filter.js";
export { findInput, formatOf, textExtensions } from "./find.js";
export type { Input, InputKind } from "./input.js";
