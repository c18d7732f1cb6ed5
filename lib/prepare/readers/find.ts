import { lstat } from "node:fs/promises";
import { basename, dirname, extname, normalize } from "node:path";
import { ArgumentError, DataError } from "../../core/errors.js";
import { optionName, optionValue } from "../../core/option-names.js";
import { globExpression, globRoot, isGlob } from "../../files/glob.js";
import {
  byPath,
  type FoundFile,
  furtherNames,
  listFiles,
  statusOf,
} from "../../files/list-folder.js";
import { type PassedOver, refuseUnreadable } from "../../files/passed-over.js";
import { type FoundKind, hasAnswers, type Input, type InputFile, type InputKind } from "./input.js";
import { excludedFolders, languageOfExtension, languages } from "./languages.js";
import { chooseSplit } from "./split.js";

export const textExtensions: ReadonlySet<string> = new Set([".txt", ".md"]);

const compressions: Readonly<Record<string, InputFile["compression"]>> = {
  ".gz": "gzip",
  ".zst": "zstd",
};

/** The files of an input, and whether they hold records. */
export interface FoundInput {
  files: InputFile[];
  kind: FoundKind;
  /**
   * Files and folders that are not read. Files of another kind are missing here; `notes` mentions
   * them.
   */
  passed: PassedOver[];
  /** Notes for the user. */
  notes: string[];
}

/**
 * How a file is read, judged by its name; null if the name belongs to no known text or record
 * format.
 */
export function formatOf(path: string): Pick<InputFile, "format" | "compression"> | null {
  const name = path.toLowerCase();
  const compression = compressions[extname(name)] ?? "none";
  const inner = extname(compression === "none" ? name : name.slice(0, -extname(name).length));
  if (inner === ".parquet" && compression === "none") return { format: "parquet", compression };
  if ([".jsonl", ".ndjson", ".json"].includes(inner)) return { format: "jsonl", compression };
  if (textExtensions.has(inner)) return { format: "text", compression };
  return null;
}

function isRecords({ path }: { path: string }): boolean {
  const format = formatOf(path)?.format;
  return format === "jsonl" || format === "parquet";
}

/** Whether a file is plain .json, which may hold records or the settings of any program. */
function isPlainJson({ path }: { path: string }): boolean {
  return /\.json$/i.test(path);
}

/**
 * Whether a text file only describes its folder (README, licence). Such files do not turn a folder
 * of records into one of text.
 */
function isAbout({ path }: FoundFile): boolean {
  return /^(readme|licen[cs]e|notice|citation|changelog|contributing)\b/i.test(basename(path));
}

/**
 * Finds the files of an input.
 * @param own resolved paths of the preparation's own files and folders, which are not input
 * @param skipUnreadable skip unreadable files and folders instead of throwing
 * @throws DataError if the path is missing, holds no file of the kind or split, or contains
 *   something unreadable
 * @throws ArgumentError for an unknown language, and for languages without kind "code"
 */
export async function findInput(
  input: Input,
  own: ReadonlySet<string> = new Set(),
  skipUnreadable = false,
): Promise<FoundInput> {
  const { path, kind = "auto" } = input;
  const extensions = codeExtensions(input.languages);
  if (input.languages !== undefined && kind !== "code") {
    throw new ArgumentError(
      `[prepare] ${path}: ${optionName("languages")} needs ${optionValue("kind", "code")}, got ${optionValue("kind", kind)}`,
    );
  }
  const status = statusOf(path);
  if (typeof status !== "string") {
    const file = { path, bytes: status.size, mtimeMs: status.mtimeMs };
    return namedFile(file, input, kind);
  }
  const isPattern = status === "dangling" && isGlob(path) && !(await isThere(path));
  if (!isPattern && status !== "linkedFolder") {
    const passed = [{ path, reason: status }];
    if (!(await isThere(path))) throw new DataError(`[prepare] cannot read ${path}: there is none`);
    refuseUnreadable(path, passed, skipUnreadable);
    return { files: [], kind: plain(kind), passed, notes: [] };
  }
  const folder = isPattern ? globRoot(normalize(path)) : path;
  const exclude = new Set(input.exclude ?? (kind === "code" ? excludedFolders : []));
  const listing = await listFiles(folder, exclude, own);
  const matching = isPattern ? globbed(listing.files, path) : listing.files;

  const known = kind === "code" ? extensions : textExtensions;
  const isKnown = (file: { path: string }) =>
    known.has(extname(file.path).toLowerCase()) ||
    (kind !== "code" && formatOf(file.path)?.format === "text");
  const records = matching.filter(isRecords);
  // A pattern names its files explicitly. In a folder, .json files may be anything that lies with
  // the data.
  const surely = records.filter((file) => !isPlainJson(file));
  const texts =
    !isPattern || kind === "code"
      ? matching.filter(isKnown)
      : matching.filter((file) => kind === "text" || !isRecords(file));
  const ownTexts = texts.filter((file) => !isAbout(file));
  const holdsRecords =
    kind === "records" ||
    hasAnswers(kind) ||
    (kind === "auto" && (surely.length > 0 || (records.length > 0 && ownTexts.length === 0)));
  const recordFiles = isPattern || surely.length === 0 ? records : surely;
  const [found, wanted, others] = holdsRecords
    ? ([recordKind(kind), recordFiles, ownTexts] as const)
    : ([plain(kind), texts, records] as const);
  // Copies are searched only among the files that would be read: a hub cache links to names without
  // an extension.
  const copies = listing.linked ? furtherNames(wanted) : new Set<FoundFile>();
  const files = wanted.filter((file) => !copies.has(file));

  const passed = passedOf(listing.passed, {
    matches: isPattern ? matcher(path) : () => true,
    // Unreadable records count as missed if, had they been readable, the folder could have been one
    // of records.
    isWanted: (file) =>
      (holdsRecords || kind === "auto") && isRecords(file)
        ? holdsRecords || !isPlainJson(file)
        : !holdsRecords && isKnown(file),
    isAnyType: isPattern,
  });
  refuseUnreadable(path, passed, skipUnreadable);
  if (files.length === 0) {
    const looked = holdsRecords ? ".jsonl .json .parquet, .gz .zst" : [...known].join(" ");
    throw nothingIn(path, found, looked);
  }
  const { files: chosen, notes } = chooseSplit([...files], folder, input, found);
  if (kind === "auto" && others.length > 0) {
    const other = holdsRecords ? "text" : "records";
    notes.push(
      `${path}: read as ${found}; ${others.length} files of ${other} were left alone ` +
        `(${optionValue("kind", other)} reads those): ${firstNames(others)}`,
    );
  }
  for (const { path } of copies) passed.push({ path, reason: "copy" });
  const single = matching.filter((file) => !copies.has(file));
  passed.push(...leftOut(single, { chosen, files, others: kind === "auto" ? others : [] }));
  return {
    files: chosen.map((file) => typed(file, holdsRecords)),
    kind: found,
    passed: passed.sort(byPath),
    notes,
  };
}

