import {
  argumentError,
  checkArray,
  checkDType,
  checkFloat,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
  checkRank,
  checkSameDevice,
  checkShape,
  checkTensor,
} from "../core/check.js";
import { tensor } from "../core/create.js";
import { ArgumentError, ShapeError } from "../core/errors.js";
import { native } from "../core/native.js";
import { empty, type Tensor } from "../core/tensor.js";

function indices(op: string, name: string, x: Tensor): Tensor {
  if (x.rank === 0) {
    throw new ShapeError(`[${op}] expected at least 1 axis for ${name} but received shape []`);
  }
  return empty(x.shape.slice(0, -1), { dtype: "i32", device: x.device }, op);
}

/**
 * Index of the largest element along the last axis: the first among equals. A NaN counts as the
 * largest.
 * @param x (..., n)
 * @returns (...) i32
 */
export function argmax(x: Tensor): Tensor {
  checkTensor("argmax", "x", x);
  const index = indices("argmax", "x", x);
  native.argmax(x.native, index.native);
  return index;
}

/** How a token is chosen among logits. */
export interface SampleOptions {
  /** Divides the logits; 0 always takes the most likely token. Default: 1. */
  temperature?: number;
  /**
   * Keeps the k most likely tokens; of equally likely ones, the lower ids. Default: 0, all tokens.
   */
  topK?: number;
  /**
   * Of those, keeps the smallest set of most likely tokens that reaches this probability. Default:
   * 1, all of them.
   */
  topP?: number;
  /** Seed of the sequence of random numbers. */
  seed: number;
  /** Position of the first row's number in the sequence; row i uses offset + i. Default: 0. */
  offset?: number;
}

/**
 * Draws a token for each row of logits.
 * @param logits (..., vocabulary) bf16 or f32; -inf for tokens that must not be drawn
 * @returns ids (...) i32
 * @throws NonFiniteError, at the next wait, if a logit is NaN or +inf, or all logits of a row are
 *   -inf
 * @see Holtzman et al. 2019, arXiv 1904.09751 (top-p)
 */
export function sample(logits: Tensor, options: SampleOptions): Tensor {
  checkFloat("sample", "logits", logits);
  if (options === undefined)
    throw argumentError("sample", "an object with a seed", "options", options);
  checkOptions("sample", options, ["temperature", "topK", "topP", "seed", "offset"]);
  const { temperature = 1, topK = 0, topP = 1, seed, offset = 0 } = options;
  checkNumber("sample", "temperature", temperature, { min: 0 });
  checkInteger("sample", "topK", topK, { min: 0 });
  checkTopP("sample", topP);
  checkInteger("sample", "seed", seed);
  checkInteger("sample", "offset", offset, { min: 0 });
  const ids = indices("sample", "logits", logits);
  native.sample(logits.native, ids.native, temperature, topK, topP, seed, offset);
  return ids;
}

/** Settings of one row of `sampleRows`. */
export interface RowSampling extends SampleOptions {
  /** Drops tokens less likely than this share of the likeliest one's probability. Default: 0. */
  minP?: number;
  /**
   * Divides the logits of tokens of the prompt and the output, and multiplies negative ones.
   * Default: 1.
   */
  repetitionPenalty?: number;
  /** Is subtracted from the logits of the output's tokens. Default: 0. */
  presencePenalty?: number;
  /** Is subtracted from a token's logit for each time that the output has it. Default: 0. */
  frequencyPenalty?: number;
  /** Row of `counts` that holds the sequence's tokens; the penalties need it. Default: none. */
  counts?: number;
  /** Row of `bias` that is added to the logits. Default: none. */
  bias?: number;
}

/** Tables of `sampleRows` that rows of logits refer to by index. */
export interface SampleTables {
  /**
   * (rows, vocabulary) i32: how often each token is in the output, plus `promptToken` if it is in
   * the prompt. The chosen tokens are counted.
   */
  counts?: Tensor | undefined;
  /** (rows, vocabulary) f32, added to logits; -inf bans a token. */
  bias?: Tensor | undefined;
}

/** The bit of `counts` that marks a token of the prompt. */
export const promptToken = 2 ** 30;

/**
 * Draws a token for each row of logits by settings of its own. A row's token depends on its own
 * logits and settings alone. The order of the rules: penalties, bias, temperature, top-k, top-p of
 * what is left, min-p.
 * @param logits   (rows, vocabulary) bf16 or f32; -inf for tokens that must not be drawn
 * @param settings one for each row
 * @returns `ids` (rows) i32, and `logprobs` (rows) f32: the log-probability of each id in nats,
 *   under the logits as given
 * @throws NonFiniteError, at the next wait, if a logit is NaN or +inf, or no token of a row is
 *   possible
 * @see Holtzman et al. 2019, arXiv 1904.09751 (top-p); Nguyen et al. 2024, arXiv 2407.01082
 *   (min-p); Keskar et al. 2019, arXiv 1909.05858 (repetition penalty)
 */
