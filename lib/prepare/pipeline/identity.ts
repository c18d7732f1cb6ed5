import { createHash } from "node:crypto";
import { datasetVersion } from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import type { DecidingOptions, WorkFacts } from "../journal.js";
import type { PrepareSettings } from "../options.js";
import type { FoundInput } from "../readers/find.js";
import type { Position } from "./batch.js";
import type { AnswerFacts } from "./chat-facts.js";

/** Describes a preparation's work, to decide whether a later call can resume it. */
export function workOf(
  settings: PrepareSettings,
  tokenizer: Tokenizer,
  found: readonly FoundInput[],
  answers: AnswerFacts | null,
): WorkFacts {
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
    ...(answers?.templateSha256 && { chatTemplate: answers.templateSha256 }),
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

/**
 * One line per file, in order, that changes when the file does. Generated lazily, because there may
 * be a million files.
 */
function* lines(found: readonly FoundInput[]): Generator<string, undefined> {
  for (const [source, { files }] of found.entries()) {
    for (const { path, bytes, mtimeMs, format, compression } of files) {
      yield JSON.stringify([source, path, bytes, mtimeMs, format, compression]);
    }
  }
}

/**
 * Fingerprints the input files by path, size and time. Each file is visited once if positions are
 * asked for in order.
 */
export class FileNames {
  readonly #lines: Generator<string, undefined>;
  readonly #hash = createHash("sha256");
  #current: string | undefined;
  #done = 0;

  constructor(found: readonly FoundInput[]) {
    this.#lines = lines(found);
    this.#current = this.#lines.next().value;
  }

  /** Fingerprint of the files before a position, and of the file that it is in. */
  upTo({ file, record }: Position): string {
    for (; this.#done < file && this.#current !== undefined; this.#done++) {
      this.#hash.update(`${this.#current}\n`);
      this.#current = this.#lines.next().value;
    }
    const hash = this.#hash.copy();
    if (record > 0) hash.update(this.#current ?? "");
    return hash.digest("hex");
  }

  /** Fingerprint of all files. */
  all(): string {
    return this.upTo({ file: Number.POSITIVE_INFINITY, record: 0, byte: 0 });
  }
}
