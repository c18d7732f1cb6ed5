import { z } from "zod";
import { unwrap } from "./option-kinds.js";

// Schemas of options as trees: sections with options, mappings and lists.

/** Path of an option. Its parts are keys of sections, paths of data sets, and indices in lists. */
export type Path = readonly (string | number)[];

/** The options of a section by name; undefined for anything else. */
export function optionsOf(schema: z.ZodType): Readonly<Record<string, z.ZodType>> | undefined {
  const inner = unwrap(schema);
  return inner instanceof z.ZodObject ? inner.shape : undefined;
}

/**
 * The schema one level down: an option of a section, a value of a mapping, or an entry of a list.
 */
export function child(schema: z.ZodType, key: string | number): z.ZodType | undefined {
  const inner = unwrap(schema);
  if (inner instanceof z.ZodRecord) return inner.valueType as z.ZodType;
  if (inner instanceof z.ZodArray) return inner.element as z.ZodType;
  const options = optionsOf(inner);
  return options !== undefined && Object.hasOwn(options, key) ? options[key] : undefined;
}

export function schemaAt(root: z.ZodType, path: Path): z.ZodType | undefined {
  let schema: z.ZodType | undefined = root;
  for (const key of path) schema = schema && child(schema, key);
  return schema;
}

export function valueAt(root: unknown, path: Path): unknown {
  let value = root;
  for (const key of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<string | number, unknown>)[key];
  }
  return value;
}

/** Yields every option below a section, depth first, with its path. Sections are left out. */
export function* leaves(schema: z.ZodType, path: Path = []): Generator<[Path, z.ZodType]> {
  const options = optionsOf(schema);
  if (options === undefined) {
    yield [path, schema];
    return;
  }
  for (const [key, option] of Object.entries(options)) yield* leaves(option, [...path, key]);
}

/**
 * Orders the options of all sections as in the schema, so that equal configurations give equal
 * text.
 */
export function inSchemaOrder(schema: z.ZodType, value: unknown): unknown {
  const options = optionsOf(schema);
  if (options === undefined || value === undefined) return value;
  const ordered = Object.entries(options).map(([key, option]) => {
    return [key, inSchemaOrder(option, valueAt(value, [key]))] as const;
  });
  return Object.fromEntries(ordered.filter(([, inner]) => inner !== undefined));
}

/**
 * The candidate most similar to a word, if any is similar: `micro_batch` finds `microBatch`,
 * `warmpSteps` finds `warmupSteps`, and `lr` is contained in `peakLr`.
 */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  const simple = simplify(word);
  if (simple === "") return undefined;
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(simple.length / 3)) + 1;
  let containing: string | undefined;
  for (const candidate of candidates) {
    const distance = editDistance(simple, simplify(candidate));
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
    if (simple.length > 1 && simplify(candidate).includes(simple)) containing ??= candidate;
  }
  return best ?? containing;
}

function simplify(word: string): string {
  return word.slice(0, 100).toLowerCase().replace(/[_-]/g, "");
}

/**
 * Edit distance: insertions, deletions, substitutions and swaps of neighbours that turn a into b.
 */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, beforeLast[j - 2]! + 1);
      }
      row.push(cost);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length]!;
}
