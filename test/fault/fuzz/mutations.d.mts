import type { Arbitrary } from "fast-check";

/** One change to a file. */
export interface Edit {
  kind: string;
  place: number;
}
export const hostile: readonly string[];
export const edits: Arbitrary<Edit[]>;
export function apply(original: Uint8Array, list: readonly Edit[]): Buffer;
