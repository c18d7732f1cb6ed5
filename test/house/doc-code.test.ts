// The code of the pages for users names commands, options and exports that exist. The long test
// doc-code-run.test.ts runs it.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import ts from "typescript";
import { describe, expect, test } from "vitest";
import { commandTree, createProgram } from "../../lib/cli/program.js";
import { parseConfig } from "../../lib/config/index.js";
import { ConfigError } from "../../lib/core/errors.js";
import * as surface from "../../lib/index.js";
import { root } from "../cli/build.js";
import { codeBlocks, userPages } from "./doc-pages.js";

/** Names of exported types, which have no value at run time. */
const types = new Set(
  ["lib/index.ts", ...["model", "nn", "ops", "optim"].map((name) => `lib/${name}/index.ts`)]
    .map((file) => readFileSync(join(root, file), "utf8"))
    .flatMap((text) => [...text.matchAll(/\b(\w+)(?=,|\s*\}|\n)/g)].map(([, name]) => name)),
);

/** The `llamaforge` commands of a shell text, each as its arguments. */
function commandsOf(code: string): string[][] {
  const lines = code.replaceAll("\\\n", " ").split("\n");
  return lines.flatMap((line) =>
    [...line.matchAll(/(?:npx |^)llamaforge ([^|&#\n]*)/g)].map(([, rest = ""]) =>
      [...rest.matchAll(/"([^"]*)"|'([^']*)'|(\S+)/g)].map(
        ([, double, single, plain]) => double ?? single ?? plain ?? "",
      ),
    ),
  );
}

/** Parses a command line without running it. @returns what commander has against it */
function problemWith(argv: readonly string[]): string | null {
  const program = createProgram();
  for (const command of commandTree(program)) {
    const runs = command as Command & { _actionHandler: unknown };
    if (runs._actionHandler) command.action(() => {});
  }
  try {
    program.parse([...argv], { from: "user" });
    return null;
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return code === "commander.helpDisplayed" || code === "commander.version" ? null : message;
  }
}

function importsOf(code: string): { names: string[]; errors: string[] } {
  const file = ts.createSourceFile("x.ts", code, ts.ScriptTarget.ES2022, true);
  const { parseDiagnostics = [] } = file as unknown as { parseDiagnostics?: ts.Diagnostic[] };
  const names = file.statements.filter(ts.isImportDeclaration).flatMap((statement) => {
    const from = (statement.moduleSpecifier as ts.StringLiteral).text;
    const bindings = statement.importClause?.namedBindings;
    if (from !== "llamaforge" || !bindings || !ts.isNamedImports(bindings)) return [];
    return bindings.elements.map(({ name, propertyName }) => (propertyName ?? name).text);
  });
  const errors = parseDiagnostics.map(({ messageText }) => String(messageText));
  return { names, errors };
}

describe.each(userPages)("%s", (page) => {
  const blocks = codeBlocks(page);

  test("its commands are ones that the command line takes", () => {
    const shell = blocks.filter(({ language }) => ["sh", "bash"].includes(language));
    const wrong = shell
      .flatMap(({ code }) => commandsOf(code))
      // Capital letters stand for a user's own names.
      .filter((argv) => !argv.some((word) => /\.\.\./.test(word)))
      .map((argv) => ({ argv: argv.join(" "), problem: problemWith(argv) }))
      .filter(({ problem }) => problem !== null);
    expect(wrong).toEqual([]);
  });

  test("its TypeScript parses and imports names that are exported", () => {
    const scripts = blocks.filter(({ language }) => ["ts", "js"].includes(language));
    for (const { code } of scripts) {
      const { names, errors } = importsOf(code);
      expect(errors, code).toEqual([]);
      expect(names.filter((name) => !(name in surface) && !types.has(name))).toEqual([]);
    }
  });

  test("its recipes have options that exist", () => {
    for (const { code } of blocks.filter(({ language }) => language === "yaml")) {
      if (!/^(name|data|model|optimizer|init):/m.test(code)) continue;
      let problems: readonly { path: string; message: string }[] = [];
      try {
        parseConfig(code);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
        problems = (error as ConfigError).problems;
      }
      // A part of a recipe lacks the rest, and the folders of an example are not there.
      expect(problems.filter(({ message }) => /unknown|not allowed/.test(message))).toEqual([]);
    }
  });
});

test("the checks see a wrong command, option, import and syntax", () => {
  expect(
    commandsOf('npx llamaforge train x.yaml --set a=1 # more\nnpm i && npx llamaforge plan "a b"'),
  ).toEqual([
    ["train", "x.yaml", "--set", "a=1"],
    ["plan", "a b"],
  ]);
  expect(problemWith(["train", "x.yaml", "--set", "a=1"])).toBe(null);
  expect(problemWith(["train", "x.yaml", "--sett", "a=1"])).toContain("unknown option");
  expect(problemWith(["trian", "x.yaml"])).toContain("unknown command");
  expect(importsOf('import { nothing } from "llamaforge";').names).toEqual(["nothing"]);
  expect("nothing" in surface || types.has("nothing")).toBe(false);
  expect(importsOf("const = 1;").errors).not.toEqual([]);
});