export function sampleRows(
  logits: Tensor,
  settings: readonly RowSampling[],
  tables: SampleTables = {},
): { ids: Tensor; logprobs: Tensor } {
  const op = "sampleRows";
  checkFloat(op, "logits", logits);
  checkRank(op, "logits", logits, 2);
  checkArray(op, "settings", settings, "an array of settings, one for each row of logits");
  checkObject(op, "tables", tables, "tables: { counts, bias }");
  checkOptions(op, tables, ["counts", "bias"]);
  const [rows, vocabulary] = logits.shape as [number, number];
  if (settings.length !== rows) {
    throw new ShapeError(
      `[${op}] expected settings for ${rows} rows of logits but received ${settings.length}`,
    );
  }
  const { counts, bias } = tables;
  const { device } = logits;
  for (const [name, table, dtype] of [
    ["counts", counts, "i32"],
    ["bias", bias, "f32"],
  ] as const) {
    if (table === undefined) continue;
    checkDType(op, name, table, dtype);
    checkSameDevice(op, logits, table);
    checkShape(op, name, table, [null, vocabulary], "rows, vocabulary of the logits");
  }
  const { reals, numbers } = encodeSampling(settings, tables);
  const results = {
    ids: empty([rows], { dtype: "i32", device }, op),
    logprobs: empty([rows], { dtype: "f32", device }, op),
  };
  const encoded = {
    reals: tensor(reals, { shape: [rows, 6], device }),
    numbers: tensor(numbers, { shape: [rows, 6], dtype: "i32", device }),
  };
  sampleEncodedRows(logits, encoded, tables, results);
  encoded.reals.dispose();
  encoded.numbers.dispose();
  return results;
}

/**
 * `sampleRows` with settings that are on the device already, as `encodeSampling` writes them, into
 * tensors that exist.
 * @internal
 */
export function sampleEncodedRows(
  logits: Tensor,
  { reals, numbers }: { reals: Tensor; numbers: Tensor },
  { counts, bias }: SampleTables,
  { ids, logprobs }: { ids: Tensor; logprobs: Tensor },
): void {
  native.sampleRows(
    logits.native,
    reals.native,
    numbers.native,
    counts?.native ?? null,
    bias?.native ?? null,
    ids.native,
    logprobs.native,
  );
  counts?.changed("sampleRows");
}

/**
 * The ids of a step whose predecessor's ids only the device knows.
 * @param known  (n) i32
 * @param source (n) i32: below 0 for an id of `known`, else the index of an id in `latest`
 * @param latest (m) i32, m at least 1
 * @returns (n) i32
 * @throws NativeError `ERR_INDEX`, at the next wait, if an index is not below m
 */
export function latestIds(known: Tensor, source: Tensor, latest: Tensor): Tensor {
  const op = "latestIds";
  checkDType(op, "known", known, "i32");
  checkDType(op, "source", source, "i32");
  checkDType(op, "latest", latest, "i32");
  checkSameDevice(op, known, source);
  checkSameDevice(op, known, latest);
  checkShape(op, "source", source, known.shape, "the shape of known");
  const ids = empty(known.shape, { dtype: "i32", device: known.device }, op);
  native.latestIds(known.native, source.native, latest.native, ids.native);
  return ids;
}

/** Place of a draw's number in the numbers of a row. @internal */
export const drawNumber = 3;

/**
 * Checks settings and writes them in the kernel's order (csrc/ops/checks/choice.h), six reals and six
 * numbers a row.
 * @internal
 */
export function encodeSampling(
  settings: readonly RowSampling[],
  tables: SampleTables,
): { reals: Float32Array; numbers: Int32Array } {
  const op = "sampleRows";
  const reals = new Float32Array(6 * settings.length);
  const numbers = new Int32Array(6 * settings.length);
  const taken = new Set<number>();
  const rowsOf = (table: Tensor | undefined) => (table?.shape[0] ?? 0) - 1;
  for (const [row, given] of settings.entries()) {
    checkObject(op, `settings[${row}]`, given, "settings with a seed");
    checkOptions(op, given, rowOptions);
    const { temperature = 1, topK = 0, topP = 1, seed, offset = 0, minP = 0 } = given;
    const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = given;
    const { counts = -1, bias = -1 } = given;
    checkTemperature(op, temperature);
    checkNumber(op, "minP", minP, { min: 0, max: 1 });
    checkTopP(op, topP);
    checkNumber(op, "repetitionPenalty", repetitionPenalty, { min: 2 ** -126 });
    checkNumber(op, "presencePenalty", presencePenalty);
    checkNumber(op, "frequencyPenalty", frequencyPenalty);
    checkInteger(op, "topK", topK, { min: 0, max: 2 ** 31 - 1 });
    checkInteger(op, "seed", seed);
    checkInteger(op, "offset", offset, { min: 0, max: 2 ** 31 - 1 });
    checkInteger(op, "counts", counts, { min: -1, max: rowsOf(tables.counts) });
    checkInteger(op, "bias", bias, { min: -1, max: rowsOf(tables.bias) });
    if (counts >= 0 && taken.has(counts)) {
      throw new ArgumentError(`[${op}] expected a row of counts for each row, got ${counts} twice`);
    }
    taken.add(counts);
    const penalties = [repetitionPenalty, presencePenalty, frequencyPenalty];
    // A share below the least number of fp32 must not become 0, which means no token.
    reals.set([temperature, Math.max(topP, 2 ** -126), minP, ...penalties], 6 * row);
    const high = Math.floor(seed / 2 ** 32);
    numbers.set([topK, (seed % 2 ** 32) | 0, high | 0, offset, counts, bias], 6 * row);
  }
  return { reals, numbers };
}

const rowOptions = [
  "temperature",
  "topK",
  "topP",
  "seed",
  "offset",
  "minP",
  "repetitionPenalty",
  "presencePenalty",
  "frequencyPenalty",
  "counts",
  "bias",
];

function checkTemperature(op: string, temperature: unknown): void {
  checkNumber(op, "temperature", temperature, { min: 0, max: 1e30 });
}

function checkTopP(op: string, topP: unknown): void {
  if (!(typeof topP === "number" && topP > 0 && topP <= 1)) {
    throw argumentError(op, "a number above 0 and at most 1", "topP", topP);
  }
}
