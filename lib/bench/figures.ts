import { isDeepStrictEqual } from "node:util";
import { presets } from "../model/presets.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { flopsPerToken, modelFlopsUtilisation, peakOf } from "../plan/flops.js";
import { publishedHoursPer300B } from "../plan/plan.js";

/** An A100's dense bf16 peak in TFLOP/s (NVIDIA's data sheet), by which device-hours become A100-hours. */
const a100Tflops = 312;

/** What TinyLlama's README gives for one A100-40G, with this model and sequences of 2048. */
const tinyLlamaTokensPerSecond = 24_000;

/** A rate counted in one convention of what a token costs. */
export interface CountedRate {
  gflopPerToken: number;
  tflops: number;
  /** Share of the peak, 0 to 1; null if no peak is known. */
  mfu: number | null;
}

/** What follows from tokens/s. */
export interface ParityFigures {
  /** Only the half of attention that is needed. */
  causal: CountedRate;
  /** TinyLlama's convention: attention as if nothing were masked, the embedding's lookup not counted. */
  fullAttention: CountedRate;
  /** What `mfu` is a share of, or why there is none. */
  peak: { name: string; tflops: number; source: string } | { unknown: string };
  per300B: {
    deviceHours: number;
    /** At an A100's peak instead of this device's, the same share of it used; null if this one's is unknown. */
    a100Hours: number | null;
  };
  /** What others published for models of this size; only beside the model that they compare with. */
  published: {
    tokensPerSecond: { what: string; value: number };
    a100HoursPer300B: { model: string; hours: number }[];
  } | null;
}

/** @param tokensPerSecond of one device */
export function parityFigures(
  model: ArchitectureConfig,
  sequenceLength: number,
  precision: "bf16" | "fp32",
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
