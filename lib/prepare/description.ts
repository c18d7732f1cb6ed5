import { isAbsolute, join } from "node:path";
import { z } from "zod";
import { ConfigError, UsageError } from "../core/errors.js";
import { path, section, unwrap } from "../core/option-kinds.js";
import { inWords, problemsOf } from "../core/option-problems.js";
import { readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { readYaml } from "../files/yaml.js";
import type { PrepareOptions } from "./prepare.js";
import { type Input, inputSchema, prepareSchema } from "./schema.js";

// A description says what to make, not what to discard for it.
const described = prepareSchema.omit({ startOver: true, overwrite: true }).shape;

const descriptionSchema = section("a data set", {
  root: path("folder that the inputs' paths start from").optional(),
  inputs: z.array(inputSchema).min(1).meta({
    description: "what to read, in this order",
    expects: "a list of at least one input",
  }),
  ...withoutDefaults(described),
});

/**
 * The options without their defaults. All may be left out, and then have no value, so that a
 * command line can decide them.
 */
function withoutDefaults<S extends z.ZodRawShape>(shape: S) {
  const entries = Object.entries(shape).map(([name, option]) => {
    return [name, unwrap(option as z.ZodType).optional()] as const;
  });
  return Object.fromEntries(entries) as {
    [K in keyof S]: z.ZodOptional<z.ZodType<NonNullable<z.output<S[K]>>>>;
  };
}

/**
 * Reads a recipe of `configs/data/`: the options of `prepare` in YAML.
 * @param root folder that relative input paths start from; overrides the recipe's own `root`
 * @throws ConfigError with all problems at once
 */
export async function loadPrepareConfig(
  file: string,
  root?: string,
): Promise<{ inputs: Input[]; options: Partial<PrepareOptions> }> {
  let text: string;
  try {
    text = utf8Of(await readSmallFile(file, { limit: sizeLimits.recipe }));
  } catch (cause) {
    throw new UsageError(`cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  const read = readYaml(text);
  if ("faults" in read) {
    const faults = read.faults.map(({ place, message }) => ({ path: place, message }));
    throw new ConfigError(file, faults);
  }
  const value = read.value ?? {};
  const parsed = descriptionSchema.safeParse(value);
  if (!parsed.success) {
    throw new ConfigError(file, problemsOf(descriptionSchema, value, parsed).map(inWords));
  }
  const { root: ownRoot = ".", inputs, ...options } = parsed.data;
  const base = root ?? ownRoot;
  return {
    inputs: inputs.map((input) => ({
      ...defined(input),
      path: isAbsolute(input.path) ? input.path : join(base, input.path),
    })),
    options: defined(options),
  };
}

/** Drops the options that were not given. */
function defined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]: Exclude<T[K], undefined> };
}
