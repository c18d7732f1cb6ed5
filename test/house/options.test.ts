import { readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { beforeAll, describe, expect, it } from "vitest";
import type { z } from "zod";
import { answerFlags } from "../../lib/cli/generate.js";
import { commandName, commandTree, createProgram } from "../../lib/cli/program.js";
import { parseConfig } from "../../lib/config/index.js";
import { runSchema } from "../../lib/config/schema.js";
import {
  defaultOf,
  defaultText,
  isRequired,
  metaOf,
  type section,
  unwrap,
} from "../../lib/core/option-kinds.js";
import { flagOf } from "../../lib/core/option-names.js";
import { evaluationSchema } from "../../lib/eval/schema.js";
import { answerSchema, engineSchema } from "../../lib/generate/engine-schema.js";
import { generateSchema, samplingOptions } from "../../lib/generate/schema.js";
import { inputSchema, prepareSchema } from "../../lib/prepare/schema.js";
import { trainTokenizerSchema } from "../../lib/prepare/tokenizer/schema.js";
import { serverSchema } from "../../lib/serve/schema.js";
import { root } from "../cli/build.js";

// Each list of options is one schema: types, command line, recipes and documentation say what it says.

type Shape = Readonly<Record<string, z.ZodType>>;

const flagsOf = (command: string) => {
  const found = commandTree(createProgram()).find(
    (one) => commandName(one) === `llamaforge ${command}`,
  );
  return new Map(found?.options.map((option) => [option.long as string, option]));
};

describe("flags", () => {
  it("of prepare tell default and choices of the schema, and set nothing", () => {
    const flags = flagsOf("prepare");
    const { path: _, exclude: __, to: ___, ...selection } = inputSchema.shape;
    const shape: Shape = { ...selection, ...prepareSchema.shape };
    for (const [name, option] of Object.entries(shape)) {
      const flag = flags.get(flagOf(name));
      expect(flag?.description, name).toContain(metaOf(option).description);
      expect(flag?.defaultValue ?? [], name).toEqual([]);
      if (flag?.argChoices) expect(metaOf(option).expects).toContain(flag.argChoices.join(", "));
      const standard = defaultText(option);
      if (standard !== undefined && flag?.required && !flag.description.includes("repeated")) {
        expect(flag.description).toContain(`(default: ${standard})`);
      }
    }
    expect(flags.size).toBe(Object.keys(shape).length + 3); // and --config, --json, --download
  });

  it.each(["generate", "chat"])("of %s set the defaults of an answer's schema", (command) => {
    const flags = flagsOf(command);
    for (const [name, option] of Object.entries(answerFlags)) {
      expect(option, name).toBe(answerSchema.shape[name as keyof typeof answerFlags]);
      expect(flags.get(flagOf(name))?.defaultValue, name).toEqual(defaultOf(option));
      expect(flags.get(flagOf(name))?.description, name).toContain(metaOf(option).description);
    }
  });

  it("of an answer are those of generate() where both have one", () => {
    for (const [name, option] of Object.entries(samplingOptions)) {
      expect(answerSchema.shape[name as keyof typeof samplingOptions]).toBe(option);
      expect(generateSchema.shape[name as keyof typeof samplingOptions]).toBe(option);
    }
  });

  it("of eval set the defaults of the schema", () => {
    const flags = flagsOf("eval");
    for (const [name, option] of Object.entries(evaluationSchema.shape)) {
      const flag = flags.get(flagOf(name));
      const isFlag = unwrap(option).def.type === "boolean";
      expect(flag?.defaultValue || undefined, name).toBe(defaultOf(option) || undefined);
      expect(flag?.description, name).toContain(metaOf(option).description);
      expect(flag?.required, name).toBe(!isFlag);
    }
  });

  it("that take a number or a word take no other word", () => {
    const batch = flagsOf("eval").get("--batch");
    expect(batch?.parseArg?.("auto", undefined)).toBe("auto");
    expect(batch?.parseArg?.("16", undefined)).toBe(16);
    for (const wrong of ["0", "all", "1.5", ""]) {
      expect(() => batch?.parseArg?.(wrong, undefined)).toThrow("Expected auto, or an integer");
    }
  });

  it("of serve set the server's defaults and tell the engine's", () => {
    const flags = flagsOf("serve");
    const { modelName: _, ...server } = serverSchema.shape;
    for (const [name, option] of Object.entries(server)) {
      expect(flags.get(flagOf(name))?.defaultValue, name).toEqual(defaultOf(option));
      expect(flags.get(flagOf(name))?.description, name).toContain(metaOf(option).description);
    }
    const { prefixCache: __, ...engine } = engineSchema.shape;
    for (const [name, option] of Object.entries(engine)) {
      const flag = flags.get(flagOf(name));
      expect(flag?.defaultValue, name).toBe(undefined);
      const standard = defaultText(option);
      // A flag that is off unless it is given needs no word about it.
      if (standard === undefined || standard === "false") continue;
      expect(flag?.description).toContain(`(default: ${standard})`);
    }
    expect(flags.has("--no-prefix-cache")).toBe(defaultOf(engineSchema.shape.prefixCache));
  });

  it.each([
    ["--workers", "1025", "Expected an integer from 0 to 1024."],
    ["--workers", "two", "Expected an integer from 0 to 1024."],
    ["--validation-fraction", "1", "Expected a number from 0 to below 1."],
    ["--max-run-share", "1e400", "Expected a number from 0 to 1."],
    ["--shard-tokens", "0", "Expected an integer from 1 to 9007199254740991."],
  ])("%s %s is refused", (flag, value, message) => {
    expect(() => flagsOf("prepare").get(flag)?.parseArg?.(value, undefined)).toThrow(message);
  });
});

it("samples during training are chosen as by generate", () => {
  const { sample } = runSchema.shape;
  const shape = (unwrap(sample) as ReturnType<typeof section>).shape as Shape;
  for (const [name, option] of Object.entries(samplingOptions)) expect(shape[name]).toBe(option);
  const text = "steps: 1\nmodel: {preset: quickstart}\ndata: {train: {a: 1}}\n";
  const { temperature, topK, topP } = generateSchema.parse({ maxTokens: 1 });
  expect(parseConfig(text).sample).toMatchObject({ temperature, topK, topP });
});

describe("doc comments", () => {
  let typesOf: (file: string, name: string) => Map<string, { comment: string; optional: boolean }>;
  beforeAll(() => {
    const { config } = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile);
    const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, root);
    const files = [
      "lib/prepare/prepare.ts",
      "lib/generate/schema.ts",
      "lib/eval/evaluate.ts",
      "lib/serve/schema.ts",
      "lib/prepare/tokenizer/train-tokenizer.ts",
    ].map((at) => join(root, at));
    const program = ts.createProgram(files, { ...options, noEmit: true });
    const checker = program.getTypeChecker();
    typesOf = (file, name) => {
      const source = program.getSourceFile(join(root, file)) as ts.SourceFile;
      const exported = checker.getExportsOfModule(checker.getSymbolAtLocation(source) as ts.Symbol);
      const type = exported.find((one) => one.name === name) as ts.Symbol;
      const properties = checker.getPropertiesOfType(checker.getDeclaredTypeOfSymbol(type));
      return new Map(
        properties.map((property) => {
          const comment = ts.displayPartsToString(property.getDocumentationComment(checker));
          const optional = (property.flags & ts.SymbolFlags.Optional) !== 0;
          return [property.name, { comment, optional }];
        }),
      );
    };
  }, 120_000);

  it.each<[string, string, Shape, string[]]>([
    [
      "lib/prepare/prepare.ts",
      "PrepareOptions",
      prepareSchema.shape,
      ["inputs", "onProgress", "signal"],
    ],
    ["lib/prepare/schema.ts", "Input", inputSchema.shape, []],
    ["lib/generate/schema.ts", "GenerateOptions", generateSchema.shape, []],
    [
      "lib/eval/evaluate.ts",
      "EvaluateOptions",
      evaluationSchema.shape,
      ["tokenizer", "endTokens", "signal", "onProgress"],
    ],
    ["lib/serve/schema.ts", "ServerOptions", serverSchema.shape, []],
    [
      "lib/prepare/tokenizer/train-tokenizer.ts",
      "TrainTokenizerOptions",
      trainTokenizerSchema.shape,
      ["inputs", "onProgress", "signal"],
    ],
  ])("%s: every field of %s has one, which tells the default", (file, name, shape, others) => {
    const fields = typesOf(file, name);
    expect([...fields.keys()].sort()).toEqual([...Object.keys(shape), ...others].sort());
    for (const [field, { comment, optional }] of fields) {
      expect(comment, field).not.toBe("");
      const option = shape[field];
      if (option) expect(metaOf(option).description, field).not.toBe("");
      if (option) expect(optional, field).toBe(!isRequired(option));
      if (optional) expect(comment, field).toMatch(/Default: .+\.$/s);
      const standard = option && defaultOf(option);
      if (standard !== undefined) expect(comment).toContain(`Default: ${JSON.stringify(standard)}`);
    }
  });
});

