import { createWriteStream, type WriteStream } from "node:fs";
import { dirname, join } from "node:path";
import { makeFolder } from "../files/make-folder.js";

/** Path of a rank's log in the run's folder. */
export function rankLogFile(out: string, rank: number): string {
  return join(out, "logs", `rank-${rank}.log`);
}

/**
 * The log of one process of a run, with the time in front of each line. A disk that refuses a write
 * does not stop the run.
 */
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
