import { join } from "node:path";
import { checkPath } from "../core/check-values.js";
import { CheckpointError } from "../core/errors.js";
import { readSmallFile, sizeLimits } from "../files/small-file.js";

/**
 * Tokens that end a model's answers, as the `eos_token_id` of generation_config.json and config.json
 * names them: one id, or a list of them. A chat model ends a turn with another token than a text.
 * @throws CheckpointError for a file that is damaged
 */
export async function endTokens(folder: string): Promise<number[]> {
  checkPath("endTokens", "folder", folder);
  const ids = new Set<number>();
  for (const name of ["generation_config.json", "config.json"]) {
    for (const id of await namedIn(join(folder, name))) ids.add(id);
  }
  return [...ids];
}

async function namedIn(file: string): Promise<readonly number[]> {
  let config: { eos_token_id?: unknown } | null;
  try {
    const bytes = await readSmallFile(file, { limit: sizeLimits.modelConfig });
    config = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw new CheckpointError(`[endTokens] cannot read ${file}: ${(cause as Error).message}`, {
      cause,
    });
  }
  const given = config?.eos_token_id ?? [];
  const ids: unknown[] = Array.isArray(given) ? given : [given];
  const isId = (id: unknown) => Number.isSafeInteger(id) && (id as number) >= 0;
  if (ids.every(isId)) return ids as number[];
  throw new CheckpointError(
    `[endTokens] ${file}: expected eos_token_id to be a token id or a list of them, got ${JSON.stringify(given)}`,
  );
}
