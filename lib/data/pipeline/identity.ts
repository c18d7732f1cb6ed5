import { createHash } from "node:crypto";
import { datasetVersion } from "../dataset-file.js";
import type { PrepareSettings } from "../prepare-options.js";
import type { FoundInput } from "../readers/find.js";
import type { Tokenizer } from "../tokenizer.js";
import type { Position } from "./batch.js";

/** Names the tokenizer and the options that decide what is made of a text. */
export function identityOf(settings: PrepareSettings, tokenizer: Tokenizer): string {
  // What to do with errors decides nothing while there are none.
  const { invalidUtf8, badRecords, ...others } = settings;
  const hash = createHash("sha256").update(
    JSON.stringify([datasetVersion, others, tokenizer.sha256]),
  );
  for (const bytes of Object.values(tokenizer.contents())) hash.update(bytes);
  return hash.digest("hex");
}

/** Names files by what tells that they have changed. Asked for positions in their order, it looks at each file once. */
export class FileNames {
  readonly #lines: string[];
  readonly #hash = createHash("sha256");
  #done = 0;

  constructor(found: readonly FoundInput[]) {
    this.#lines = found.flatMap(({ files }, source) =>
      files.map(({ path, bytes, mtimeMs, format, compression }) =>
        JSON.stringify([source, path, bytes, mtimeMs, format, compression]),
      ),
    );
  }

  /** A name for the files before a position, and the one that it is in. */
  upTo({ file, record }: Position): string {
    while (this.#done < Math.min(file, this.#lines.length)) {
      this.#hash.update(`${this.#lines[this.#done++]}\n`);
    }
    const hash = this.#hash.copy();
    if (record > 0) hash.update(this.#lines[file] as string);
    return hash.digest("hex");
  }

  /** A name for all files. */
  all(): string {
    return this.upTo({ file: this.#lines.length, record: 0, byte: 0 });
  }
}