function namedFile(file: FoundFile, input: Input, kind: InputKind): FoundInput {
  const records = hasAnswers(kind) || kind === "records" || (kind === "auto" && isRecords(file));
  const found = records ? recordKind(kind) : plain(kind);
  const { files } =
    input.split === undefined
      ? { files: [file] }
      : chooseSplit([file], dirname(file.path), input, found);
  const passed: PassedOver[] = file.bytes === 0 ? [{ path: file.path, reason: "empty" }] : [];
  return { files: files.map((one) => typed(one, records)), kind: found, passed, notes: [] };
}

/** Kind of records that were asked for as `kind`. */
function recordKind(kind: InputKind): FoundKind {
  return kind === "chat" || kind === "preference" ? kind : "records";
}

/** Whether a path exists, even as a dangling link. */
async function isThere(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
}

/**
 * Selects the entries of a listing's unread files that concern an input. An unreadable file is no
 * loss if its name already rules it out.
 */
function passedOf(
  passed: readonly PassedOver[],
  {
    matches,
    isWanted,
    isAnyType,
  }: {
    matches: (path: string) => boolean;
    isWanted: (file: { path: string }) => boolean;
    isAnyType: boolean;
  },
): PassedOver[] {
  const isOfType = (entry: PassedOver) =>
    isAnyType || entry.reason === "excluded" || entry.reason === "linkedFolder" || isWanted(entry);
  return passed
    .filter(({ path, unlisted }) => unlisted || matches(path))
    .map((entry) => (entry.unlisted || isOfType(entry) ? entry : { ...entry, reason: "type" }));
}

/** Reasons why readable files are not read. */
function leftOut(
  matching: readonly FoundFile[],
  sets: Record<"chosen" | "files" | "others", readonly FoundFile[]>,
): PassedOver[] {
  const [chosen, files, others] = [sets.chosen, sets.files, sets.others].map(
    (list) => new Set(list),
  ) as [Set<FoundFile>, Set<FoundFile>, Set<FoundFile>];
  const passed: PassedOver[] = [];
  for (const file of matching) {
    if (chosen.has(file)) {
      if (file.bytes === 0) passed.push({ path: file.path, reason: "empty" });
    } else if (!others.has(file)) {
      const reason = files.has(file)
        ? "split"
        : isAbout(file)
          ? "about"
          : isPlainJson(file)
            ? "settings"
            : "type";
      passed.push({ path: file.path, reason });
    }
  }
  return passed;
}

function firstNames(files: readonly FoundFile[]): string {
  const names = files.slice(0, 3).map(({ path }) => path);
  return files.length > 3 ? `${names.join(", ")}, …` : names.join(", ");
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

function matcher(pattern: string): (path: string) => boolean {
  const expression = globExpression(pattern);
  return (path) => expression.test(path);
}

function globbed(files: readonly FoundFile[], pattern: string): FoundFile[] {
  const matches = matcher(pattern);
  const found = files.filter((file) => matches(file.path));
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
