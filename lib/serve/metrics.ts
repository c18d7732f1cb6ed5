import type { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Engine, EngineState } from "../generate/engine.js";
import { RouteTimes } from "./route-times.js";

/** Upper ends of the latencies' classes, in seconds. */
const buckets = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300,
];

/** Counts the times of one answer's tokens. */
export interface TokenClock {
  /** @param nowMs when they were sent, by `performance.now()` */
  count(tokens: number, nowMs: number): void;
}

/** Time that the speed is a mean over. */
const speedMs = 10_000;

/** Figures of a server and its engine, in Prometheus' text format. */
export class ServerMetrics {
  readonly contentType: string;
  readonly #registry: Registry;
  readonly #requests: Counter<"route" | "status">;
  readonly #firstToken: Histogram<"route">;
  readonly #betweenTokens: RouteTimes;
  readonly #whole: Histogram<"route">;
  readonly #cut: Counter;
  readonly #history: { at: number; written: number }[] = [];
  readonly #timer: NodeJS.Timeout;

  private constructor(prom: typeof import("prom-client"), engine: Engine, open: () => number) {
    const registry = new prom.Registry();
    const registers = [registry];
    this.#registry = registry;
    this.contentType = registry.contentType;
    const histogram = (name: string, help: string) =>
      new prom.Histogram({ name, help, labelNames: ["route"] as const, buckets, registers });
    this.#firstToken = histogram(
      "llamaforge_first_token_seconds",
      "Time from a request to an answer's first token",
    );
    this.#betweenTokens = new RouteTimes(
      "llamaforge_between_tokens_seconds",
      "Time between two tokens of an answer",
      buckets,
    );
    registry.registerMetric(this.#betweenTokens as unknown as Histogram<"route">);
    this.#whole = histogram("llamaforge_request_seconds", "Time from a request to its end");
    this.#requests = new prom.Counter({
      name: "llamaforge_http_requests_total",
      help: "Requests by route and status",
      labelNames: ["route", "status"] as const,
      registers,
    });
    this.#cut = new prom.Counter({
      name: "llamaforge_clients_gone_total",
      help: "Requests whose client left or was cut off before the answer's end",
      registers,
    });
    const gauge = (name: string, help: string, value: () => number): Gauge => {
      const made: Gauge = new prom.Gauge({
        name,
        help,
        registers,
        collect: () => made.set(value()),
      });
      return made;
    };
    const counter = (name: string, help: string, field: keyof EngineState): void => {
      const made: Counter = new prom.Counter({
        name,
        help,
        registers,
        collect: () => {
          made.reset();
          made.inc(engine.state[field]);
        },
      });
    };
    gauge("llamaforge_connections", "Open connections", open);
    gauge("llamaforge_queue", "Answers that wait for room", () => engine.state.waiting);
    gauge("llamaforge_batch", "Answers that are being written", () => engine.state.running);
    gauge("llamaforge_cache_pages", "Pages of the cache", () => engine.state.pages);
    gauge(
      "llamaforge_cache_pages_free",
      "Pages of the cache that no answer holds",
      () => engine.state.freePages,
    );
    gauge("llamaforge_cache_page_tokens", "Tokens of a page", () => engine.state.pageSize);
    gauge(
      "llamaforge_tokens_per_second",
      `Tokens written per second, over the last ${speedMs / 1000} seconds`,
      () => this.#speed(engine.state.writtenTokens),
    );
    counter("llamaforge_prompt_tokens_total", "Tokens of prompts computed", "promptTokens");
    counter(
      "llamaforge_shared_tokens_total",
      "Tokens of prompts taken from earlier prompts",
      "sharedTokens",
    );
    counter("llamaforge_written_tokens_total", "Tokens written", "writtenTokens");
    counter("llamaforge_steps_total", "Steps of the model", "steps");
    this.#timer = setInterval(() => this.#note(engine.state.writtenTokens), 1000);
    this.#timer.unref();
    this.#note(engine.state.writtenTokens);
  }

  /** @param open number of open connections */
  static async create(engine: Engine, open: () => number): Promise<ServerMetrics> {
    // Loaded here, so that programs without a server do not load it.
    const { default: prom } = await import("prom-client");
    return new ServerMetrics(prom, engine, open);
  }

  async text(): Promise<string> {
    return await this.#registry.metrics();
  }

  /** Counts a request at its end. @param status null if its client has gone */
  ended(route: string, status: number | null, seconds: number): void {
    if (status === null) this.#cut.inc();
    else this.#requests.inc({ route, status: String(status) });
    this.#whole.observe({ route }, seconds);
  }

  /** A clock of one answer's tokens. */
  clock(route: string, startMs: number): TokenClock {
    let last: number | null = null;
    return {
      count: (tokens, nowMs) => {
        if (tokens === 0) return;
        if (last === null) this.#firstToken.observe({ route }, (nowMs - startMs) / 1000);
        // A part may bring several tokens, which share the time since the part before.
        const between = (nowMs - (last ?? nowMs)) / tokens / 1000;
        this.#betweenTokens.observe(route, between, last === null ? tokens - 1 : tokens);
        last = nowMs;
      },
    };
  }

  close(): void {
    clearInterval(this.#timer);
    this.#registry.clear();
  }

  #note(written: number): void {
    const at = performance.now();
    this.#history.push({ at, written });
    while ((this.#history[0]?.at ?? at) < at - speedMs) this.#history.shift();
  }

  #speed(written: number): number {
    const [oldest] = this.#history;
    if (!oldest) return 0;
    return ((written - oldest.written) * 1000) / Math.max(1, performance.now() - oldest.at);
  }
}
