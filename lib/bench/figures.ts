import { isDeepStrictEqual } from "node:util";
import type { Precision } from "../config/resolve.js";
import { presets } from "../model/presets.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { flopsPerToken, modelFlopsUtilisation, peakOf } from "../plan/flops.js";
import { publishedHoursPer300B } from "../plan/plan.js";

/**
 * An A100's dense bf16 peak in TFLOP/s (NVIDIA's data sheet), used to convert device-hours into
 * A100-hours.
 */
const a100Tflops = 312;

/** Tokens/s of one A100-40G in TinyLlama's README, with this model and sequences of 2048. */
const tinyLlamaTokensPerSecond = 24_000;

/** A rate under one convention for the cost of a token. */
export interface CountedRate {
  gflopPerToken: number;
  tflops: number;
  /** Share of the peak, 0 to 1; null if no peak is known. */
  mfu: number | null;
}

/** Figures derived from tokens/s. */
export interface ParityFigures {
  /** Counts only the necessary half of attention. */
  causal: CountedRate;
  /**
   * TinyLlama's convention: attention counted without the causal mask, the embedding's lookup not
   * counted.
   */
  fullAttention: CountedRate;
  /** The peak that `mfu` refers to, or the reason why there is none. */
  peak: { name: string; tflops: number; source: string } | { unknown: string };
  per300B: {
    deviceHours: number;
    /**
     * Hours on an A100 that reaches the same share of its peak; null if this device's peak is
     * unknown.
     */
    a100Hours: number | null;
  };
  /**
   * Published figures for models of this size; only for the model that they can be compared with.
   */
  published: {
    tokensPerSecond: { what: string; value: number };
    a100HoursPer300B: { model: string; hours: number }[];
  } | null;
}

/** @param tokensPerSecond of one device */
export function parityFigures(
  model: ArchitectureConfig,
  sequenceLength: number,
  precision: Precision,
  device: string,
  tokensPerSecond: number,
): ParityFigures {
  const { causal, fullAttention } = flopsPerToken(model, sequenceLength);
  const known = precision === "bf16" ? peakOf(device) : undefined;
  const counted = (flops: number): CountedRate => ({
    gflopPerToken: flops / 1e9,
    tflops: (tokensPerSecond * flops) / 1e12,
    mfu: known ? modelFlopsUtilisation(tokensPerSecond, flops, known.tflops) : null,
  });
  const deviceHours = 300e9 / tokensPerSecond / 3600;
  return {
    causal: counted(causal),
    fullAttention: counted(fullAttention),
    peak: known
      ? { ...known, source: "NVIDIA's data sheet, dense bf16" }
      : { unknown: whyNoPeak(precision, device) },
    per300B: {
      deviceHours,
      a100Hours: known ? (deviceHours * known.tflops) / a100Tflops : null,
    },
    published: isDeepStrictEqual(model, presets["tinyllama-1.1b"])
      ? {
          tokensPerSecond: { what: "TinyLlama on one A100-40G", value: tinyLlamaTokensPerSecond },
          a100HoursPer300B: publishedHoursPer300B.map((row) => ({ ...row })),
        }
      : null,
  };
}

function whyNoPeak(precision: string, device: string): string {
  if (precision !== "bf16") return `the table of peaks is for bf16, and this ran in ${precision}`;
  return `the table of peaks has no ${device}`;
}
