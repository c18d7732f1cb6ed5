import { OutOfMemoryError } from "../core/errors.js";
import { pageBytes } from "../generate/cache-size.js";
import type { LanguageModel } from "../model/language-model.js";
import { usableBytes } from "./pass-limits.js";
import type { EvalWorld } from "./world.js";

/** Tokens of a page of the cache. */
export const pageSize = 64;

/** Answers that "auto" writes at once. More do not use the device any better. */
const mostRows = { cpu: 64, cuda: 256 };
/** Answers that are written at once at most. Each has a row in the engine's tables. */
const rowLimit = 4096;
/** Prompt tokens that a step computes beside the newest token of each answer. */
const promptTokens = { cpu: 512, cuda: 2048 };

/** Sizes of the engine that writes answers. */
export interface AnswerLimits {
  /** Answers that are written at once. */
  maxBatch: number;
  /** Pages of the cache, and pages of the longest text. */
  pages: number;
  mostPages: number;
  /** Prompt tokens that one step computes. */
  promptTokens: number;
}

/**
 * Plans the engine that writes answers. Its cache takes half of the free memory at most; answers
 * beyond that wait.
 * @param batch answers that are written at once, or "auto"
 * @param count number of answers in all
 * @param longest tokens of the longest prompt with its answer
 * @param world ranks that write the same answers; the one with the least memory decides
 * @throws ArgumentError for a model without a paged cache
 * @throws OutOfMemoryError if the longest text does not fit
 */
export async function answerLimits(
  model: LanguageModel,
  batch: number | "auto",
  count: number,
  longest: number,
  world?: EvalWorld,
): Promise<AnswerLimits> {
  const { type } = model.device;
  const maxBatch = Math.min(count, rowLimit, batch === "auto" ? mostRows[type] : batch);
  const mostPages = Math.ceil(longest / pageSize);
  const each = pageBytes(model, pageSize);
  const planned = Float64Array.of(Math.floor(usableBytes(model) / 2 / each));
  const all = world ? await world.gather(planned) : [planned];
  const room = Math.min(...all.map(([pages]) => pages as number));
  if (room < mostPages) {
    throw new OutOfMemoryError(
      `[answers] a text of ${longest} tokens needs ${mostPages * each} bytes of cache, ` +
        `but half of the free memory holds ${Math.max(0, room) * each}`,
    );
  }
  const pages = Math.min(maxBatch * mostPages, room);
  return { maxBatch, pages, mostPages, promptTokens: promptTokens[type] };
}
