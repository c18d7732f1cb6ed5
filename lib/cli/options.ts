import type { EventEmitter } from "node:events";
import { type Command, InvalidArgumentError, Option } from "commander";
import { z } from "zod";
import { defaultOf, defaultText, metaOf, unwrap } from "../core/option-kinds.js";
import { flagOf } from "../core/option-names.js";

/** An option that may be given several times. Its values are collected. */
export class RepeatableOption extends Option {
  constructor(flags: string, description: string) {
    super(flags, `${description}; may be repeated`);
    this.default([], "none");
    this.argParser((value: string, before: string[] = []) => [...before, value]);
  }
}

/** An option whose value is an integer in a range. */
export function integerOption(
  flags: string,
  description: string,
  min: number,
  max: number,
): Option {
  return new Option(flags, description).argParser((value) => {
    const parsed = parseNumber(value);
    if (Number.isSafeInteger(parsed) && parsed >= min && parsed <= max) return parsed;
    throw new InvalidArgumentError(`Expected an integer from ${min} to ${max}.`);
  });
}

/** An option whose value is a number in a range; `above` excludes the lower end. */
export function numberOption(
  flags: string,
  description: string,
  range: { min?: number; above?: number; max: number },
): Option {
  const { min = Number.NEGATIVE_INFINITY, above = Number.NEGATIVE_INFINITY, max } = range;
  const lower = range.above === undefined ? `from ${min} to` : `above ${above}, at most`;
  return new Option(flags, description).argParser((value) => {
    const parsed = parseNumber(value);
    if (parsed >= min && parsed > above && parsed <= max) return parsed;
    throw new InvalidArgumentError(`Expected a number ${lower} ${max}.`);
  });
}

/** Options of a schema by name, as a command line accepts them. */
type Shape = Readonly<Record<string, z.ZodType>>;

/**
 * Adds a flag for each option of a schema, with the schema's name, help and allowed values.
 * @param defaults with `set`, options that have a default get it as their value. With `told`, the
 *   help only names the default, and an omitted option has no value, so that a file may decide it.
 */
export function addOptions(command: Command, shape: Shape, defaults: "set" | "told"): Command {
  for (const [name, schema] of Object.entries(shape)) {
    const option = optionOf(name, schema, defaults === "told");
    const standard = defaultOf(schema);
    if (defaults === "set" && standard !== undefined) option.default(standard);
    command.addOption(option);
  }
  return command;
}

function optionOf(name: string, schema: z.ZodType, tellDefault: boolean): Option {
  const { description: purpose, expects, value } = metaOf(schema);
  const kind = unwrap(schema);
  const standard = tellDefault && !(kind instanceof z.ZodBoolean) ? defaultText(schema) : undefined;
  const description = standard === undefined ? purpose : `${purpose} (default: ${standard})`;
  if (kind instanceof z.ZodBoolean) return new Option(flagOf(name), description);
  const flags = `${flagOf(name)} <${value}>`;
  if (kind instanceof z.ZodArray) return new RepeatableOption(flags, purpose);
  const option = new Option(flags, description);
  if (kind instanceof z.ZodEnum) return option.choices(kind.options.map(String));
  return option.argParser((written) => {
    const isNumber =
      kind instanceof z.ZodNumber ||
      (kind instanceof z.ZodUnion && !schema.safeParse(written).success);
    const typed = isNumber ? parseNumber(written) : written;
    if (schema.safeParse(typed).success) return typed;
    throw new InvalidArgumentError(`Expected ${expects}.`);
  });
}

/** The values that the user gave for options of a schema, by option name. */
export function givenOptions<S extends z.ZodRawShape>(
  command: Command,
  shape: S,
): Partial<z.output<z.ZodObject<S>>> {
  const given = Object.keys(shape).map((name) => {
    const option = command.options.find(({ long }) => long === flagOf(name)) as Option;
    return [name, command.getOptionValue(option.attributeName()) as unknown] as const;
  });
  const isGiven = (value: unknown) =>
    value !== undefined && !(Array.isArray(value) && value.length === 0);
  return Object.fromEntries(given.filter(([, value]) => isGiven(value))) as Partial<
    z.output<z.ZodObject<S>>
  >;
}

/**
 * Parses plain decimal notation; NaN for anything else. Number() would also accept "", "0x10" and
 * " 1 ".
 */
function parseNumber(value: string): number {
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value) ? Number(value) : Number.NaN;
}

/** The option that overrides entries of a run configuration. */
export function setOption(): Option {
  return new RepeatableOption(
    "--set <path=value>",
    "override an option, e.g. optimizer.peakLr=1e-3",
  );
}

/**
 * Makes a command strict where commander is lenient. It refuses an option given twice, an empty
 * value, and a value that is another option.
 */
export function beStrict(command: Command): void {
  // Runs before commander's own listeners, which would parse the value first. Commander's types
  // hide that a command is an emitter.
  const emitter = command as unknown as EventEmitter;
  for (const option of command.options) {
    const flag = option.long ?? option.flags;
    let given = 0;
    emitter.prependListener(`option:${option.name()}`, (value: string | null) => {
      given++;
      if (given > 1 && !(option instanceof RepeatableOption)) {
        command.error(`error: option '${flag}' was given more than once`);
      }
      if (value === "") command.error(`error: option '${flag}' has an empty value`);
      // Arguments for another program form one value that contains spaces.
      if (value?.startsWith("--") && !value.includes(" ")) {
        command.error(`error: option '${flag}' is missing its value before '${value}'`);
      }
    });
  }
}
