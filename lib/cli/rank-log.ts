import { createWriteStream, type WriteStream } from "node:fs";
import { dirname, join } from "node:path";
import { makeFolder } from "../files/make-folder.js";

/** Where a rank logs to, in the run's folder. */
export function rankLogFile(out: string, rank: number): string {
  return join(out, "logs", `rank-${rank}.log`);
}

/** What one process of a run has to say, a line each with the time; a disk that refuses it stops nothing. */
export class RankLog {
  readonly #stream: WriteStream;

  private constructor(stream: WriteStream) {
    this.#stream = stream;
    stream.on("error", () => {});
  }

  static async open(file: string): Promise<RankLog> {
    await makeFolder(dirname(file)).catch(() => {});
    return new RankLog(createWriteStream(file, { flags: "a" }));
  }

  write(text: string): void {
    for (const line of text.split("\n")) {
      this.#stream.write(`${new Date().toISOString()} ${line}\n`);
    }
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#stream.destroyed) resolve();
      else this.#stream.end(() => resolve());
    });
  }
}
