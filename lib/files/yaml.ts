/**
 * Parses untrusted YAML into plain values. Every fault becomes a finding with its place, never an
 * exception.
 */
import { type Document, isScalar, LineCounter, parseDocument, type ScalarTag, visit } from "yaml";

/** One fault of a YAML text. */
export interface YamlFault {
  /** `line 3, column 5`, or `(all)`. */
  place: string;
  message: string;
}

export interface YamlText {
  /** Null for a text without content. */
  value: unknown;
  document: Document;
  lines: LineCounter;
}

/** Deepest nesting allowed. No configuration is deeper, and the parser recurses at each level. */
const maxDepth = 200;

/** How a text is read where the defaults do not fit. */
export interface YamlReading {
  /** Tags beside those of YAML itself. */
  customTags?: ScalarTag[];
  /** Version of YAML; 1.1 is PyYAML's. Default: 1.2. */
  version?: "1.1" | "1.2";
}

/** The value of a text, or all of its faults. */
export function readYaml(
  text: string,
  reading: YamlReading = {},
): YamlText | { faults: YamlFault[] } {
  const whole = (message: string) => ({ faults: [{ place: "(all)", message }] });
  const tooDeep = () => whole(`expected at most ${maxDepth} levels of nesting`);
  // The parser's time grows with the square of the depth.
  if (openLevels(text) > 5 * maxDepth) return tooDeep();
  const lines = new LineCounter();
  // The parser's own check for unique keys compares every key with every other.
  const options = { lineCounter: lines, uniqueKeys: false, prettyErrors: false } as const;
  const document = parseDocument(text, { ...options, ...reading, logLevel: "error" });
  const found = [...document.errors, ...document.warnings];
  if (found.some(({ message }) => /call stack/.test(message))) return tooDeep();
  const placeOf = (offset: number) => {
    const { line, col } = lines.linePos(offset);
    return `line ${line}, column ${col}`;
  };
  const faults = found.map(({ pos, message }) => ({ place: placeOf(pos[0]), message }));
  for (const { offset, key } of repeatedKeys(document)) {
    faults.push({
      place: placeOf(offset),
      message: `Map keys must be unique: ${JSON.stringify(key)} was there before`,
    });
  }
  if (faults.length > 0) return { faults };
  let value: unknown;
  try {
    value = document.toJS() ?? null;
  } catch (error) {
    // Aliases that would expand to gigabytes, or that refer to nothing. The library's message names
    // them.
    return whole((error as Error).message);
  }
  const depth = depthOf(value);
  if (depth === Number.POSITIVE_INFINITY)
    return whole("an alias stands within its own anchor: no value can contain itself");
  if (depth > maxDepth)
    return whole(`expected at most ${maxDepth} levels of nesting, got ${depth}`);
  return { value, document, lines };
}

/** Roughly how deep brackets and compact sequences (`- - - x`) go; those in quotes count too. */
function openLevels(text: string): number {
  let open = 0;
  let most = 0;
  for (const [mark] of text.matchAll(/[[{\]}]|^[ \t]*(?:[-?][ \t]+)+/gm)) {
    if (mark === "[" || mark === "{") most = Math.max(most, ++open);
    else if (mark === "]" || mark === "}") open = Math.max(0, open - 1);
    else most = Math.max(most, mark.replace(/[ \t]/g, "").length);
  }
  return most;
}

/** Keys that stand a second time in their mapping. */
function repeatedKeys(document: Document): { offset: number; key: unknown }[] {
  const repeated: { offset: number; key: unknown }[] = [];
  visit(document, {
    Map(_, map) {
      const seen = new Set<unknown>();
      for (const { key } of map.items) {
        if (!isScalar(key)) continue;
        if (seen.has(key.value)) repeated.push({ offset: key.range?.[0] ?? 0, key: key.value });
        seen.add(key.value);
      }
    },
  });
  return repeated;
}

/** Levels of nesting; infinity for a value that is its own part, as `&a [*a]` is. */
function depthOf(value: unknown): number {
  const known = new Map<object, number>();
  const parents = new Set<object>();
  const measure = (part: unknown): number => {
    if (typeof part !== "object" || part === null) return 0;
    if (parents.has(part)) return Number.POSITIVE_INFINITY;
    const before = known.get(part);
    if (before !== undefined) return before;
    parents.add(part);
    let depth = 1;
    for (const inner of Object.values(part)) depth = Math.max(depth, 1 + measure(inner));
    parents.delete(part);
    known.set(part, depth);
    return depth;
  };
  return measure(value);
}
