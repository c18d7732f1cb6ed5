import type { z } from "zod";
import { jsonText } from "./check-values.js";
import { ArgumentError, type ConfigProblem } from "./errors.js";
import { isRequired, metaOf } from "./option-kinds.js";
import { optionPathName, pathName } from "./option-names.js";
import { leaves, nearest, optionsOf, type Path, schemaAt, valueAt } from "./option-tree.js";

// Problems with options, described in our own words instead of zod's: the allowed values and the
// received value.

/** A problem of one option: it is unknown, missing, or has a wrong value. */
export interface OptionProblem {
  path: Path;
  kind: "unknown" | "missing" | "wrong";
  /** Allowed values; empty for an unknown option. */
  expects: string;
  /** Received value, in words. */
  got: string;
  /** A suggestion such as `; did you mean peakLr?`, or an empty text. */
  hint: string;
}

/**
 * All problems with the options of a section, one entry each.
 * @param parsed the result for `input`, if it has already been parsed
 */
export function problemsOf(
  schema: z.ZodType,
  input: unknown,
  parsed = schema.safeParse(input),
): OptionProblem[] {
  if (parsed.success) return [];
  return parsed.error.issues.flatMap((issue) => problemsOfIssue(schema, issue, input));
}

function problemsOfIssue(
  schema: z.ZodType,
  issue: z.core.$ZodIssue,
  input: unknown,
): OptionProblem[] {
  let path = issue.path as Path;
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({
      path: [...path, key],
      kind: "unknown",
      expects: "",
      got: "",
      hint: suggestKey(schema, path, key),
    }));
  }
  // Where a name is wrong, its value is not.
  if (issue.code === "invalid_key") path = path.slice(0, -1);
  // A value without options of its own is wrong as a whole, even if the issue lies inside it.
  while (schemaAt(schema, path) === undefined) path = path.slice(0, -1);
  const option = schemaAt(schema, path) as z.ZodType;
  const value = valueAt(input, path);
  if (value === undefined && optionsOf(option) !== undefined) {
    const required = [...leaves(option, path)].filter(([, leaf]) => isRequired(leaf));
    return required.map(([leafPath, leaf]) => missing(leafPath, metaOf(leaf).expects));
  }
  const { expects } = metaOf(option);
  if (value === undefined) return [missing(path, expects)];
  return [{ path, kind: "wrong", expects, got: show(value), hint: suggestChoice(expects, value) }];
}

function missing(path: Path, expects: string): OptionProblem {
  return { path, kind: "missing", expects, got: "undefined", hint: "" };
}

/** Describes a problem as a configuration's error lists it. */
export function inWords({ path, kind, expects, got, hint }: OptionProblem): ConfigProblem {
  const messages = {
    unknown: `unknown option${hint}`,
    missing: `missing: expected ${expects}${hint}`,
    wrong: `expected ${expects}, got ${got}${hint}`,
  };
  return { path: pathName(path) || "(all)", message: messages[kind] };
}

/**
 * Checks the options of a call and fills in their defaults.
 * @throws ArgumentError naming the first unknown, missing or wrong option
 */
export function checkOptionsBy<S extends z.ZodType>(
  op: string,
  schema: S,
  options: unknown,
): z.output<S> {
  const parsed = schema.safeParse(options);
  if (parsed.success) return parsed.data;
  const [{ path, kind, expects, got, hint }] = problemsOf(schema, options, parsed) as [
    OptionProblem,
  ];
  const name = path.length === 0 ? "options" : optionPathName(path);
  const message =
    kind === "unknown"
      ? `unknown option ${name}${hint}`
      : `expected ${path.length === 0 ? "an object" : expects} for ${name} but received ${got}${hint}`;
  throw new ArgumentError(`[${op}] ${message}`);
}

/** A value as shortened JSON. Objects without JSON are shown by the names of their classes. */
function show(value: unknown): string {
  if (typeof value === "number") return String(value);
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    const { prototype } = Object;
    const kind = prototype.toString.call(value).slice(8, -1);
    if (kind !== "Object") return kind;
  }
  const json = jsonText(value);
  return json.length > 80 ? `${json.slice(0, 77)}...` : json;
}

/**
 * A suggestion such as `; did you mean optimizer.peakLr?`, from options of the same section or,
 * failing that, of all sections.
 */
export function suggestKey(schema: z.ZodType, parent: Path, key: string): string {
  const siblings = optionsOf(schemaAt(schema, parent) ?? schema) ?? {};
  const sibling = nearest(key, Object.keys(siblings));
  if (sibling !== undefined) return `; did you mean ${pathName([...parent, sibling])}?`;
  const everywhere = new Map([...leaves(schema)].map(([path]) => [String(path.at(-1)), path]));
  const elsewhere = everywhere.get(nearest(key, everywhere.keys()) ?? "");
  if (elsewhere !== undefined) return `; did you mean ${pathName(elsewhere)}?`;
  return ` (allowed here: ${Object.keys(siblings).join(", ")})`;
}

function suggestChoice(expects: string, value: unknown): string {
  if (!expects.startsWith("one of ") || typeof value !== "string") return "";
  const close = nearest(value, expects.slice("one of ".length).split(", "));
  return close === undefined ? "" : `; did you mean ${close}?`;
}
