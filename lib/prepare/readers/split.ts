import { basename, relative, sep } from "node:path";
import { DataError } from "../../core/errors.js";
import { optionName } from "../../core/option-names.js";
import type { FoundFile } from "../../files/list-folder.js";
import type { FoundKind, Input } from "./input.js";

/** Names by which data sets tell their splits apart, as on the Hugging Face hub. */
const splitNames = {
  train: ["train", "training"],
  validation: ["validation", "valid", "val", "dev", "development"],
  test: ["test", "testing", "eval", "evaluation"],
} as const;

/**
 * The split that a file's name stands for. A folder's name counts if the file's own says nothing.
 */
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

/**
 * Selects the files of an input's split. For records the default is "train" if file names tell
 * splits apart. Names of text and code files may contain such words by chance, so the default takes
 * them all.
 * @throws DataError if no file name stands for the split
 */
export function chooseSplit(
  files: FoundFile[],
  folder: string,
  { path, split }: Input,
  kind: FoundKind,
): { files: FoundFile[]; notes: string[] } {
  if (split === "all") return { files, notes: [] };
  if (split === undefined && kind === "code") return { files, notes: [] };
  const splits = files.map((file) => splitOf(relative(folder, file.path)));
  if (split === undefined && !splits.includes("train")) return { files, notes: [] };
  const wanted = split ?? "train";
  const chosen = files.filter((_, index) => splits[index] === wanted);
  const left = files.length - chosen.length;
  if (split === undefined && kind === "text") {
    const others = splits.some((name) => name === "validation" || name === "test");
    const note = `${path}: names tell splits apart, and text of all is read; ${optionName("split")} reads one`;
    return { files, notes: others ? [note] : [] };
  }
  if (chosen.length === 0) {
    const first = files[0] as FoundFile;
    throw new DataError(
      `[prepare] ${path}: no file of the split ${wanted} among ${files.length} such as ${basename(first.path)}`,
    );
  }
  if (split !== undefined || left === 0) return { files: chosen, notes: [] };
  const note = `${path}: read the split train, ${chosen.length} files; ${left} of other splits were left out`;
  return { files: chosen, notes: [note] };
}
