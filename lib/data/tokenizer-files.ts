import { createHash } from "node:crypto";
import { access, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { TokenizerError } from "../core/errors.js";
import { answered, readSmallFile, sizeLimits } from "../files/small-file.js";

/** A tokenizer.json and the companion files next to it, as they were read. */
export interface TokenizerFiles {
  file: string;
  bytes: Buffer;
  text: string;
  sha256: string;
  companions: CompanionFile[];
}

export interface CompanionFile {
  name: string;
  bytes: Buffer;
  contents: Record<string, unknown>;
}

/**
 * Companion files that name the tokens at the beginning and end of a text. The first file that
 * names one counts.
 */
export const companionNames = ["tokenizer_config.json", "special_tokens_map.json"] as const;

export async function readTokenizerFiles(path: string): Promise<TokenizerFiles> {
  let file = path;
  let bytes: Buffer;
  try {
    const found = await answered(path, undefined, () => stat(path));
    if (found.isDirectory()) file = join(path, "tokenizer.json");
    bytes = await readSmallFile(file, { limit: sizeLimits.tokenizer });
  } catch (cause) {
    const message = `[tokenizer] cannot read ${file}: ${(cause as Error).message}`;
    const model = join(dirname(file), "tokenizer.model");
    throw new TokenizerError(
      (await isThere(model))
        ? `${message}. ${model} alone is a sentencepiece model. ${conversion}`
        : `${message}; expected a tokenizer.json or a folder with one`,
      { cause },
    );
  }
  const companions: CompanionFile[] = [];
  for (const name of companionNames) {
    const companion = await readCompanion(dirname(file), name);
    if (companion !== null) companions.push(companion);
  }
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  return { file, bytes, text: bytes.toString("utf8"), sha256, companions };
}

const conversion =
  'Convert it: python3 -c "import sys; from transformers import AutoTokenizer as T; ' +
  'T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" FOLDER NEW_FOLDER';

async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

async function readCompanion(folder: string, name: string): Promise<CompanionFile | null> {
  const path = join(folder, name);
  let bytes: Buffer;
  try {
    bytes = await readSmallFile(path, { limit: sizeLimits.tokenizerConfig });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new TokenizerError(`[tokenizer] cannot read ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  let contents: unknown;
  try {
    contents = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new TokenizerError(`[tokenizer] ${path}: not JSON: ${(cause as Error).message}`, {
      cause,
    });
  }
  if (typeof contents !== "object" || contents === null || Array.isArray(contents)) {
    throw new TokenizerError(`[tokenizer] ${path}: expected a JSON object`);
  }
  return { name, bytes, contents: contents as Record<string, unknown> };
}
