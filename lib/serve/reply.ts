import type { ServerResponse } from "node:http";
import { type ApiError, ClientGone } from "./api-error.js";

/** Bytes that a reader must take within the time limit. */
const sliceBytes = 64 * 1024;

/** A server-sent event. */
export function eventText(value: unknown): string {
  return `data: ${JSON.stringify(value)}\n\n`;
}

/**
 * The answer to one request on its way to the client. Writing waits for a slow reader, and cuts
 * off one that takes nothing for too long.
 */
export class Reply {
  readonly response: ServerResponse;
  readonly #stallMs: number;
  readonly #gone = new AbortController();
  #streams = false;
  /** Whether the events are sent in chunks. */
  #chunks = false;

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

  /**
   * Sends server-sent events. The first ones begin the answer.
   * @param text whole events, as `eventText` writes them
   * @returns whether the reader keeps up. If not, `drained` tells when to go on
   * @throws the reason if the client has gone
   */
  sendEvents(text: string): boolean {
    this.#gone.signal.throwIfAborted();
    if (!this.#streams) this.#beginEvents();
    const bytes = Buffer.byteLength(text);
    return this.response.write(
      this.#framed(text, bytes),
      bytes === text.length ? "latin1" : "utf8",
    );
  }

  #beginEvents(): void {
    const { response } = this;
    this.#streams = true;
    // Clients of HTTP 1.0 know no chunks.
    this.#chunks = response.useChunkedEncodingByDefault;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      // Proxies such as nginx would otherwise collect the events.
      "x-accel-buffering": "no",
      ...(this.#chunks && { "transfer-encoding": "chunked" }),
    });
    // Node would write each chunk as four pieces. As one text, it takes a quarter less time.
    response.chunkedEncoding = false;
  }

  /** A chunk of the answer, as it is sent. */
  #framed(text: string, bytes: number): string {
    return this.#chunks ? `${bytes.toString(16)}\r\n${text}\r\n` : text;
  }

  /** Waits until a reader has caught up. @throws the reason if the client has gone or is too slow */
  async drained(): Promise<void> {
    this.#gone.signal.throwIfAborted();
    if (this.response.writableNeedDrain) await this.#waitFor("drain");
  }

  /** Sends one event, and waits for its reader. */
  async event(value: unknown): Promise<void> {
    if (!this.sendEvents(eventText(value))) await this.drained();
  }

  /** Ends a stream. */
  async endEvents(): Promise<void> {
    this.sendEvents("data: [DONE]\n\n");
    await this.#endStream();
  }

  async #endStream(): Promise<void> {
    await this.drained();
    if (this.#chunks) this.response.write("0\r\n\r\n", "latin1");
    await this.#end();
  }

  /** Sends an error: as the whole answer, or as the last event of one that has begun. */
  async fail(error: ApiError): Promise<void> {
    if (this.#streams) {
      await this.event(error.body);
      await this.#endStream();
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
