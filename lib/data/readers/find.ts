import { stat } from "node:fs/promises";
import { basename, extname, normalize, relative, sep } from "node:path";
import { ArgumentError, DataError } from "../../errors.js";
import { type FoundFile, listFiles } from "./folder.js";
import { globExpression, globRoot, isGlob } from "./glob.js";
import { type Input, type InputFile, inputKinds } from "./input.js";
import { excludedFolders, languageOfExtension, languages } from "./languages.js";

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

function isRecords(path: string): boolean {
  const format = formatOf(path)?.format;
  return format === "jsonl" || format === "parquet";
}

/**
 * @throws DataError if the path is missing or holds no file of the kind
 * @throws ArgumentError for an unknown kind, language or split
 */
export async function findInput(input: Input): Promise<FoundInput> {
  const { path, kind = "auto" } = input;
  if (!inputKinds.includes(kind)) {
    throw new ArgumentError(
      `[prepare] expected kind ${inputKinds.map((name) => `"${name}"`).join(", ")}, got ${JSON.stringify(kind)}`,
    );
  }
  const extensions = codeExtensions(input.languages);
  const info = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT" && isGlob(path)) return null;
    throw new DataError(`[prepare] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (info?.isFile()) {
    const file = { path, bytes: info.size, mtimeMs: info.mtimeMs };
    const records = kind === "records" || (kind === "auto" && isRecords(path));
    return { files: [typed(file, records)], kind: records ? "records" : plain(kind), notes: [] };
  }
  if (info !== null && !info.isDirectory()) {
    throw new DataError(`[prepare] ${path} is neither a file nor a folder`);
  }
  const folder = info === null ? globRoot(normalize(path)) : path;
  const exclude = new Set(input.exclude ?? (kind === "code" ? excludedFolders : []));
  const all = await listFiles(folder, exclude);
  const matching = info === null ? globbed(all, path) : all;

  if (kind === "records" || (kind === "auto" && matching.some((file) => isRecords(file.path)))) {
    // A pattern says which files; of a folder, .json files may be anything beside the data.
    const wanted = matching.filter(
      (file) => isRecords(file.path) && (info === null || !/\.json(\.gz|\.zst)?$/i.test(file.path)),
    );
    const records = wanted.length > 0 ? wanted : matching.filter((file) => isRecords(file.path));
    if (records.length === 0) throw nothingIn(path, "records", ".jsonl .json .parquet, .gz .zst");
    const { files, notes } = chooseSplit(records, folder, input);
    return { files: files.map((file) => typed(file, true)), kind: "records", notes };
  }
  const known = kind === "code" ? extensions : textExtensions;
  const isKnown = ({ path: name }: FoundFile) =>
    known.has(extname(name).toLowerCase()) ||
    (kind !== "code" && formatOf(name)?.format === "text");
  const files = info === null && kind !== "code" ? matching : matching.filter(isKnown);
  if (files.length === 0) throw nothingIn(path, plain(kind), [...known].join(" "));
  return { files: files.map((file) => typed(file, false)), kind: plain(kind), notes: [] };
}

function nothingIn(path: string, kind: string, known: string): DataError {
  return new DataError(
    `[prepare] ${path}: no ${kind} file in it (looked for ${known})` +
      (kind === "text" ? '; for source code pass kind "code"' : ""),
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

/** Names that tell the splits of a data set apart, as the Hugging Face hub has them. */
const splitNames = {
  train: ["train", "training"],
  validation: ["validation", "valid", "val", "dev", "development"],
  test: ["test", "testing", "eval", "evaluation"],
} as const;

/** The split that a file's name says it belongs to; a folder's name counts if the file's own does not. */
function splitOf(path: string): keyof typeof splitNames | undefined {
  for (const part of path.split(sep).reverse()) {
    const words = part.toLowerCase().split(/[^a-z]+/);
    for (const [split, names] of Object.entries(splitNames)) {
      if (words.some((word) => (names as readonly string[]).includes(word))) {
        return split as keyof typeof splitNames;
      }
    }
  }
  return undefined;
}

function chooseSplit(
  files: FoundFile[],
  folder: string,
  { path, split }: Input,
): { files: FoundFile[]; notes: string[] } {
  if (split !== undefined && split !== "all" && !Object.hasOwn(splitNames, split)) {
    throw new ArgumentError(
      `[prepare] expected split "train", "validation", "test" or "all", got ${JSON.stringify(split)}`,
    );
  }
  if (split === "all") return { files, notes: [] };
  const splits = files.map((file) => splitOf(relative(folder, file.path)));
  if (split === undefined && !splits.includes("train")) return { files, notes: [] };
  const wanted = split ?? "train";
  const chosen = files.filter((_, index) => splits[index] === wanted);
  if (chosen.length === 0) {
    const first = files[0] as FoundFile;
    throw new DataError(
      `[prepare] ${path}: no file of the split ${wanted} among ${files.length} such as ${basename(first.path)}`,
    );
  }
  const left = files.length - chosen.length;
  if (split !== undefined || left === 0) return { files: chosen, notes: [] };
  const note = `${path}: read the split train, ${chosen.length} files; ${left} of other splits were left out`;
  return { files: chosen, notes: [note] };
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
