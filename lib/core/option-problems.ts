import type { z } from "zod";
import { jsonText } from "./check-values.js";
import { ArgumentError, type ConfigProblem } from "./errors.js";
import { isRequired, metaOf } from "./option-kinds.js";
import { optionPathName, pathName } from "./option-names.js";
import { leaves, nearest, optionsOf, type Path, schemaAt, valueAt } from "./option-tree.js";

// What is wrong with options, in our own words instead of zod's: what is allowed there, what came instead.

/** One finding: of an option that is unknown, missing, or has a wrong value. */
export interface OptionProblem {
  path: Path;
  kind: "unknown" | "missing" | "wrong";
  /** What is allowed; of an unknown option, nothing. */
  expects: string;
  /** What came, in words. */
  got: string;
  /** `; did you mean peakLr?`, or an empty text. */
  hint: string;
}

/**
 * All that is wrong with the options of a section, each by itself.
 * @param parsed the result for `input`, if it is there already
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
  // Within a value of a kind that has no parts of its own, the whole value is wrong.
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

/** A finding as a configuration's error lists it. */
export function inWords({ path, kind, expects, got, hint }: OptionProblem): ConfigProblem {
  const messages = {
    unknown: `unknown option${hint}`,
    missing: `missing: expected ${expects}${hint}`,
    wrong: `expected ${expects}, got ${got}${hint}`,
  };
  return { path: pathName(path) || "(all)", message: messages[kind] };
}

/**
 * The options of a call, checked, with their defaults.
 * @throws ArgumentError for the first that is unknown, missing or wrong, by its name
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

/** A value as JSON, cut short; objects that have none by the names of their classes. */
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

/** `; did you mean optimizer.peakLr?`, from the options beside it or, failing that, of all sections. */
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
