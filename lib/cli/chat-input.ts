import { createInterface, type Interface } from "node:readline";
import { Writable } from "node:stream";

/** An action of the user. */
export type ChatInput =
  | { kind: "message"; text: string }
  | { kind: "command"; name: string; argument: string }
  | { kind: "interrupt" }
  | { kind: "end" };

export interface ChatInputOptions {
  input: NodeJS.ReadStream;
  output: NodeJS.WriteStream;
  /** In front of a message, and of its further lines; nothing is shown if the input is no terminal. */
  prompt: string;
  morePrompt: string;
}

const quotes = '"""';

/**
 * Reads messages and commands line by line. A line that ends with `\` goes on in the next one, and
 * lines between `"""` are one message. On a terminal, the lines can be edited and called back.
 */
export class ChatReader {
  readonly #interface: Interface;
  readonly #options: ChatInputOptions;
  readonly #interactive: boolean;
  readonly #queue: ChatInput[] = [];
  /** Lines of an unfinished message; null between messages. */
  #lines: string[] | null = null;
  #inBlock = false;
  #ended = false;
  #wake: (() => void) | null = null;
  /** Hears Ctrl-C while an answer is written; then nothing typed is shown. */
  #onInterrupt: (() => void) | null = null;

  constructor(options: ChatInputOptions) {
    this.#options = options;
    const { input, output } = options;
    this.#interactive = Boolean(input.isTTY && output.isTTY);
    this.#interface = createInterface({
      input,
      ...(this.#interactive && { output: this.#echo(output) }),
      terminal: this.#interactive,
      historySize: 1000,
      crlfDelay: Number.POSITIVE_INFINITY,
    });
    this.#interface.on("line", (line) => this.#take(line));
    this.#interface.on("SIGINT", () => this.#interrupt());
    this.#interface.on("close", () => {
      // The end of the input ends an unfinished message.
      if (this.#lines) this.#finish();
      this.#ended = true;
      this.#wake?.();
    });
  }

  get interactive(): boolean {
    return this.#interactive;
  }

  /** The next message or command. */
  async next(): Promise<ChatInput> {
    for (;;) {
      const input = this.#queue.shift();
      if (input) return input;
      if (this.#ended) return { kind: "end" };
      this.#ask();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = null;
    }
  }

  /** Runs work during which Ctrl-C calls `onInterrupt`, and nothing typed is shown. */
  async during(onInterrupt: () => void, work: () => Promise<void>): Promise<void> {
    this.#onInterrupt = onInterrupt;
    try {
      await work();
    } finally {
      this.#onInterrupt = null;
    }
  }

  close(): void {
    this.#interface.close();
  }

  /** The terminal, but nothing typed during an answer gets into it. */
  #echo(output: NodeJS.WriteStream): Writable {
    const echo = new Writable({
      write: (chunk, _encoding, done) => {
        if (this.#onInterrupt) done();
        else output.write(chunk, () => done());
      },
    });
    Object.defineProperty(echo, "columns", { get: () => output.columns });
    output.on("resize", () => echo.emit("resize"));
    return Object.assign(echo, { isTTY: true });
  }

  #ask(): void {
    if (!this.#interactive) return;
    this.#interface.setPrompt(this.#lines ? this.#options.morePrompt : this.#options.prompt);
    this.#interface.prompt();
  }

  #interrupt(): void {
    if (this.#onInterrupt) {
      this.#onInterrupt();
      return;
    }
    this.#lines = null;
    this.#inBlock = false;
    // A line that has been begun is dropped.
    this.#interface.write(null, { ctrl: true, name: "e" });
    this.#interface.write(null, { ctrl: true, name: "u" });
    this.#put({ kind: "interrupt" });
  }

  #take(line: string): void {
    const lines = this.#lines;
    if (this.#inBlock) this.#takeOfBlock(line);
    else if (!lines && line.startsWith(quotes)) {
      this.#lines = [];
      this.#inBlock = true;
      this.#takeOfBlock(line.slice(quotes.length));
    } else if (line.endsWith("\\")) {
      this.#lines = [...(lines ?? []), line.slice(0, -1)];
      this.#ask();
    } else if (!lines && line.startsWith("/")) {
      const [, name = "", argument = ""] = /^\/(\S*)\s*([\s\S]*)$/.exec(line) ?? [];
      this.#put({ kind: "command", name, argument: argument.trim() });
    } else {
      this.#lines = [...(lines ?? []), line];
      this.#finish();
    }
  }

  /** Takes a line, or a part of one, between `"""`. One that is empty beside them does not count. */
  #takeOfBlock(line: string): void {
    const trimmed = line.trimEnd();
    const ends = trimmed.endsWith(quotes);
    const first = this.#lines?.length === 0;
    const text = ends ? trimmed.slice(0, -quotes.length) : line;
    if (text !== "" || !(ends || first)) this.#lines?.push(text);
    if (ends) {
      this.#inBlock = false;
      this.#finish();
    } else this.#ask();
  }

  #finish(): void {
    const text = (this.#lines ?? []).join("\n");
    this.#lines = null;
    if (text.trim() !== "") this.#put({ kind: "message", text });
    else this.#ask();
  }

  #put(input: ChatInput): void {
    this.#queue.push(input);
    this.#wake?.();
  }
}
