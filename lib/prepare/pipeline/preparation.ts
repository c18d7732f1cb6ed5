import { open, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { boundedList } from "../../core/bounded-list.js";
import { ArgumentError, DataError, TokenizerError } from "../../core/errors.js";
import { usableThreads } from "../../core/machine-limits.js";
import { optionName, optionValue } from "../../core/option-names.js";
import {
  chatTemplateFile,
  type DatasetFile,
  datasetFileName,
  type Split,
  serialiseDatasetFile,
} from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { FolderIdentity } from "../../files/folder-identity.js";
import { describePassedOver } from "../../files/passed-over.js";
import { syncFolder } from "../../files/sync-folder.js";
import { Deduplicator } from "../deduplicator.js";
import { documentEndOf } from "../document-end.js";
import { type PassProgress, type WorkFacts, workFiles } from "../journal.js";
import { expectUnmoved } from "../moved.js";
import { kindOfAnswers, type PrepareSettings } from "../options.js";
import type { PrepareOptions, PrepareResult } from "../prepare.js";
import { makeWorkFolder, ownPaths } from "../publish.js";
import { recordsOf, selectionOf } from "../readers/documents.js";
import { type FoundInput, findInput } from "../readers/find.js";
import { type Input, type InputFile, noneSkipped } from "../readers/input.js";
import { formOfPairs } from "../readers/preference.js";
import { checkTextFields } from "../readers/text-fields.js";
import { ShardLog } from "../shard-log.js";
import { ShardWriter } from "../shard-writer.js";
import { movedThreshold } from "../validation-split.js";
import { type Beginning, findBeginning } from "./beginning.js";
import { type AnswerFacts, readChatFacts, textPairFacts } from "./chat-facts.js";
import { type Encoder, startEncoder } from "./encoder-pool.js";
import { workOf } from "./identity.js";
import { type Pass, runPass } from "./pass.js";
import { datasetOf, leftOutOf, readTwice, warningsOf } from "./summary.js";

/**
 * Input smaller than this is encoded before the first process would have started: in this process,
 * if the tokenizer cannot end it.
 */
const smallInput = 2 ** 22;

/** Makes one data set, in a working folder that is moved into place when it is complete. */
export class Preparation {
  readonly #folder: string;
  readonly #tokenizer: Tokenizer;
  readonly #settings: PrepareSettings;
  readonly #options: PrepareOptions;
  #answers: AnswerFacts | null = null;
  #found: FoundInput[] = [];
  #identity: FolderIdentity | null = null;
  #resumedDocuments = 0;

  constructor(
    folder: string,
    tokenizer: Tokenizer,
    settings: PrepareSettings,
    options: PrepareOptions,
  ) {
    this.#folder = folder;
    this.#tokenizer = tokenizer;
    this.#settings = settings;
    this.#options = options;
  }

  async run(): Promise<Omit<PrepareResult, "folder">> {
    const { documentStart, documentEnd, validationFraction: fraction } = this.#settings;
    documentEndOf(documentEnd, this.#tokenizer);
    if (documentStart === "bos" && this.#tokenizer.bosId === null) {
      throw new TokenizerError(`[prepare] ${this.#tokenizer.file}: has no beginning-of-text token`);
    }
    const own = await ownPaths(resolve(this.#options.out));
    const { inputs, skipUnreadable } = this.#settings;
    for (const input of inputs) this.#found.push(await findInput(input, own, skipUnreadable));
    this.#answers = await this.#readAnswers();
    checkTextFields(this.#found.map((found, at) => ({ input: inputs[at] as Input, found })));
    const work = workOf(this.#settings, this.#tokenizer, this.#found, this.#answers);
    const { startOver = false } = this.#options;
    const beginning = await findBeginning(this.#folder, work, fraction, this.#found, startOver);
    if (beginning === null) await makeWorkFolder(this.#folder);
    const identity = await FolderIdentity.of(this.#folder);
    this.#identity = identity;
    // Encoders load the tokenizer from the working folder. A resumed folder may have lost it, or
    // have half of it.
    await this.#tokenizer.copyTo(this.#folder);
    const encoder = await this.#startEncoder();
    const warnings = [
      ...this.#found.flatMap(({ notes }) => notes),
      ...(inputs.length > 1 ? readTwice(this.#files) : []),
    ];
    try {
      let pass = await this.#pass(work, encoder, fraction, beginning, identity);
      // The threshold does not matter for documents of inputs with a given split.
      const chosen = this.#settings.inputs.some((input) => input.to !== undefined);
      const moved = fraction > 0 && !chosen ? movedThreshold(pass.progress, pass.splits) : null;
      if (moved !== null) {
        pass = await this.#pass(work, encoder, moved, null, identity);
      }
      warnings.push(...warningsOf(this.#settings, this.#tokenizer, this.#answers, pass));
      const dataset = await this.#finish(pass, identity);
      const longest = pass.progress.longest.map(({ file, record, bytes, tokens }) => ({
        origin: this.#originOf(file, record),
        bytes,
        tokens,
      }));
      const passedOver = this.#found.flatMap(({ passed }, index) => {
        const path = this.#settings.inputs[index]?.path as string;
        return passed.length === 0 ? [] : [{ path, lines: describePassedOver(passed) }];
      });
      const resumedDocuments = this.#resumedDocuments;
      return { dataset, warnings, passedOver, longest, resumedDocuments };
    } finally {
      await encoder.stop();
    }
  }

  /**
   * @throws DataError if the working folder was moved or removed since the work began, so that the
   *   path leads to somebody else's folder
   */
  async expectUnmoved(): Promise<void> {
    if (this.#identity) await expectUnmoved(this.#identity);
  }

  /** Releases the working folder. */
  async close(): Promise<void> {
    await this.#identity?.close();
  }

  /**
   * Facts about chats or pairs before the first is read; null for text. The first record tells
   * whether pairs are plain text or messages.
   */
  async #readAnswers(): Promise<AnswerFacts | null> {
    const { inputs, badRecords, documentStart, documentEnd } = this.#settings;
    const kind = kindOfAnswers(inputs);
    if (kind === null) return null;
    const path = this.#options.chatTemplate ?? dirname(this.#tokenizer.file);
    if (kind === "chat") return await readChatFacts(path, this.#tokenizer, false);
    if ((await formOfPairs(this.#records(), badRecords)) === "messages") {
      if (documentStart !== "none") {
        const given = optionValue("documentStart", documentStart);
        throw new ArgumentError(
          `[prepare] ${given} is for text: messages begin as their template says`,
        );
      }
      if (documentEnd !== "eos") {
        const given = optionValue("documentEnd", documentEnd);
        throw new ArgumentError(
          `[prepare] ${given} is for text: messages end as their template says`,
        );
      }
      return await readChatFacts(path, this.#tokenizer, true);
    }
    if (this.#options.chatTemplate !== undefined) {
      const name = optionName("chatTemplate");
      throw new ArgumentError(
        `[prepare] ${name} writes messages, but chosen and rejected are plain texts: leave it out, or give lists of messages`,
      );
    }
    return textPairFacts(documentEndOf(documentEnd, this.#tokenizer).id);
  }

  /** The records of all inputs, in order. */
  async *#records(): AsyncGenerator<{ fields: unknown; where: string }> {
    const nothing = { onBad: () => {}, onNonFinite: () => {} };
    for (const [index, { files }] of this.#found.entries()) {
      const selection = selectionOf(this.#settings.inputs[index] as Input);
      for (const file of files) {
        const from = { record: 0, byte: 0 };
        const read = recordsOf(file, from, selection, this.#settings, nothing);
        for await (const { record, fields } of read) {
          yield { fields, where: `${file.path}, record ${record}` };
        }
      }
    }
  }

  get #files(): InputFile[] {
    return this.#found.flatMap(({ files }) => files);
  }

  get #dtype(): "uint16" | "uint32" {
    return this.#tokenizer.vocabSize <= 65536 ? "uint16" : "uint32";
  }

  async #startEncoder(): Promise<Encoder> {
    const total = this.#files.reduce((sum, file) => sum + file.bytes, 0);
    // A process of its own keeps a tokenizer that aborts from ending this one.
    const few = this.#tokenizer.mayAbort ? 1 : 0;
    const standard = !compiled ? 0 : total < smallInput ? few : usableThreads();
    const workers = this.#options.workers ?? standard;
    return await startEncoder(this.#tokenizer, this.#folder, this.#dtype, workers);
  }

  /**
   * Reads the documents after a beginning, or all of them, and writes their shards. Documents below
   * the threshold are held out.
   */
  async #pass(
    work: WorkFacts,
    encoder: Encoder,
    threshold: number,
    beginning: Beginning | null,
    identity: FolderIdentity,
  ): Promise<Pass> {
    const { shardTokens, maxRunShare, deduplicate } = this.#settings;
    const tokenizer = this.#tokenizer;
    await expectUnmoved(identity);
    if (beginning === null) await this.#clear();
    const writer = async (split: Split): Promise<ShardWriter> => {
      const options = {
        folder: this.#folder,
        identity,
        split,
        dtype: this.#dtype,
        masked: this.#answers !== null,
        shardTokens,
        maxRunShare,
        tokenName: (id: number) => tokenizer.token(id),
      };
      if (beginning === null) return new ShardWriter(options);
      const { checkpoint, shards } = beginning;
      return await ShardWriter.resume(options, checkpoint.writers[split], shards[split]);
    };
    const progress: PassProgress = structuredClone(beginning?.checkpoint) ?? {
      threshold,
      position: { file: 0, record: 0, byte: 0 },
      sources: this.#found.map(() => ({
        documents: 0,
        bytes: 0,
        tokens: 0,
        skipped: noneSkipped(),
      })),
      longest: [],
      seen: 0,
      lowestHash: 1,
      highestHash: 0,
    };
    if (beginning !== null) {
      this.#resumedDocuments = progress.sources.reduce((sum, source) => sum + source.documents, 0);
    }
    const writers = { train: await writer("train"), validation: await writer("validation") };
    const deduplicator = deduplicate ? await Deduplicator.open(this.#folder, progress.seen) : null;
    const log = await ShardLog.open(this.#folder);
    try {
      const pass = await runPass({
        identity,
        work,
        settings: this.#settings,
        found: this.#found,
        tokenizer,
        answers: this.#answers && {
          pairs: this.#answers.pairs,
          template: this.#answers.template,
        },
        dtype: this.#dtype,
        encoder,
        readers: encoder.width === 1 ? 0 : Math.min(8, Math.ceil(encoder.width / 16)),
        writers,
        log,
        progress,
        between: beginning?.between ?? null,
        deduplicator,
        signal: this.#options.signal,
        onProgress: (now) =>
          this.#options.onProgress?.({ ...now, resumedDocuments: this.#resumedDocuments }),
      });
      if (pass.progress.sources.every((source) => source.documents === 0)) {
        const paths = boundedList(
          this.#settings.inputs.map((input) => input.path),
          ", ",
        );
        const [reason] = leftOutOf(this.#settings.inputs, pass);
        throw new DataError(`[prepare] no text in ${paths}: ${reason ?? "every file is empty"}`);
      }
      return pass;
    } finally {
      await log.close();
      await deduplicator?.close();
      await writers.train.abandon();
      await writers.validation.abandon();
    }
  }

  /** Removes the output of an earlier pass. The journal goes first. */
  async #clear(): Promise<void> {
    for (const name of workFiles) await rm(join(this.#folder, name), { force: true });
    for (const name of await readdir(this.#folder)) {
      if (/\.(bin|idx|mask)$/.test(name)) await rm(join(this.#folder, name));
    }
  }

  #originOf(file: number, record: number): string {
    const { path, format } = this.#files[file] as InputFile;
    return format === "text" ? path : `${path}, record ${record}`;
  }

  /** Writes the tokenizer's files and then dataset.json, which makes the folder a data set. */
  async #finish(pass: Pass, identity: FolderIdentity): Promise<DatasetFile> {
    const tokenizer = this.#tokenizer;
    await expectUnmoved(identity);
    await tokenizer.copyTo(this.#folder);
    if (this.#answers?.template) {
      const template = join(this.#folder, chatTemplateFile);
      await writeFile(template, this.#answers.template.text, { flush: true });
    }
    const facts = { found: this.#found, tokenizer, dtype: this.#dtype, answers: this.#answers };
    const dataset = datasetOf(this.#settings, facts, pass);
    const file = await open(join(this.#folder, datasetFileName), "w");
    try {
      await file.writeFile(serialiseDatasetFile(dataset));
      await file.sync();
    } finally {
      await file.close();
    }
    await syncFolder(this.#folder);
    return dataset;
  }
}

/**
 * Threads and processes need this library as JavaScript, but tests run it from its TypeScript
 * sources.
 */
const compiled = import.meta.url.endsWith(".js");
