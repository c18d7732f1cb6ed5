import { stat } from "node:fs/promises";
import { basename, dirname, extname, normalize } from "node:path";
import { ArgumentError, DataError } from "../../errors.js";
import { optionName, optionValue } from "../../option-names.js";
import { type FoundFile, listFiles } from "./folder.js";
import { globExpression, globRoot, isGlob } from "./glob.js";
import { type Input, type InputFile, inputKinds } from "./input.js";
import { excludedFolders, languageOfExtension, languages } from "./languages.js";
import { checkSplit, chooseSplit } from "./split.js";

export const textExtensions: ReadonlySet<string> = new Set([".txt", ".md"]);

const compressions: Readonly<Record<string, InputFile["compression"]>> = {
  ".gz": "gzip",
  ".zst": "zstd",
};

/** The files of an input, and whether they hold records. */
export interface FoundInput {
  files: InputFile[];
  kind: "text" | "code" | "records";
  /** What the user should know. */
  notes: string[];
}

/** How a file is read, by its name; null for what is no known text or record format. */
export function formatOf(path: string): Pick<InputFile, "format" | "compression"> | null {
  const name = path.toLowerCase();
  const compression = compressions[extname(name)] ?? "none";
  const inner = extname(compression === "none" ? name : name.slice(0, -extname(name).length));
  if (inner === ".parquet" && compression === "none") return { format: "parquet", compression };
  if ([".jsonl", ".ndjson", ".json"].includes(inner)) return { format: "jsonl", compression };
  if (textExtensions.has(inner)) return { format: "text", compression };
  return null;
}

function isRecords({ path }: FoundFile): boolean {
  const format = formatOf(path)?.format;
  return format === "jsonl" || format === "parquet";
}

/** Records, or settings of any program. */
function isPlainJson({ path }: FoundFile): boolean {
  return /\.json$/i.test(path);
}

/** Text about what lies beside it: no folder of records becomes one of text by it. */
function isAbout({ path }: FoundFile): boolean {
  return /^(readme|licen[cs]e|notice|citation|changelog|contributing)\b/i.test(basename(path));
}

/**
 * @param own paths, without links, of files and folders of the preparation itself, which are no input
 * @throws DataError if the path is missing or holds no file of the kind or split
 * @throws ArgumentError for an unknown kind, language or split, and for languages of anything but code
 */
export async function findInput(
  input: Input,
  own: ReadonlySet<string> = new Set(),
): Promise<FoundInput> {
  const { path, kind = "auto" } = input;
  if (!inputKinds.includes(kind)) {
    throw new ArgumentError(
      `[prepare] expected kind ${inputKinds.map((name) => `"${name}"`).join(", ")}, got ${JSON.stringify(kind)}`,
    );
  }
  const extensions = codeExtensions(input.languages);
  if (input.languages !== undefined && kind !== "code") {
    throw new ArgumentError(
      `[prepare] ${path}: ${optionName("languages")} needs ${optionValue("kind", "code")}, got ${optionValue("kind", kind)}`,
    );
  }
  checkSplit(input.split);
  const info = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT" && isGlob(path)) return null;
    throw new DataError(`[prepare] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (info?.isFile()) {
    const file = { path, bytes: info.size, mtimeMs: info.mtimeMs };
    const records = kind === "records" || (kind === "auto" && isRecords(file));
    const found = records ? "records" : plain(kind);
    const { files } =
      input.split === undefined
        ? { files: [file] }
        : chooseSplit([file], dirname(path), input, found);
    return { files: files.map((one) => typed(one, records)), kind: found, notes: [] };
  }
  if (info !== null && !info.isDirectory()) {
    throw new DataError(`[prepare] ${path} is neither a file nor a folder`);
  }
  const isPattern = info === null;
  const folder = isPattern ? globRoot(normalize(path)) : path;
  const exclude = new Set(input.exclude ?? (kind === "code" ? excludedFolders : []));
  const all = await listFiles(folder, exclude, own);
  const matching = isPattern ? globbed(all, path) : all;

  const known = kind === "code" ? extensions : textExtensions;
  const isKnown = (file: FoundFile) =>
    known.has(extname(file.path).toLowerCase()) ||
    (kind !== "code" && formatOf(file.path)?.format === "text");
  const records = matching.filter(isRecords);
  // A pattern says which files; of a folder, .json files may be anything beside the data.
  const surely = records.filter((file) => !isPlainJson(file));
  const texts =
    !isPattern || kind === "code"
      ? matching.filter(isKnown)
      : matching.filter((file) => kind === "text" || !isRecords(file));
  const ownTexts = texts.filter((file) => !isAbout(file));
  const holdsRecords =
    kind === "records" ||
    (kind === "auto" && (surely.length > 0 || (records.length > 0 && ownTexts.length === 0)));
  const recordFiles = isPattern || surely.length === 0 ? records : surely;
  const [found, files, others] = holdsRecords
    ? (["records", recordFiles, ownTexts] as const)
    : ([plain(kind), texts, records] as const);
  if (files.length === 0) {
    const looked = holdsRecords ? ".jsonl .json .parquet, .gz .zst" : [...known].join(" ");
    throw nothingIn(path, found, looked);
  }
  const { files: chosen, notes } = chooseSplit([...files], folder, input, found);
  if (kind === "auto" && others.length > 0) {
    const other = holdsRecords ? "text" : "records";
    notes.push(
      `${path}: read as ${found}; ${others.length} files of ${other} were left alone (${optionValue("kind", other)} reads those)`,
    );
  }
  return { files: chosen.map((file) => typed(file, holdsRecords)), kind: found, notes };
}

function nothingIn(path: string, kind: string, known: string): DataError {
  return new DataError(
    `[prepare] ${path}: no ${kind} file in it (looked for ${known})` +
      (kind === "text" ? `; for source code pass ${optionValue("kind", "code")}` : ""),
  );
}

function plain(kind: string): "text" | "code" {
  return kind === "code" ? "code" : "text";
}

function globbed(files: readonly FoundFile[], pattern: string): FoundFile[] {
  const expression = globExpression(pattern);
  const found = files.filter((file) => expression.test(file.path));
  if (found.length === 0) throw new DataError(`[prepare] ${pattern}: matches no file`);
  return found;
}

function typed(file: FoundFile, records: boolean): InputFile {
  const known = formatOf(file.path);
  if (records) {
    if (known?.format === "jsonl" || known?.format === "parquet") return { ...file, ...known };
    throw new DataError(`[prepare] ${file.path}: expected .jsonl, .json or .parquet for records`);
  }
  return { ...file, format: "text", compression: known?.compression ?? "none" };
}

function codeExtensions(wanted: readonly string[] | undefined): ReadonlySet<string> {
  for (const language of wanted ?? []) {
    if (!languages.includes(language)) {
      throw new ArgumentError(
        `[prepare] unknown language ${JSON.stringify(language)}; known: ${languages.join(", ")}`,
      );
    }
  }
  const entries = Object.entries(languageOfExtension);
  const chosen = entries.filter(([, language]) => wanted?.includes(language) ?? true);
  return new Set(chosen.map(([extension]) => extension));
}
