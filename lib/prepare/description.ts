import { isAbsolute, join } from "node:path";
import { z } from "zod";
import { ConfigError, UsageError } from "../core/errors.js";
import { readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { readYaml } from "../files/yaml.js";
import type { PrepareOptions } from "./prepare.js";
import { type Input, inputKinds } from "./readers/input.js";

const path = z.string().min(1);
const bytes = z.int().min(0);

const inputSchema = z.strictObject({
  path,
  kind: z.enum(inputKinds).optional(),
  languages: z.array(z.string()).optional(),
  exclude: z.array(z.string()).optional(),
  textField: z.string().optional(),
  filter: z.string().optional(),
  minBytes: bytes.optional(),
  maxBytes: bytes.optional(),
  split: z.enum(["train", "validation", "test", "all"]).optional(),
  to: z.enum(["train", "validation"]).optional(),
});

const recipeSchema = z.strictObject({
  /** Folder that the inputs' paths start from. */
  root: path.optional(),
  inputs: z.array(inputSchema).min(1),
  out: path.optional(),
  tokenizer: path.optional(),
  validationFraction: z.number().min(0).lt(1).optional(),
  shardTokens: z.int().min(1).optional(),
  maxRunShare: z.number().min(0).max(1).optional(),
  documentStart: z.enum(["none", "bos"]).optional(),
  documentEnd: z.enum(["none", "eos"]).optional(),
  deduplicate: z.boolean().optional(),
  invalidUtf8: z.enum(["error", "replace"]).optional(),
  badRecords: z.enum(["error", "skip"]).optional(),
  skipUnreadable: z.boolean().optional(),
  workers: z.int().min(0).max(1024).optional(),
});

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
  const parsed = recipeSchema.safeParse(read.value);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => ({
      path: issue.path.join(".") || "(file)",
      message: issue.message,
    }));
    throw new ConfigError(file, problems);
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