/** The rows of a table of options: flag, name in YAML and TypeScript, meaning, allowed values and default. */
function rowsOf(shape: Shape, flags: ReadonlyMap<string, unknown>): string[] {
  return Object.entries(shape).map(([name, option]) => {
    const { description, expects, value } = metaOf(option);
    const isFlag = unwrap(option).def.type === "boolean";
    const flag = flags.has(flagOf(name)) ? `\`${flagOf(name)}${isFlag ? "" : ` <${value}>`}\`` : "";
    const standard = defaultText(option);
    const note = isRequired(option) ? "required" : (standard ?? "");
    return `| \`${name}\` | ${flag} | ${description} | ${expects} | ${note} |`;
  });
}

it.each([
  ["docs/data.md", "prepare", "an input", inputSchema.shape],
  ["docs/data.md", "prepare", "the data set", prepareSchema.shape],
  ["docs/evaluation.md", "eval", "an evaluation", evaluationSchema.shape],
  ["docs/tokenizers.md", "tokenizer train", "a tokenizer", trainTokenizerSchema.shape],
])("%s has the options of %s for %s as they are", (page, command, _, shape) => {
  const text = readFileSync(join(root, page), "utf8");
  const rows = rowsOf(shape, flagsOf(command)).join("\n");
  expect(text.includes(rows), `${page} lacks this table:\n${rows}`).toBe(true);
});

it("docs/serving.md has the options of a server as they are", () => {
  const text = readFileSync(join(root, "docs/serving.md"), "utf8");
  const rows = rowsOf(serverSchema.shape, flagsOf("serve")).join("\n");
  expect(text.includes(rows), `docs/serving.md lacks this table:\n${rows}`).toBe(true);
});
