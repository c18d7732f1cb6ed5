import { z } from "zod";

// The kinds of options that schemas are made of. A schema is the only list of its options. Help,
// command line flags, checks, types and documentation derive from it.

/** Descriptions of an option that a schema holds in addition to its checks. */
export interface OptionMeta extends OptionNotes {
  description: string;
  /** Allowed values as an error describes them, e.g. `an integer from 1 to 64`. */
  expects: string;
}

export interface OptionNotes {
  /**
   * Description of a default that is not a constant, because other options or the machine decide
   * it.
   */
  standard?: string | undefined;
  /** Name of the option's value on a command line, e.g. `n` for `--workers <n>`. */
  value?: string | undefined;
}

export function integer(min: number, max: number, description: string, notes: OptionNotes = {}) {
  const expects = `an integer from ${min} to ${max}`;
  return z
    .int()
    .min(min)
    .max(max)
    .meta({ description, expects, value: "n", ...notes });
}

/** An integer, or the word `auto` for a number that the program decides. */
export function integerOrAuto(
  min: number,
  max: number,
  description: string,
  notes: OptionNotes = {},
) {
  const expects = `auto, or an integer from ${min} to ${max}`;
  return z
    .union([z.literal("auto"), z.int().min(min).max(max)])
    .meta({ description, expects, value: "n", ...notes });
}

export function real(min: number, max: number, description: string, notes: OptionNotes = {}) {
  const expects = `a number from ${min} to ${max}`;
  return z
    .number()
    .min(min)
    .max(max)
    .meta({ description, expects, value: "x", ...notes });
}

export function positive(max: number, description: string, notes: OptionNotes = {}) {
  const expects = `a number above 0, at most ${max}`;
  return z
    .number()
    .gt(0)
    .max(max)
    .meta({ description, expects, value: "x", ...notes });
}

/** A share or a rate from 0 to 1, including 0 but not 1. */
export function belowOne(description: string, notes: OptionNotes = {}) {
  const expects = "a number from 0 to below 1";
  return z
    .number()
    .min(0)
    .lt(1)
    .meta({ description, expects, value: "x", ...notes });
}

export function choice<const T extends readonly [string, ...string[]]>(
  values: T,
  description: string,
  notes: OptionNotes = {},
) {
  const expects = `one of ${values.join(", ")}`;
  return z.enum(values).meta({ description, expects, value: "name", ...notes });
}

export function text(
  pattern: RegExp,
  expects: string,
  description: string,
  notes: OptionNotes = {},
) {
  return z
    .string()
    .regex(pattern)
    .meta({ description, expects, value: "text", ...notes });
}

export function path(description: string, notes: OptionNotes = {}) {
  return text(/^[^\0]+$/, "a path", description, { value: "path", ...notes });
}

export function flag(description: string) {
  return z.boolean().meta({ description, expects: "true or false" });
}

/** A list of non-empty texts. @param pattern what each of them has to match */
export function texts(
  expects: string,
  description: string,
  notes: OptionNotes = {},
  pattern = /[\s\S]/,
) {
  return z
    .array(text(pattern, "text that is not empty", description))
    .readonly()
    .meta({ description, expects, value: "text", ...notes });
}

/**
 * Schema of a section with these options. A declaration that names this type, instead of leaving it
 * to inference, keeps the options' doc comments for users of the package.
 */
export type OptionsSchema<T extends z.ZodRawShape> = z.ZodObject<T, z.core.$strict>;

export function section<T extends z.ZodRawShape>(description: string, shape: T) {
  return z.strictObject(shape).meta({ description, expects: "a section with options of its own" });
}

/** The schema without its optional, nullable, default and readonly wrappers. */
export function unwrap(schema: z.ZodType): z.ZodType {
  let inner = schema;
  while (
    inner instanceof z.ZodOptional ||
    inner instanceof z.ZodNullable ||
    inner instanceof z.ZodDefault ||
    inner instanceof z.ZodPrefault ||
    inner instanceof z.ZodReadonly
  ) {
    inner = inner.unwrap() as z.ZodType;
  }
  return inner;
}

/** Descriptions of an option, from the outermost wrapper that has any. */
export function metaOf(schema: z.ZodType): OptionMeta {
  let inner: z.ZodType | undefined = schema;
  for (;;) {
    const meta = inner.meta() as OptionMeta | undefined;
    if (meta !== undefined) return meta;
    if (inner === unwrap(inner)) throw new Error("an option of a schema without description");
    inner = (inner as z.ZodOptional<z.ZodType>).unwrap();
  }
}

/** The default in the schema itself; undefined if there is none or other options decide it. */
export function defaultOf(schema: z.ZodType): unknown {
  return schema instanceof z.ZodDefault ? schema.def.defaultValue : undefined;
}

/** The default in words; undefined if there is none. */
export function defaultText(schema: z.ZodType): string | undefined {
  const value = defaultOf(schema);
  if (value === undefined) return metaOf(schema).standard;
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Whether the option must be given. */
export function isRequired(schema: z.ZodType): boolean {
  return !schema.safeParse(undefined).success;
}
