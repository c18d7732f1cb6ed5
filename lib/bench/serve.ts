import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
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
  /**
   * Streams at once, one measurement for each number: over HTTP, and beside it as many answers of
   * the engine alone.
   */
  streams: readonly number[];
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

/** Streams over HTTP beside the same answers of the engine alone; medians of three runs each. */
export interface StreamsRow {
  /** Answers at once. */
  streams: number;
  /** Of all answers together, from the first token of all to the last one's end. */
  engineTokensPerSecond: number;
  httpTokensPerSecond: number;
  /** Share of the engine's rate that is left over HTTP. */
  ratio: number;
  /** Server-sent events for each token; below 1 where some had several tokens. */
  eventsPerToken: number;
  /** Processor time of the server's event loop for each token over HTTP, in microseconds. */
  javascriptUsPerToken: number;
}

export interface ServeResult extends BenchEnvironment {
  benchmark: "serve";
  model: { name: string; parameters: number };
  run: { precision: "bf16" | "fp32"; promptTokens: number; tokens: number; requests: number };
  rows: ServeRow[];
  streams: StreamsRow[];
}

/** First message to the process that sends the requests. @internal */
export interface ClientOptions {
  url: string;
  prompts: readonly (readonly number[])[];
  tokens: number;
}

/**
 * One measurement of that process: requests at random times, or streams that begin at once.
 * @internal
 */
export type ClientTask = { rate: number; requests: number } | { streams: number };

/** Times of requests at random, and the time until the last one's end. @internal */
export interface LoadTimes {
  times: (RequestTimes | string)[];
  seconds: number;
}

/** Times of one answer, in milliseconds from one moment. @internal */
export interface RequestTimes {
  /** Arrivals of its text. */
  events: number[];
  tokens: number;
  endMs: number;
}

const tokenizerFile = fileURLToPath(
  new URL("../../assets/quickstart/tokenizer.json", import.meta.url),
);

/** Runs of each measurement of streams. */
const streamRuns = 3;

/**
 * Measures a server over HTTP on this machine: under requests that arrive at random, time to the
 * first token, time between tokens, and throughput; with a number of streams at once, the share of
 * the engine's own rate. The weights are random, because the time does not depend on them.
 * @throws ArgumentError if prompt and answer exceed the model's context
 * @throws UsageError if the process that sends the requests fails
 */
