import { access, copyFile, readFile, writeFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { type Command, Option } from "commander";
import { UsageError } from "../core/errors.js";
import { makeFolder } from "../files/make-folder.js";
import { print, withRemarks } from "./terminal.js";
import { packageVersion } from "./version.js";

const assets = fileURLToPath(new URL("../../assets", import.meta.url));

/** The script's file for each language. */
const scripts = { js: "train.mjs", ts: "train.ts" } as const;

/** What checks the script's types. The package's own need Node's. */
const typeChecker = { "@types/node": "^20", typescript: ">=5.7" };

interface InitOptions {
  language: keyof typeof scripts;
}

export function addInit(program: Command): void {
  program
    .command("init")
    .description("a folder to start from: a recipe, a tokenizer, a place for texts, a script")
    .argument("<folder>", "the folder, which may exist; none of its files is replaced")
    .addOption(
      new Option("--language <name>", "language of the script")
        .choices(Object.keys(scripts))
        .default("js"),
    )
    .action(async (folder: string, { language }: InitOptions) => {
      const script = scripts[language];
      await writeFiles(folder, await filesOf(folder, script));
      print(
        `${folder} is ready:\n\n` +
          `  cd ${folder}\n` +
          "  npm install\n" +
          withRemarks([
            ["  cp YOUR.txt texts/", ".txt and .md, or .jsonl and .parquet"],
            [`  ${commandOf(script)}`, "prepares and trains"],
            ["  npx llamaforge serve runs/*", "a page to write in"],
          ]),
      );
    });
}

/** Node runs TypeScript from 22.18 on. */
function commandOf(script: string): string {
  const { typescript } = process.features as { typescript?: unknown };
  return script.endsWith(".ts") && !typescript ? `npx tsx ${script}` : `node ${script}`;
}

/** Contents of the new files by their paths in the folder. */
async function filesOf(folder: string, script: string): Promise<Record<string, string>> {
  const name = nameOf(folder);
  const template = (file: string) => readFile(join(assets, "init", file), "utf8");
  const manifest = {
    name,
    private: true,
    type: "module",
    scripts: { train: commandOf(script) },
    dependencies: { llamaforge: `^${packageVersion}` },
    ...(script.endsWith(".ts") && { devDependencies: typeChecker }),
  };
  return {
    "recipe.yaml": (await template("recipe.yaml")).replaceAll("NAME", name),
    [script]: await template(script),
    "package.json": `${JSON.stringify(manifest, null, 2)}\n`,
    ...(script.endsWith(".ts") && { "tsconfig.json": await template("tsconfig.json") }),
    "texts/put-texts-here": await template("put-texts-here"),
    ".gitignore": "/node_modules/\n/data/\n/runs/\n",
  };
}

/** A name for the package and the run: the folder's, in the letters that both allow. */
function nameOf(folder: string): string {
  const name = basename(resolve(folder))
    .toLowerCase()
    .replace(/[^a-z0-9-]+/g, "-")
    .replace(/^-+|-+$/g, "");
  return name || "my-model";
}

/** Files that a project may have already. They are left as they are. */
const kept = ["package.json", "tsconfig.json", ".gitignore"];

/** @throws UsageError if a file exists, before anything is written, or if one cannot be written */
async function writeFiles(folder: string, files: Record<string, string>): Promise<void> {
  const tokenizer = ["tokenizer.json", "tokenizer_config.json"];
  const paths = [...Object.keys(files), ...tokenizer.map((name) => `tokenizer/${name}`)];
  const found = await present(folder, paths);
  const there = found.filter((path) => !kept.includes(path));
  if (there.length > 0) {
    throw new UsageError(
      `${folder} already has ${there.join(", ")}: choose another folder, or remove them`,
    );
  }
  try {
    for (const part of ["texts", "tokenizer"]) await makeFolder(join(folder, part));
    for (const [path, text] of Object.entries(files)) {
      if (!found.includes(path)) await writeFile(join(folder, path), text, { flag: "wx" });
    }
    for (const name of tokenizer) {
      await copyFile(join(assets, "quickstart", name), join(folder, "tokenizer", name));
    }
  } catch (cause) {
    throw new UsageError(`${folder} cannot be written: ${(cause as Error).message}`, { cause });
  }
}

async function present(folder: string, paths: readonly string[]): Promise<string[]> {
  const found = await Promise.all(
    paths.map((path) =>
      access(join(folder, path)).then(
        () => [path],
        () => [],
      ),
    ),
  );
  return found.flat();
}
