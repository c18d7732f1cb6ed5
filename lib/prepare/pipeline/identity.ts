import { createHash } from "node:crypto";
import { datasetVersion } from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { DecidingOptions, Work } from "../journal.js";
import type { PrepareSettings } from "../options.js";
import type { FoundInput } from "../readers/find.js";
import type { Position } from "./batch.js";

/** What decides whether a preparation can go on with another's work. */
export function workOf(
  settings: PrepareSettings,
  tokenizer: Tokenizer,
  found: readonly FoundInput[],
): Work {
  const { inputs, validationFraction, shardTokens, documentStart, documentEnd, deduplicate } =
    settings;
  // In this order whatever the schema's is: it is hashed, and unfinished work must stay of use. Options that only matter
  // after an error are not among them.
  const options: DecidingOptions = {
    inputs,
    validationFraction,
    shardTokens,
    documentStart,
    documentEnd,
    deduplicate,
  };
  const { invalidUtf8, badRecords, maxRunShare } = settings;
  const { sha256 } = tokenizer;
  const identity = createHash("sha256").update(JSON.stringify([datasetVersion, options, sha256]));
  for (const bytes of Object.values(tokenizer.contents())) identity.update(bytes);
  return {
    identity: identity.digest("hex"),
    options,
    tokenizer: sha256,
    files: new FileNames(found).all(),
    invalidUtf8,
    badRecords,
    maxRunShare,
  };
}

/** What tells that a file has changed, of all files in their order. Made as it is asked for: there may be a million. */
function* lines(found: readonly FoundInput[]): Generator<string, undefined> {
  for (const [source, { files }] of found.entries()) {
    for (const { path, bytes, mtimeMs, format, compression } of files) {
      yield JSON.stringify([source, path, bytes, mtimeMs, format, compression]);
    }
  }
}

/** Names files by their paths, sizes and times. Asked for positions in their order, it looks at each file once. */
export class FileNames {
  readonly #lines: Generator<string, undefined>;
  readonly #hash = createHash("sha256");
  #current: string | undefined;
  #done = 0;

  constructor(found: readonly FoundInput[]) {
    this.#lines = lines(found);
    this.#current = this.#lines.next().value;
  }

  /** A name for the files before a position, and the one that it is in. */
  upTo({ file, record }: Position): string {
    for (; this.#done < file && this.#current !== undefined; this.#done++) {
      this.#hash.update(`${this.#current}\n`);
      this.#current = this.#lines.next().value;
    }
    const hash = this.#hash.copy();
    if (record > 0) hash.update(this.#current ?? "");
    return hash.digest("hex");
  }

  /** A name for all files. */
  all(): string {
    return this.upTo({ file: Number.POSITIVE_INFINITY, record: 0, byte: 0 });
  }
}
