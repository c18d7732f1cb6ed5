import type { z } from "zod";
import { defaultText, isRequired, metaOf } from "../core/option-kinds.js";
import { leaves, optionsOf, schemaAt } from "../core/option-tree.js";
import { runSchema } from "./schema.js";

/**
 * Describes all options of a run, with meaning, allowed values and default, for `train
 * --help-config`.
 */
export function configHelp(): string {
  const lines: string[] = [];
  const options = Object.entries(optionsOf(runSchema)!);
  for (const [name, option] of options) {
    if (optionsOf(option) === undefined) lines.push(...describe(name, option));
  }
  for (const [name, section] of options) {
    if (optionsOf(section) === undefined) continue;
    lines.push("", `${name}: ${metaOf(section).description}`);
    for (const [path, option] of leaves(section, [name])) {
      lines.push(...describe(path.join("."), option));
    }
  }
  return `${lines.join("\n")}\n`;
}

function describe(path: string, option: z.ZodType): string[] {
  const { description, expects } = metaOf(option);
  return [
    `  ${path.padEnd(28)} ${description}`,
    `${" ".repeat(31)}${expects}; ${standardText(option)}`,
  ];
}

function standardText(option: z.ZodType): string {
  const standard = defaultText(option);
  if (standard !== undefined) return `default ${standard}`;
  return isRequired(option) ? "required" : "optional";
}

/** One-line description of an option, for example for the report's table. */
export function describeOption(path: readonly string[]): string | undefined {
  const option = schemaAt(runSchema, path);
  return option && metaOf(option).description;
}
