/** A run's report that follows the run: a page of a server in the training process. */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, isIP } from "node:net";
import { UsageError } from "../core/errors.js";
import type { RunInfo, StepMetrics } from "../train/metrics.js";
import { chartData } from "./events.js";
import { header, renderReport, tables } from "./html.js";
import { prometheusText } from "./prometheus.js";

/** What the buttons do. Each returns a word to the user, or throws the reason why not. */
export interface DashboardActions {
  save: () => string;
  stop: () => string;
}

const host = "127.0.0.1";

/** Time between two messages to a page. A page that redraws more often is no more readable. */
const pauseMs = 500;

interface Listener {
  response: ServerResponse;
  /** Steps that it has. */
  sent: number;
  /** The lists as it has them. */
  tables: string;
}

/**
 * Serves a run on the loopback interface: `/` is its report, `/events` what is new as server-sent
 * events, `/metrics` the last step in Prometheus' format. `POST /save` and `POST /stop` need the
 * token, which only the process that started the run has printed.
 */
export class Dashboard {
  readonly #info: RunInfo;
  readonly #steps: StepMetrics[];
  readonly #actions: DashboardActions;
  readonly #token = randomBytes(16).toString("hex");
  readonly #server: Server;
  readonly #listeners = new Set<Listener>();
  #timer: NodeJS.Timeout | null = null;
  #state = "waits for the first step";
  #ended: string | null = null;

  private constructor(info: RunInfo, steps: StepMetrics[], actions: DashboardActions) {
    this.#info = info;
    this.#steps = steps;
    this.#actions = actions;
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch((error: unknown) => {
        if (!response.headersSent) response.writeHead(500, plain);
        response.end(`${(error as Error).message}\n`);
      });
    });
    // A page that is open does not keep the process alive.
    this.#server.unref();
  }

  /**
   * Starts to listen.
   * @param earlier steps of the run before this process, in order
   * @param port 0 takes a free one
   * @throws UsageError if the port cannot be listened at
   */
  static async open(
    info: RunInfo,
    earlier: readonly StepMetrics[],
    actions: DashboardActions,
    port = 0,
  ): Promise<Dashboard> {
    const dashboard = new Dashboard(info, [...earlier], actions);
    dashboard.#server.listen(port, host);
    try {
      await once(dashboard.#server, "listening");
    } catch (cause) {
      throw new UsageError(
        `the dashboard cannot listen at port ${port}: ${(cause as Error).message}`,
        {
          cause,
        },
      );
    }
    return dashboard;
  }

  /** The page's address, with the token that its buttons need. */
  get url(): string {
    const { port } = this.#server.address() as AddressInfo;
    return `http://${host}:${port}/#token=${this.#token}`;
  }

  /** Shows a step. Returns at once. */
  step(metrics: StepMetrics): void {
    this.#steps.push(metrics);
    this.#state = `step ${metrics.step.toLocaleString("en-US")} at ${metrics.time.slice(11, 19)} UTC`;
    this.#timer ??= setTimeout(() => this.#send(), pauseMs).unref();
  }

  /** Tells the pages how the run ended, and stops to serve. */
  async close(outcome: string): Promise<void> {
    if (this.#timer) clearTimeout(this.#timer);
    this.#send();
    this.#ended = outcome;
    for (const { response } of this.#listeners) {
      response.end(`event: end\ndata: ${outcome.replaceAll("\n", " ")}\n\n`);
    }
    this.#server.close();
    this.#server.closeIdleConnections();
    await new Promise((resolve) => setTimeout(resolve, 50));
    this.#server.closeAllConnections();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? "/", `http://${host}`);
    // The page of an attacker could point its own name at 127.0.0.1.
    const name = (request.headers.host ?? "").replace(/:\d+$/, "");
    if (isIP(name) === 0 && name !== "localhost") refuse(response, 403, "not this host");
    else if (pathname === "/save" || pathname === "/stop") this.#act(request, response, pathname);
    else if (request.method !== "GET") refuse(response, 405, "GET is expected");
    else if (pathname === "/events") this.#follow(response, Number(searchParams.get("from")));
    else if (pathname === "/metrics") {
      response.writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
      response.end(prometheusText(this.#info, this.#steps.at(-1)));
    } else if (pathname === "/") {
      response.writeHead(200, { "content-type": "text/html; charset=utf-8", ...noStore });
      response.end(await this.#page());
    } else refuse(response, 404, "there is no such page");
  }

  async #page(): Promise<string> {
    if (this.#steps.length === 0) {
      return `<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="1"><link rel="icon" href="data:,">
<title>LlamaForge</title><p>The run has not finished its first step yet.</p>`;
    }
    const script = await readFile(new URL("../../assets/report/live.js", import.meta.url), "utf8");
    return await renderReport({ info: this.#info, steps: this.#steps.slice() }, script);
  }

  /** Sends a page everything from a step on, now and later. */
  #follow(response: ServerResponse, from: number): void {
    response.writeHead(200, { "content-type": "text/event-stream", ...noStore });
    const sent = Number.isSafeInteger(from) && from >= 0 ? Math.min(from, this.#steps.length) : 0;
    const listener = { response, sent, tables: "" };
    this.#listeners.add(listener);
    response.on("close", () => this.#listeners.delete(listener));
    this.#sendTo(listener);
    if (this.#ended !== null) response.end(`event: end\ndata: ${this.#ended}\n\n`);
  }

  #send(): void {
    this.#timer = null;
    for (const listener of this.#listeners) this.#sendTo(listener);
  }

  #sendTo(listener: Listener): void {
    const { response, sent } = listener;
    // A page that does not read gets everything at once when it reads again.
    if (response.writableNeedDrain || this.#steps.length === 0) return;
    const lists = tables(this.#steps);
    const message = {
      from: sent,
      columns: {
        ...chartData(this.#steps.slice(sent), Number.MAX_SAFE_INTEGER),
        tasks: chartData(this.#steps).tasks,
      },
      header: header({ info: this.#info, steps: this.#steps }),
      tables: lists === listener.tables ? null : lists,
      state: this.#state,
    };
    listener.sent = this.#steps.length;
    listener.tables = lists;
    response.write(`event: steps\ndata: ${JSON.stringify(message)}\n\n`);
  }

  #act(request: IncomingMessage, response: ServerResponse, path: "/save" | "/stop"): void {
    const given = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
    if (request.method !== "POST") refuse(response, 405, "POST is expected");
    else if (!timingSafeEqual(digest(given), digest(this.#token)))
      refuse(response, 401, "the token of the address in the terminal is needed");
    else {
      try {
        const said = path === "/save" ? this.#actions.save() : this.#actions.stop();
        response.writeHead(202, plain);
        response.end(said);
      } catch (error) {
        refuse(response, 409, (error as Error).message);
      }
    }
  }
}

const plain = { "content-type": "text/plain; charset=utf-8" };
const noStore = { "cache-control": "no-store" };

function refuse(response: ServerResponse, status: number, reason: string): void {
  response.writeHead(status, plain);
  response.end(reason);
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
