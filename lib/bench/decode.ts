import type { Device } from "../core/device.js";
import { memory } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { Engine } from "../generate/engine.js";
import { createModel } from "../model/architectures.js";
import type { LanguageModel } from "../model/language-model.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { describeDevice } from "../train/machine.js";
import { copyRate } from "./copy-rate.js";
import { type BenchEnvironment, benchEnvironment, median } from "./environment.js";
import type { DecodePeer } from "./peer.js";

export interface DecodeBenchOptions {
  modelName: string;
  model: ArchitectureConfig;
  device: Device;
  precision: "bf16" | "fp32";
  /** Numbers of sequences that are written at once. */
  batches: readonly number[];
  /** Tokens of each prompt. */
  promptTokens: number;
  /** Tokens that each sequence writes. */
  tokens: number;
  /** Timed runs; the medians count. */
  runs: number;
  onProgress?: (message: string) => void;
}

/** Decoding of one number of sequences. */
export interface DecodeRow {
  batch: number;
  /** Tokens of all sequences together, after the prompts. */
  tokensPerSecond: number;
  /** Milliseconds from one token of a sequence to its next: median, and 99 of 100. */
  betweenMs: { median: number; p99: number };
  /** Milliseconds to the first token of the last sequence, all prompts included. */
  firstMs: number;
  /** Tokens/s if reading weights and cache at the copy's rate took all of the time. */
  limit: number;
  /** Share of the limit, 0 to 1. */
  share: number;
}

export interface DecodeResult extends BenchEnvironment {
  benchmark: "decode";
  /** `shape`: the model's own configuration. */
  model: { name: string; parameters: number; shape: ArchitectureConfig };
  run: { precision: "bf16" | "fp32"; promptTokens: number; tokens: number; runs: number };
  /** Bytes per second of a large copy on the device, reads and writes added. */
  copyBytesPerSecond: number;
  peakBytes: number;
  rows: DecodeRow[];
  /** Another program's measurement of the same, if one ran. */
  peer?: DecodePeer;
}

/**
 * Measures greedy decoding through an engine. The weights are random, because the time does not
 * depend on them.
 * @throws ArgumentError if prompt and tokens exceed the model's context
 * @throws OutOfMemoryError if a batch does not fit the device
 */
export async function benchDecode(options: DecodeBenchOptions): Promise<DecodeResult> {
  const { device, precision, batches, promptTokens, tokens, runs, onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const copyBytesPerSecond = await copyRate(device, precision);
  const dtype = precision === "bf16" ? "bf16" : "f32";
  const model = await createModel(options.model, { device, dtype, seed: 1 });
  const rows: DecodeRow[] = [];
  const context = promptTokens + tokens;
  try {
    for (const batch of batches) {
      onProgress(`decoding ${batch} sequences`);
      using engine = new Engine(model, null, {
        maxBatch: batch,
        maxLength: Math.ceil(context / 64) * 64,
        prefixCache: false,
      });
      await decodeOnce(engine, batch, promptTokens, Math.min(tokens, 16));
      const measured: Awaited<ReturnType<typeof decodeOnce>>[] = [];
      for (let run = 0; run < runs; run++) {
        measured.push(await decodeOnce(engine, batch, promptTokens, tokens));
      }
      const rate = median(measured.map(({ tokensPerSecond }) => tokensPerSecond));
      const middle = measured.find(({ tokensPerSecond }) => tokensPerSecond === rate);
      const { betweenMs, firstMs } = middle as (typeof measured)[number];
      const bytes = bytesPerStep(model, batch, promptTokens + tokens / 2);
      const limit = (batch * copyBytesPerSecond) / bytes;
      rows.push({ batch, tokensPerSecond: rate, betweenMs, firstMs, limit, share: rate / limit });
      await engine.idle();
    }
    return {
      ...benchEnvironment(device, name),
      benchmark: "decode",
      model: {
        name: options.modelName,
        parameters: model.cost.parameterCount,
        shape: options.model,
      },
      run: { precision, promptTokens, tokens, runs },
      copyBytesPerSecond,
      peakBytes: memory(device).peakBytes,
      rows,
    };
  } finally {
    model.dispose();
  }
}

/** Writes `batch` answers at once. */
async function decodeOnce(engine: Engine, batch: number, promptTokens: number, tokens: number) {
  const { vocabSize } = engine.model.config;
  const start = performance.now();
  const times = await Promise.all(
    Array.from({ length: batch }, async (_, row) => {
      const prompt = Array.from(
        { length: promptTokens },
        (_, i) => (i * 7919 + row * 31) % vocabSize,
      );
      const own: number[] = [];
      const options = { maxTokens: tokens, temperature: 0, ignoreEnd: true };
      for await (const part of engine.generate(prompt, options)) {
        for (const _ of part.tokens) own.push(performance.now());
      }
      return own;
    }),
  );
  const first = Math.max(...times.map((own) => own[0] as number));
  const last = Math.max(...times.map((own) => own.at(-1) as number));
  // Tokens that were written while prompts of others were still computed do not count.
  const counted = times.flat().filter((time) => time > first).length;
  const between = times
    .flatMap((own) => own.slice(1).map((time, i) => time - (own[i] as number)))
    .sort((a, b) => a - b);
  return {
    tokensPerSecond: counted / ((last - first) / 1000),
    betweenMs: {
      median: between[Math.floor(between.length / 2)] as number,
      p99: between[Math.floor(between.length * 0.99)] as number,
    },
    firstMs: first - start,
  };
}

/** Bytes that one step reads at least: the weights of its products, and the cached tokens. */
function bytesPerStep(model: LanguageModel, batch: number, cached: number): number {
  const size = model.store.dtype === "bf16" ? 2 : 4;
  const page = scope(() => model.createPages(1, 1).reduce((sum, layer) => sum + layer.size, 0));
  // Training takes 6 operations per weight of a product.
  const weights = model.cost.flops(1).linear / 6;
  return size * (weights + batch * cached * page);
}
