import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import type { Device } from "../core/device.js";
import { UsageError } from "../core/errors.js";
import { Tokenizer } from "../data/tokenizer.js";
import { Engine } from "../generate/engine.js";
import { createModel } from "../model/architectures.js";
import type { ArchitectureConfig } from "../model/shapes.js";
import { serve } from "../serve/server.js";
import { describeDevice } from "../train/machine.js";
import { type BenchEnvironment, benchEnvironment } from "./environment.js";

export interface ServeBenchOptions {
  modelName: string;
  model: ArchitectureConfig;
  device: Device;
  precision: "bf16" | "fp32";
  /** Requests a second, one measurement for each number. They arrive at random (Poisson). */
  rates: readonly number[];
  /** Requests of each measurement. */
  requests: number;
  promptTokens: number;
  /** Tokens of each answer. */
  tokens: number;
  onProgress?: (message: string) => void;
}

/** Milliseconds that half of the requests, and 99 of 100, stay within. */
export interface Spread {
  p50: number;
  p99: number;
}

/** Latencies and throughput of a server at one rate of arrivals. */
export interface ServeRow {
  /** Requests a second that were sent. */
  rate: number;
  answered: number;
  /** Messages of requests that were not answered. */
  failures: string[];
  /** Of all answers together, from the first request to the last answer's end. */
  tokensPerSecond: number;
  /** From a request to the first text of its answer. */
  firstMs: Spread;
  /** Between two tokens of an answer, on the average of each answer. */
  betweenMs: Spread;
  /** From a request to the end of its answer. */
  wholeMs: Spread;
}

export interface ServeResult extends BenchEnvironment {
  benchmark: "serve";
  model: { name: string; parameters: number };
  run: { precision: "bf16" | "fp32"; promptTokens: number; tokens: number; requests: number };
  rows: ServeRow[];
}

/** What the sending thread is told. @internal */
export interface ClientOptions {
  url: string;
  rates: readonly number[];
  requests: number;
  prompts: readonly (readonly number[])[];
  tokens: number;
}

/** Times of one answer, in milliseconds from its request. @internal */
export interface RequestTimes {
  /** Arrivals of its text. */
  events: number[];
  tokens: number;
  endMs: number;
}

const tokenizerFile = fileURLToPath(
  new URL("../../assets/quickstart/tokenizer.json", import.meta.url),
);

/**
 * Measures a server under requests that arrive at random, over HTTP on this machine: time to the
 * first token, time between tokens, and throughput. The weights are random, because the time does
 * not depend on them.
 * @throws ArgumentError if prompt and answer exceed the model's context
 * @throws UsageError if the sending thread fails
 */
export async function benchServe(options: ServeBenchOptions): Promise<ServeResult> {
  const { device, precision, rates, requests, promptTokens, tokens } = options;
  const { onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const dtype = precision === "bf16" ? "bf16" : "f32";
  const model = await createModel(options.model, { device, dtype, seed: 1 });
  const rows: ServeRow[] = [];
  try {
    const tokenizer = await Tokenizer.load(tokenizerFile);
    const maxLength = Math.ceil((promptTokens + tokens) / 64) * 64;
    using engine = new Engine(model, tokenizer, { maxLength, maxQueue: requests });
    const server = await serve(engine, { port: 0, maxConnections: requests + 16 });
    try {
      const client: ClientOptions = {
        url: server.url,
        rates,
        requests,
        prompts: Array.from({ length: 64 }, (_, row) =>
          Array.from(
            { length: promptTokens },
            (_, i) => (i * 7919 + row * 31) % tokenizer.vocabSize,
          ),
        ),
        tokens,
      };
      const worker = new Worker(new URL("./serve-client.js", import.meta.url), {
        workerData: client,
      });
      worker.on("message", ({ rate, times, seconds }) => {
        const row = rowOf(rate, times, seconds);
        onProgress(`${rate} requests a second: ${row.tokensPerSecond.toFixed(0)} tokens/s`);
        rows.push(row);
      });
      await once(worker, "exit").catch((error: Error) => {
        throw new UsageError(`the thread that sends the requests failed: ${error.message}`);
      });
    } finally {
      await server.close();
    }
    await engine.idle();
    return {
      ...benchEnvironment(device, name),
      benchmark: "serve",
      model: { name: options.modelName, parameters: model.cost.parameterCount },
      run: { precision, promptTokens, tokens, requests },
      rows,
    };
  } finally {
    model.dispose();
  }
}

function rowOf(rate: number, times: (RequestTimes | string)[], seconds: number): ServeRow {
  const answers = times.filter((time) => typeof time !== "string");
  const written = answers.reduce((sum, { tokens }) => sum + tokens, 0);
  const between = answers.flatMap(({ events, tokens, endMs }) =>
    tokens > 1 ? [(endMs - (events[0] ?? endMs)) / (tokens - 1)] : [],
  );
  return {
    rate,
    answered: answers.length,
    failures: times.filter((time) => typeof time === "string"),
    tokensPerSecond: written / seconds,
    firstMs: spreadOf(answers.map(({ events, endMs }) => events[0] ?? endMs)),
    betweenMs: spreadOf(between),
    wholeMs: spreadOf(answers.map(({ endMs }) => endMs)),
  };
}

function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
  return { p50: at(0.5), p99: at(0.99) };
}
