/** How layers differ, in Hugging Face's `config.json`: sliding windows, layers without positions. */
import type { ConfigProblem } from "../core/errors.js";
import { describeValue } from "./describe-value.js";
import { isCount, type LlamaConfig, llamaFieldRules } from "./llama-config.js";
import { familyClasses } from "./llama-family-classes.js";
import { type Family, rotates, windowOf } from "./llama-variations.js";

/** The keys of a `config.json`. */
export type Raw = ReadonlyMap<string, unknown>;

/** The keys that say how layers differ: windows, and layers without positions. */
export function writeLayers(config: LlamaConfig, family: Family): Record<string, unknown> {
  const { slidingWindow } = config;
  const { window } = familyClasses[family];
  if (window === "none") return {};
  if (window === "all") return { sliding_window: slidingWindow ?? null };
  const layers = Array.from({ length: config.layers }, (_, layer) => layer);
  const windowed = layers.map((layer) => windowOf(config, layer) !== null);
  const keys = {
    use_sliding_window: slidingWindow !== undefined,
    sliding_window: slidingWindow ?? null,
    layer_types: windowed.map((has) => (has ? "sliding_attention" : "full_attention")),
  };
  if (family === "smollm3") {
    return {
      ...keys,
      no_rope_layers: layers.map((layer) => (rotates(config, layer) ? 1 : 0)),
      // The class's default is an id of a vocabulary of 128,256.
      pad_token_id: null,
    };
  }
  // Readers that do not know layer_types give a window to all layers from this one on.
  const first = windowed.includes(true) ? windowed.lastIndexOf(false) + 1 : config.layers;
  return { ...keys, max_window_layers: first };
}

type Layers = Pick<LlamaConfig, "slidingWindow" | "windowLayers" | "positionlessLayers">;

/** Windows and positions of each layer, by the rules of the family's class. */
export function readLayers(
  raw: Raw,
  family: Family,
  count: number,
  problems: ConfigProblem[],
): Layers {
  if (!isCount(count) || count > llamaFieldRules.layers.max) return {}; // an error of its own
  const { window, defaults } = familyClasses[family];
  const layers = Array.from({ length: count }, (_, layer) => layer);
  const positionlessLayers =
    family === "smollm3" ? readPositionless(raw, layers, problems) : undefined;
  const size = raw.has("sliding_window") ? raw.get("sliding_window") : defaults.sliding_window;
  const used =
    window === "all" || (window === "by layer" && raw.get("use_sliding_window") === true);
  const slidingWindow = used ? ((size ?? undefined) as number | undefined) : undefined;
  const first = raw.get("max_window_layers") ?? 28;
  if (window === "by layer" && !(Number.isInteger(first) && (first as number) >= 0)) {
    const message = `expected an integer from 0, got ${describeValue(first)}`;
    problems.push({ path: "max_window_layers", message });
  }
  const has = (layer: number): boolean => {
    if (slidingWindow === undefined || window === "none") return false;
    if (window === "all") return true;
    if (family === "smollm3") return positionlessLayers?.includes(layer) === true;
    return layer >= (first as number);
  };
  const types = readTypes(raw, layers, problems) ?? layers.map(has);
  const windowLayers = layers.filter((layer) => types[layer]);
  const refuse = (message: string) => problems.push({ path: "layer_types", message });
  if (windowLayers.length > 0 && slidingWindow === undefined) {
    refuse("sliding_attention is not supported without a sliding_window that the model uses");
  }
  if (window === "all" && slidingWindow !== undefined && windowLayers.length < count) {
    refuse(`full_attention is not supported in ${family}, whose layers all have sliding_window`);
  }
  return {
    ...(slidingWindow !== undefined && { slidingWindow, windowLayers }),
    ...(positionlessLayers && { positionlessLayers }),
  };
}

/** Whether each layer has a sliding window, as `layer_types` says; null if it says nothing. */
function readTypes(
  raw: Raw,
  layers: readonly number[],
  problems: ConfigProblem[],
): boolean[] | null {
  const types = raw.get("layer_types") ?? null;
  if (types === null) return null;
  if (!Array.isArray(types) || types.length !== layers.length) {
    const message = `expected a list with one type for each of ${layers.length} layers, got ${describeValue(types)}`;
    problems.push({ path: "layer_types", message });
    return null;
  }
  const known = ["full_attention", "sliding_attention"];
  const other = types.find((type) => !known.includes(type));
  if (other !== undefined) {
    const message = `${describeValue(other)} is not supported (allowed: ${known.join(", ")})`;
    problems.push({ path: "layer_types", message });
  }
  return types.map((type) => type === "sliding_attention");
}

/** The layers whose entry in `no_rope_layers` is 0; without the list, every fourth. */
function readPositionless(
  raw: Raw,
  layers: readonly number[],
  problems: ConfigProblem[],
): number[] {
  const list = raw.get("no_rope_layers") ?? null;
  const interval = raw.get("no_rope_layer_interval") ?? 4;
  if (list === null) {
    if (isCount(interval)) return layers.filter((layer) => (layer + 1) % interval === 0);
    const message = `expected an integer above 0, got ${describeValue(interval)}`;
    problems.push({ path: "no_rope_layer_interval", message });
    return [];
  }
  const isValid =
    Array.isArray(list) && list.length >= layers.length && list.every((n) => n === 0 || n === 1);
  if (isValid) return layers.filter((layer) => list[layer] === 0);
  const message = `expected a list of 0 and 1 for each of ${layers.length} layers, got ${describeValue(list)}`;
  problems.push({ path: "no_rope_layers", message });
  return [];
}
