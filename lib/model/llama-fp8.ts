import type { ConfigProblem } from "../core/errors.js";
import { fp8Multiple } from "../core/fp8.js";
import type { LlamaConfig } from "./llama-config.js";

/**
 * Reasons why a model's blocks cannot compute in fp8, each with its path: a width that is not a
 * multiple of 16.
 */
export function fp8Problems(config: LlamaConfig, prefix = ""): ConfigProblem[] {
  const { hiddenSize, intermediateSize, heads, kvHeads, headSize } = config;
  const widths: [path: string, what: string, width: number][] = [
    ["hiddenSize", "hiddenSize", hiddenSize],
    ["intermediateSize", "intermediateSize", intermediateSize],
    ["heads", "heads x headSize", heads * headSize],
    ["kvHeads", "the width of q, k and v", (heads + 2 * kvHeads) * headSize],
  ];
  return widths
    .filter(([, , width]) => width % fp8Multiple !== 0)
    .map(([path, what, width]) => ({
      path: `${prefix}${path}`,
      message: `precision fp8 needs a multiple of ${fp8Multiple} for ${what}, got ${width}`,
    }));
}