export async function benchServe(options: ServeBenchOptions): Promise<ServeResult> {
  const { device, precision, rates, requests, streams, promptTokens, tokens } = options;
  const { onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const dtype = precision === "bf16" ? "bf16" : "f32";
  const model = await createModel(options.model, { device, dtype, seed: 1 });
  const rows: ServeRow[] = [];
  const streamRows: StreamsRow[] = [];
  try {
    const tokenizer = await Tokenizer.load(tokenizerFile);
    const maxLength = Math.ceil((promptTokens + tokens) / 64) * 64;
    const most = Math.max(requests, ...streams);
    using engine = new Engine(model, tokenizer, { maxLength, maxQueue: most });
    const server = await serve(engine, { port: 0, maxConnections: most + 16 });
    const prompts = Array.from({ length: 64 }, (_, row) =>
      Array.from({ length: promptTokens }, (_, i) => (i * 7919 + row * 31) % tokenizer.vocabSize),
    );
    const client = new Client({ url: server.url, prompts, tokens });
    try {
      for (const rate of rates) {
        const { times, seconds } = await client.ask<LoadTimes>({ rate, requests });
        const row = rowOf(rate, times, seconds);
        onProgress(`${rate} requests a second: ${row.tokensPerSecond.toFixed(0)} tokens/s`);
        rows.push(row);
      }
      for (const count of streams) {
        const row = await streamsRow(engine, client, count, prompts, tokens);
        onProgress(`${count} streams: ${(100 * row.ratio).toFixed(0)}% of the engine's rate`);
        streamRows.push(row);
      }
    } finally {
      client.close();
      await server.close();
    }
    await engine.idle();
    return {
      ...benchEnvironment(device, name),
      benchmark: "serve",
      model: { name: options.modelName, parameters: model.cost.parameterCount },
      run: { precision, promptTokens, tokens, requests },
      rows,
      streams: streamRows,
    };
  } finally {
    model.dispose();
  }
}

/** The process that sends the requests, so that its load is not that of the server's own. */
class Client {
  readonly #process: ChildProcess;
  readonly #failed: Promise<never>;

  constructor(options: ClientOptions) {
    this.#process = fork(fileURLToPath(new URL("./serve-client.js", import.meta.url)));
    this.#process.send(options);
    this.#failed = once(this.#process, "exit").then(([code, signal]) => {
      throw new UsageError(`the process that sends the requests ended with ${code ?? signal}`);
    });
    this.#failed.catch(() => {});
  }

  /** @throws UsageError if the process fails */
  async ask<T>(task: ClientTask): Promise<T> {
    this.#process.send(task);
    const [answer] = await Promise.race([once(this.#process, "message"), this.#failed]);
    return answer as T;
  }

  close(): void {
    this.#process.kill();
  }
}

/** Measures streams and the engine alone in turn, so that both see the same machine. */
async function streamsRow(
  engine: Engine,
  client: Client,
  streams: number,
  prompts: readonly (readonly number[])[],
  tokens: number,
): Promise<StreamsRow> {
  const alone: number[] = [];
  const http: number[] = [];
  const events: number[] = [];
  const cpuUs: number[] = [];
  // The first runs make the engine's graphs.
  for (let run = -1; run < streamRuns; run++) {
    const own = await Promise.all(
      Array.from({ length: streams }, (_, i) =>
        answerOf(engine, prompts[i % prompts.length] as number[], tokens),
      ),
    );
    const beginUs = loopUs();
    const times = await client.ask<RequestTimes[]>({ streams });
    const usedUs = loopUs() - beginUs;
    if (run < 0) continue;
    const written = times.reduce((sum, time) => sum + time.tokens, 0);
    alone.push(rateOf(own));
    http.push(rateOf(times));
    events.push(times.reduce((sum, time) => sum + time.events.length, 0) / written);
    cpuUs.push(usedUs / written);
  }
  const [engineTokensPerSecond, httpTokensPerSecond] = [median(alone), median(http)];
  return {
    streams,
    engineTokensPerSecond,
    httpTokensPerSecond,
    ratio: httpTokensPerSecond / engineTokensPerSecond,
    eventsPerToken: median(events),
    javascriptUsPerToken: median(cpuUs),
  };
}

/** One answer of the engine alone, with the times of its parts. */
async function answerOf(
  engine: Engine,
  prompt: readonly number[],
  tokens: number,
): Promise<RequestTimes> {
  const times: RequestTimes = { events: [], tokens: 0, endMs: 0 };
  const options = { maxTokens: tokens, temperature: 0, ignoreEnd: true };
  for await (const part of engine.generate(prompt, options)) {
    times.events.push(performance.now());
    times.tokens += part.tokens.length;
  }
  times.endMs = performance.now();
  return times;
}

/** Tokens a second from the first token of all to the last end; all answers began at once. */
function rateOf(times: readonly RequestTimes[]): number {
  const first = Math.min(...times.map(({ events, endMs }) => events[0] ?? endMs));
  const last = Math.max(...times.map(({ endMs }) => endMs));
  const tokens = times.reduce((sum, time) => sum + time.tokens - 1, 0);
  return (tokens / (last - first)) * 1000;
}

/** Processor time of this thread so far, in microseconds. NaN where the system does not tell it. */
function loopUs(): number {
  try {
    return Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]) / 1000;
  } catch {
    return Number.NaN;
  }
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] as number;

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
