import { UsageError } from "../core/errors.js";

/** Which files of a model are needed: all, or those of its tokenizer. */
export type ModelParts = "model" | "tokenizer";

const tokenizerFiles = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
];
const settingsFiles = ["config.json", "generation_config.json", "adapter_config.json"];
const wholeWeights = ["model.safetensors", "adapter_model.safetensors"];
/** Lists the files of weights that are divided. */
export const indexFile = "model.safetensors.index.json";
const pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/**
 * The files of a model that are fetched before its weights are known: settings, tokenizer, and the
 * list of the weights' files if there is one.
 * @param paths all files of the repository
 * @throws UsageError for a repository without what a model or a tokenizer needs
 */
export function firstFiles(paths: readonly string[], parts: ModelParts, written: string): string[] {
  const has = (name: string) => paths.includes(name);
  if (parts === "tokenizer") {
    if (has("tokenizer.json")) return tokenizerFiles.filter(has);
    const other = has("tokenizer.model") ? "a tokenizer.model alone" : "no tokenizer.json";
    throw new UsageError(`${written} has ${other}: expected a tokenizer.json`);
  }
  const weights = [indexFile, ...wholeWeights].some(has);
  if (!weights) {
    const old = pickled.find(has);
    const found = old === undefined ? "no model.safetensors" : `its weights in ${old} alone`;
    throw new UsageError(
      `${written} has ${found}: expected weights in safetensors` +
        (old === undefined
          ? ""
          : '. Convert it: python3 -c "import sys; from transformers import AutoModelForCausalLM as M; ' +
            "M.from_pretrained(sys.argv[1], dtype='auto').save_pretrained(sys.argv[2])\" NAME FOLDER"),
    );
  }
  if (!has("config.json") && !has("adapter_config.json")) {
    throw new UsageError(`${written} has no config.json: expected a model of transformers`);
  }
  return [...settingsFiles, ...tokenizerFiles, indexFile].filter(has);
}

/**
 * The files of the weights.
 * @param index the text of the list of divided weights; null if there is none
 * @throws UsageError for a list that is damaged
 */
export function weightFiles(
  paths: readonly string[],
  index: string | null,
  written: string,
): string[] {
  const adapter = paths.includes("adapter_model.safetensors") ? ["adapter_model.safetensors"] : [];
  if (index === null) {
    return [...(paths.includes("model.safetensors") ? ["model.safetensors"] : []), ...adapter];
  }
  const map = mapOf(index);
  const files = [...new Set(Object.values(map ?? {}))];
  const isName = (file: unknown) => typeof file === "string" && /^[\w.-]+\.safetensors$/.test(file);
  if (map === null || files.length === 0 || !files.every(isName)) {
    throw new UsageError(`${written}: ${indexFile} has no weight_map of names to files`);
  }
  return [...(files as string[]), ...adapter];
}

function mapOf(text: string): Record<string, unknown> | null {
  try {
    const { weight_map: map } = JSON.parse(text) as { weight_map?: unknown };
    return typeof map === "object" && map !== null ? (map as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}
