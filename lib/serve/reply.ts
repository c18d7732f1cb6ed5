import type { ServerResponse } from "node:http";
import { type ApiError, ClientGone } from "./api-error.js";

/** Bytes that a reader must take within the time limit. */
const sliceBytes = 64 * 1024;

/**
 * The answer to one request on its way to the client. Writing waits for a slow reader, and cuts
 * off one that takes nothing for too long.
 */
export class Reply {
  readonly response: ServerResponse;
  readonly #stallMs: number;
  readonly #gone = new AbortController();
  #streams = false;

  /** @param stallMs time for a reader to take 64 KiB */
  constructor(response: ServerResponse, stallMs: number) {
    this.response = response;
    this.#stallMs = stallMs;
    response.on("close", () => {
      if (!response.writableFinished) this.#gone.abort(new ClientGone("the client has gone"));
    });
    // Errors of the connection end it, and `close` follows.
    response.on("error", () => {});
  }

  /** Aborts when the client has gone or was cut off. */
  get signal(): AbortSignal {
    return this.#gone.signal;
  }

  /** Ends the answer without its rest. */
  cut(reason: unknown): void {
    this.#gone.abort(reason);
    this.response.destroy();
  }

  async json(
    status: number,
    value: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<void> {
    await this.body(status, "application/json", JSON.stringify(value), headers);
  }

  async body(
    status: number,
    type: string,
    text: string,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<void> {
    const bytes = Buffer.from(text);
    this.response.writeHead(status, {
      "content-type": type,
      "content-length": bytes.length,
      ...headers,
    });
    for (let at = 0; at < bytes.length; at += sliceBytes) {
      await this.#write(bytes.subarray(at, at + sliceBytes));
    }
    await this.#end();
  }

  /** Sends one server-sent event. The first one begins the answer. */
  async event(value: unknown): Promise<void> {
    if (!this.#streams) {
      this.#streams = true;
      this.response.writeHead(200, {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        // Proxies such as nginx would otherwise collect the events.
        "x-accel-buffering": "no",
      });
    }
    await this.#write(`data: ${JSON.stringify(value)}\n\n`);
  }

  async endEvents(): Promise<void> {
    await this.#write("data: [DONE]\n\n");
    await this.#end();
  }

  /** Sends an error: as the whole answer, or as the last event of one that has begun. */
  async fail(error: ApiError): Promise<void> {
    if (this.#streams) {
      await this.event(error.body);
      await this.#end();
    } else if (!this.response.headersSent) {
      await this.json(error.status, error.body, error.facts.headers);
    } else {
      this.response.destroy();
    }
  }

  async #write(chunk: string | Buffer): Promise<void> {
    this.#gone.signal.throwIfAborted();
    if (!this.response.write(chunk)) await this.#waitFor("drain");
  }

  async #end(): Promise<void> {
    this.#gone.signal.throwIfAborted();
    this.response.end();
    if (!this.response.writableFinished) await this.#waitFor("finish");
  }

  async #waitFor(event: "drain" | "finish"): Promise<void> {
    const { response } = this;
    const { signal } = this.#gone;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        const seconds = this.#stallMs / 1000;
        this.cut(new ClientGone(`the client read nothing for ${seconds} s`));
      }, this.#stallMs);
      const done = (): void => {
        clearTimeout(timer);
        response.off(event, done);
        signal.removeEventListener("abort", done);
        if (signal.aborted) reject(signal.reason);
        else resolve();
      };
      response.once(event, done);
      signal.addEventListener("abort", done, { once: true });
    });
  }
}
